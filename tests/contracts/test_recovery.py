"""What every stage of recovery must do, and that one is added by its class and its line in the registry alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.config import RecoveryOptions
from optimum_grasprune.errors import OptionError, PlanError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import count_parameters
from optimum_grasprune.methods import Problem, get_method
from optimum_grasprune.methods.selection import options_of_recovery
from optimum_grasprune.recovery import (
    chain_names,
    get_stage,
    register,
    stage_names,
    stages_in,
)
from optimum_grasprune.recovery.base import Learnt, RebuildingStage, Stage, TrainedStage, WeightStage
from optimum_grasprune.recovery.chain import Chain, sentence
from optimum_grasprune.recovery.reference import Reference, Settings, Trial
from optimum_grasprune.registry import CHAINS, RECOVERIES, STAGES
from optimum_grasprune.selection import choose
from optimum_grasprune.statistics import MOMENTS, TOKEN_WEIGHTS
from tests.conftest import make_model
from tests.contracts.test_methods import choices, problem_of


@pytest.fixture(params=stage_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def problem(model: LlamaForCausalLM) -> Problem:
    config = GRASPConfig(method="random", scale_samples=2, scale_learning_rate=0.1)
    return replace(problem_of(model, config), declared=(MOMENTS, TOKEN_WEIGHTS))


@pytest.fixture
def plan(problem: Problem) -> PruningPlan:
    return PruningPlan.from_mask(choices(problem)["random"])


def mask_of(problem: Problem, seed: int) -> UnitMask:
    return choices(problem_of(problem.model, problem.config.model_copy(update={"seed": seed})))["random"]


def chain_of(names: tuple[str, ...], problem: Problem) -> Chain:
    return Chain.of(names, get_method("random").resolved(problem.config))


def reference_of(problem: Problem) -> Reference:
    return Reference.of(problem)


def state_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_names_itself_and_says_what_it_did(name: str) -> None:
    stage = get_stage(name)
    assert stage.name == name and issubclass(stage, (WeightStage, RebuildingStage, TrainedStage))
    assert stage.sentence[0].isupper() and not stage.sentence.endswith(".")
    assert set(stage.options) <= set(GRASPConfig.model_fields)


def test_no_two_have_a_setting_or_an_option_in_common() -> None:
    classes = [get_stage(name) for name in stage_names()]
    options = [option for stage in classes for option in stage.options]
    settings = [setting for stage in classes if issubclass(stage, WeightStage) for setting in stage.settings]
    assert len(options) == len(set(options)) and len(settings) == len(set(settings))
    record = {"format", "recipe", "base_model", "calibration", "budget", "compensation", "choice", "versions", "plan"}
    assert not record & set(settings)


KINDS = (WeightStage, RebuildingStage, TrainedStage)


def test_chains_refit_first_rebuild_then_and_train_last() -> None:
    for name in chain_names():
        kinds = [KINDS.index(kind) for stage in stages_in(name) for kind in KINDS if issubclass(get_stage(stage), kind)]
        assert len(kinds) == len(stages_in(name)) and kinds == sorted(kinds)


def test_leaves_the_dense_model_alone_and_comes_to_the_same_again(
    name: str, problem: Problem, plan: PruningPlan
) -> None:
    before, states = state_of(problem.model), []
    for _ in range(2):
        chain = chain_of((name,), problem)
        model = next(chain.refitted(reference_of(problem), chain.trials(plan))).build()
        for rebuilding in chain.rebuilding_stages:
            rebuilding.rebuild(reference_of(problem), problem.runner.beside(model), plan)
        for stage in chain.trained_stages:
            stage.train(reference_of(problem), model, plan).fold()
        states.append(state_of(model))
    assert same(*states) and same(state_of(problem.model), before)
    bare = next(Chain().refitted(reference_of(problem), [Trial(plan)])).build()
    assert not same(state_of(bare), states[0])


def test_every_variant_has_the_settings_that_the_stage_names(name: str, problem: Problem) -> None:
    for stage in chain_of((name,), problem).weight_stages:
        assert stage.variants() and all(set(variant) == set(stage.settings) for variant in stage.variants())


def test_many_at_once_come_to_what_each_comes_to_alone(name: str, problem: Problem, plan: PruningPlan) -> None:
    chain = chain_of((name,), problem)
    trials = [*chain.trials(plan), *chain.trials(PruningPlan.from_mask(mask_of(problem, 1)))]
    together = [state_of(draft.build()) for draft in chain.refitted(reference_of(problem), trials)]
    for trial, state in zip(trials, together, strict=True):
        alone = next(chain.refitted(reference_of(problem), [trial])).build()
        assert same(state_of(alone), state)


def test_trying_what_was_learnt_changes_nothing_and_is_what_folding_gives(
    name: str, problem: Problem, plan: PruningPlan
) -> None:
    chain = chain_of((name,), problem)
    for stage in chain.trained_stages:
        pruned = next(Chain().refitted(reference_of(problem), [Trial(plan)])).build()
        before = state_of(pruned)
        learnt = stage.train(reference_of(problem), pruned, plan)
        with learnt.in_force(), torch.no_grad():
            tried = pruned(problem.tokens_NS).logits
        assert same(state_of(pruned), before)
        learnt.fold()
        with torch.no_grad():
            torch.testing.assert_close(pruned(problem.tokens_NS).logits, tried, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held_out", [0, 4])
def test_a_replay_gives_the_same_bytes(
    name: str, held_out: int, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    pruner, model = pruned_with(name, tokenizer, corpus_file, held_out=held_out)
    pruner.save(tmp_path / "out")
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruner.model))


def test_added_parameters_are_those_that_the_model_has_more(name: str, problem: Problem, plan: PruningPlan) -> None:
    chain = chain_of((name,), problem)
    with_stage, without = (
        next(chain.refitted(reference_of(problem), chain.trials(plan))).build() for chain in (chain, Chain())
    )
    added = chain.added_parameters(problem.model, problem.family)
    assert added == count_parameters(with_stage) - count_parameters(without)


def test_statistics_are_collected_once_for_all_candidates(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return gather(*arguments, **options)

    gather = WholeModel.gather
    monkeypatch.setattr(WholeModel, "gather", counted)
    choose({str(seed): mask_of(problem, seed) for seed in range(3)}, chain_of((name,), problem), problem)
    assert len(passes) == len(chain_of((name,), problem).statistics)


def test_a_choice_of_units_depends_on_no_option_of_a_stage() -> None:
    of_stages = {"restoration", "least_squares", "damping", "scale_samples", "scale_epochs", "scale_learning_rate"}
    of_stages |= {
        "reconstruction_damping",
        "diagonal_samples",
        "diagonal_epochs",
        "diagonal_learning_rate",
        "rehearsal",
    }
    assert options_of_recovery() == {"compensation", *RecoveryOptions.model_fields, *of_stages}


def test_a_name_is_taken_once() -> None:
    for taken in ("scales", "both", "none", "auto"):
        with pytest.raises(ValueError, match=f"'{taken}' (exists|is a value of compensation) already"):
            register(taken)(Tilt)
    assert get_stage("scales").name == "scales"


def test_an_unknown_name_is_told_those_that_exist() -> None:
    with pytest.raises(OptionError, match=r"compensation='magic': no such stage; there are scales, .*energy"):
        get_stage("magic")
    with pytest.raises(
        OptionError,
        match=r"compensation='magic': input should be 'auto', 'none', 'scales', .*'both', 'refit' or 'rebuild'",
    ):
        GRASPConfig(compensation="magic")


def test_sentences_of_a_chain() -> None:
    assert sentence(()) == "No weight was changed."
    assert sentence(["bias"]).endswith("in place of the mean of what was cut; no weight was changed.")
    assert sentence(["least_squares", "scales"]) == (
        "The output projections were refitted by least squares; one trained scale per kept unit is folded into the "
        "output projections; no weight was fine-tuned."
    )
    assert sentence((), multiplied=True) == (
        "Each unit that stays has a multiplier, trained with the choice of units and folded; no weight was fine-tuned."
    )


def pruned_with(
    compensation: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, **options: object
) -> tuple[GRASPPruner, LlamaForCausalLM]:
    values = {"method": "wanda_sp", "num_samples": 4, "seq_len": 24, "scale_learning_rate": 0.1, **options}
    made_up = {"compensation": compensation}
    if compensation in RECOVERIES:
        made_up = {"compensation": "none", "recover": compensation, "recover_watch": __file__, "recover_tokens": 96}
    pruner = GRASPPruner(GRASPConfig(dataset=str(corpus_file), **{**made_up, **values}))
    model = make_model()
    pruner.prune_model(model, tokenizer)
    return pruner, model


# A stage of one's own: its class and its line in the registry, and no edit elsewhere.


class Tilt(WeightStage):
    """Moves every weight of the output projections by a small step, the size of which held-out data chooses."""

    name = "tilt"
    sentence = "Every weight of the output projections was moved by a small step"
    statistics = (MOMENTS,)
    settings = ("step",)
    single_weights = True

    def variants(self) -> tuple[Settings, ...]:
        return ({"step": 0.5}, {"step": 1e-4})

    @torch.no_grad()
    def refit(self, reference: Reference, trial: Trial, pruned: PreTrainedModel) -> None:
        for cut in reference.cut_maps(pruned, trial.cut):
            mean_K = reference.statistics[MOMENTS][cut.path].mean_I[cut.kept_K].float()
            cut.after.weight.add_(trial.settings["step"] * mean_K.sign() * (cut.after.weight != 0))


class Stretch(TrainedStage):
    """Multiplies the output projections by a number that it learns from the sequences; no plan holds that number."""

    name = "stretch"
    sentence = "The output projections were stretched"
    fine_tunes = True
    needs_sequences = True

    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> Learnt:
        return LearntStretch(pruned, plan, 1 + 1e-3 * float(reference.tokens_NS.float().mean()))


@dataclass
class LearntStretch(Learnt):
    pruned: PreTrainedModel
    plan: PruningPlan
    factor: float

    def outputs(self) -> list[torch.nn.Linear]:
        return list(family_of(self.pruned.config).output_projections(self.pruned).values())

    @contextmanager
    def in_force(self) -> Iterator[None]:
        with torch.no_grad():
            before = [linear.weight.clone() for linear in self.outputs()]
            self.fold()
            yield
            for linear, weight in zip(self.outputs(), before, strict=True):
                linear.weight.copy_(weight)

    @torch.no_grad()
    def fold(self) -> PruningPlan:
        for linear in self.outputs():
            linear.weight.mul_(self.factor)
        return self.plan


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Stage]], None]:
    monkeypatch.setattr(STAGES, "_classes", dict(STAGES._classes))
    return lambda stage: register(stage.name)(stage)


def test_a_toy_stage_is_chosen_described_and_replayed(
    registered: Callable[[type[Stage]], None], tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="compensation='tilt': input should be"):
        GRASPConfig(compensation="tilt")
    registered(Tilt)
    pruner, model = pruned_with("tilt", tokenizer, corpus_file)
    record = pruner.record
    assert record.compensation == ("tilt",) and record.settings == {"step": 0.5}
    assert record.to_dict()["step"] == 0.5 and record.to_dict()["damping"] is None
    pruner.save(tmp_path / "out")
    assert (
        "Every weight of the output projections was moved by a small step; no weight was fine-tuned."
        in (tmp_path / "out" / "README.md").read_text()
    )
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruner.model))
    other = GRASPPruner(GRASPConfig(compensation="none")).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert not same(state_of(other.model), state_of(pruner.model))


def test_all_variants_of_a_toy_stage_are_judged(registered: Callable[[type[Stage]], None], problem: Problem) -> None:
    registered(Tilt)
    masks = {str(seed): mask_of(problem, seed) for seed in range(3)}
    selected = choose(masks, chain_of(("tilt",), problem), problem)
    tried = [dict(judgement.settings) for judgement in selected.judgements if judgement.compensation == "tilt"]
    assert tried == [{"step": 0.5}, {"step": 1e-4}] * 2
    best = min(selected.judgements, key=lambda judgement: judgement.loss)
    assert best.compensation == (" ".join(selected.stages) or "none") and best.settings == selected.settings


def test_a_toy_stage_on_single_weights(
    registered: Callable[[type[Stage]], None], tokenizer: PreTrainedTokenizerFast, corpus_file: Path
) -> None:
    registered(Tilt)
    options = {"method": "statistical", "pattern": "2:4"}
    pruner, _ = pruned_with("tilt", tokenizer, corpus_file, **options)
    assert pruner.record.compensation == ("tilt",) and pruner.record.settings["step"] == 0.5
    bare, _ = pruned_with("none", tokenizer, corpus_file, **options)
    assert not same(state_of(pruner.model), state_of(bare.model))
    with pytest.raises(OptionError, match="compensation='bias': pattern 2:4 supports only none, energy and tilt"):
        GRASPPruner(GRASPConfig(compensation="bias", **options))


@pytest.mark.parametrize("held_out", [0, 4])
def test_a_toy_stage_that_trains(
    registered: Callable[[type[Stage]], None],
    held_out: int,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    registered(Stretch)
    monkeypatch.setitem(CHAINS, "fit_and_stretch", ("least_squares", "stretch"))
    pruner, model = pruned_with("fit_and_stretch", tokenizer, corpus_file, held_out=held_out)
    if held_out:
        assert [entry.compensation for entry in pruner.record.choice][-1].endswith("stretch")
    else:
        assert pruner.record.compensation == ("least_squares", "stretch")
        assert "; the output projections were stretched." in sentence(pruner.record.compensation)
    pruner.save(tmp_path / "out")
    again = GRASPPruner(GRASPConfig()).replay(model, tokenizer, *read_plan(tmp_path / "out"))
    assert same(state_of(again.model), state_of(pruner.model))


def test_a_plan_of_a_stage_that_does_not_exist_here(
    registered: Callable[[type[Stage]], None],
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerFast,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    registered(Tilt)
    pruner, model = pruned_with("tilt", tokenizer, corpus_file)
    pruner.save(tmp_path / "out")
    monkeypatch.undo()
    plan, record = read_plan(tmp_path / "out")
    with pytest.raises(PlanError, match="made with the stage tilt, which does not exist here; there are "):
        GRASPPruner(GRASPConfig()).replay(model, tokenizer, plan, record)
    assert GRASPPruner(GRASPConfig(compensation="none")).replay(model, tokenizer, plan, record).model is not model
