"""Numbers of several ratios' models, trained together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, PruningPlan
from optimum_grasprune.execution import Runner, Training, WholeModel
from optimum_grasprune.execution.turns import InTurns
from optimum_grasprune.recovery import together
from optimum_grasprune.recovery.base import NumbersStage
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.recovery.registry import get_stage, stage_names
from optimum_grasprune.recovery.together import Sliced, learn_together, shortened
from tests.contracts.test_methods import choices, problem_of

STAGES = [name for name in stage_names() if issubclass(get_stage(name), NumbersStage)]
RATIOS = (0.9, 0.6)


def reference_and_stage(model: LlamaForCausalLM, name: str) -> tuple[Reference, NumbersStage]:
    rates = {"diagonal_learning_rate": 0.03, "scale_learning_rate": 0.03}
    config = GRASPConfig(method="random", compensation="none", diagonal_epochs=8, scale_epochs=8, **rates)
    stage = get_stage(name).from_config(config)
    assert isinstance(stage, NumbersStage)
    return Reference.of(problem_of(model, config)), stage


def sliced(model: LlamaForCausalLM, runner: Runner, ratios: tuple[float, ...] = RATIOS) -> dict[float, Sliced]:
    models = {}
    for ratio in ratios:
        plan = PruningPlan.from_mask(
            choices(problem_of(model, GRASPConfig(method="random", keep_ratio=ratio)))["random"]
        )
        models[ratio] = Sliced(runner.draft(plan), plan)
    return models


def test_the_course_of_the_others_is_shorter() -> None:
    training = Training(2, 1, 0, 1e-2, "cosine", False, "diagonals", rehearsed=(False, True, False, False, False))
    tokens_NS, shorter = shortened(torch.arange(10).view(5, 2), training)
    assert tokens_NS[:, 0].tolist() == [0, 2, 4, 6] and shorter.rehearsed == (False, True, False, False)
    assert shorter.learning_rate == pytest.approx(6e-3) and shorter.epochs == 2
    assert len(shortened(torch.zeros(1, 2), training)[0]) == 1


@pytest.mark.parametrize("name", STAGES)
def test_the_deepest_cut_is_trained_for_as_by_itself_and_the_others_start_there(
    name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Tensor] = []
    learn = WholeModel.learn
    monkeypatch.setattr(
        WholeModel, "learn", lambda self, trained, *rest: began.extend(trained.start()) or learn(self, trained, *rest)
    )
    reference, stage = reference_and_stage(model, name)
    *_, (ratio, deepest) = (models := sliced(model, reference.runner)).items()
    numbers = learn_together(stage, reference, models)
    pruned = reference.runner.beside(reference.runner.built(deepest.draft, again=True))
    tokens_NS, training = stage.course(reference, together.share_cut(deepest.plan, reference.runner))
    (alone,) = pruned.learn(stage.acting(pruned), tokens_NS, training, reference.teacher)
    assert torch.equal(numbers[ratio], alone)
    (_, level_D, bend_D), places_K = began[:3], stage.places(pruned, reference.runner, deepest.plan)
    assert torch.equal(level_D[places_K], alone) and not bend_D.any()
    assert level_D.count_nonzero() == alone.count_nonzero()
    assert torch.equal(learn_together(stage, reference, {ratio: deepest})[ratio], alone)


@pytest.mark.parametrize("name", STAGES)
def test_all_models_gain_and_the_dense_one_stays(name: str, model: LlamaForCausalLM) -> None:
    reference, stage = reference_and_stage(model, name)
    runner, models = reference.runner, sliced(model, reference.runner)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    numbers = learn_together(stage, reference, models)
    for ratio, of_ratio in models.items():
        pruned = runner.beside(runner.built(of_ratio.draft))
        assert numbers[ratio].shape == stage.acting(pruned).start()[0].shape
        cut_loss = pruned.mean_loss(reference.tokens_NS)
        with stage.learnt(numbers[ratio], pruned, of_ratio.plan).in_force():
            assert pruned.mean_loss(reference.tokens_NS) < cut_loss
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", STAGES)
def test_models_that_are_made_for_each_turn_come_to_the_same(
    name: str, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, stage = reference_and_stage(model, name)
    ratios = (0.9, 0.7, 0.6)
    built: list[int] = []
    build = WholeModel.built
    monkeypatch.setattr(
        WholeModel, "built", lambda self, draft, **how: built.append(id(draft)) or build(self, draft, **how)
    )
    found = [learn_together(stage, reference, sliced(model, reference.runner, ratios))]
    assert len(built) == 3
    monkeypatch.setattr(together, "HELD_MODELS_BYTES", 0)
    built.clear()
    found.append(learn_together(stage, reference, sliced(model, reference.runner, ratios)))
    assert len(built) >= 6 and all(first != second for first, second in itertools.pairwise(built))
    assert all(torch.equal(found[0][ratio], found[1][ratio]) for ratio in ratios)


def test_of_a_model_that_is_whole_nothing_is_multiplied(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    monkeypatch.setattr(together, "InTurns", lambda *given: orders.append(given[-1]) or InTurns(*given))
    reference, stage = reference_and_stage(model, "diagonals")
    numbers = learn_together(stage, reference, sliced(model, reference.runner, (1.0, 0.8, 0.5)))
    assert not numbers[1.0].any() and numbers[0.8].any() and numbers[0.5].any()
    assert set(orders[0]) == {1}  # it has no turns


def test_what_several_models_share_differs_by_their_cut_alone(model: LlamaForCausalLM) -> None:
    """Of all but the deepest, numbers lie on a parabola through nought."""
    reference, stage = reference_and_stage(model, "diagonals")
    models = sliced(model, reference.runner, (0.9, 0.8, 0.7, 0.5))
    cuts = [together.share_cut(each.plan, reference.runner) for each in models.values()]
    places = {}
    for ratio, each in list(models.items())[:3]:
        pruned = reference.runner.beside(reference.runner.built(each.draft, again=True))
        places[ratio] = stage.places(pruned, reference.runner, each.plan)
    numbers = learn_together(stage, reference, models)
    first, middle, last = ((cut / cuts[-1]) ** 0.75 for cut in cuts[:3])
    common = set.intersection(*(set(each.tolist()) for each in places.values()))
    for place in list(common)[:: len(common) // 20]:
        values = [
            numbers[ratio][(places[ratio] == place).nonzero()[0, 0]].item() / strength
            for ratio, strength in zip(places, (first, middle, last), strict=True)
        ]
        on_the_line = values[0] + (values[2] - values[0]) * (middle - first) / (last - first)
        assert values[1] == pytest.approx(on_the_line, abs=1e-5)


def test_what_is_trained_in_turns_acts_on_no_model_alone(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    with pytest.raises(TypeError, match="acts on no model alone"):
        InTurns((), (), ()).attached(runner, ())


def test_a_model_trained_alone_starts_at_nothing_known(model: LlamaForCausalLM) -> None:
    reference, stage = reference_and_stage(model, "diagonals")
    (each,) = sliced(model, reference.runner, (0.6,)).values()
    pruned = reference.runner.built(each.draft)
    known = torch.full_like(stage.acting(reference.runner.beside(pruned)).start()[0], 0.5)
    learnt = stage.train(replace(reference, learnt=known), pruned, each.plan)
    assert torch.equal(learnt.raw_D, known)  # type: ignore[attr-defined]
