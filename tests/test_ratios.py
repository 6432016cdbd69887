"""Several keep ratios from one run."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PrunedModel, UnitMask, project
from optimum_grasprune.errors import BudgetError, OptionError, PlanError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.methods.base import Problem
from optimum_grasprune.methods.grasprune import GRASPrune
from optimum_grasprune.ratios import at_ratios
from optimum_grasprune.recovery.least_squares import FITS
from tests.conftest import make_model

RATIOS = [0.6, 0.9, 0.75]


@pytest.fixture
def config(corpus_file: Path) -> GRASPConfig:
    return GRASPConfig(dataset=str(corpus_file), num_samples=6, seq_len=24, held_out=2, learning_rate=0.2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the runner was asked for: "gather", and the label of every training."""
    made: list[str] = []
    gather, learn = WholeModel.gather, WholeModel.learn

    def watched_gather(self: WholeModel, *args: Any, **options: Any) -> Any:
        made.append("gather")
        return gather(self, *args, **options)

    def watched_learn(self: WholeModel, trained: Any, tokens_NS: Any, training: Any, *args: Any, **options: Any) -> Any:
        made.append(training.label)
        return learn(self, trained, tokens_NS, training, *args, **options)

    monkeypatch.setattr(WholeModel, "gather", watched_gather)
    monkeypatch.setattr(WholeModel, "learn", watched_learn)
    return made


def hashes(pruned: PrunedModel, folder: Path) -> dict[str, str]:
    pruned.save(folder)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def kept(pruned: PrunedModel) -> set[tuple[object, int]]:
    assert pruned.plan is not None
    return {(group.address, unit) for group in pruned.plan.groups for unit in group.kept}


def test_gates_are_trained_and_statistics_gathered_once(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, calls: list[str]
) -> None:
    run = GRASPPruner(config).prune_many(model, tokenizer, RATIOS)
    assert calls == [] and run.keep_ratios == (0.9, 0.75, 0.6)
    records = [pruned.record for pruned in run]
    # Gates for the smallest alone, diagonals for it and then for both others together.
    assert calls == ["gather", "gates", "diagonals", "diagonals"]
    for ratio, record in zip(run.keep_ratios, records, strict=True):
        assert record.recipe["keep_ratio"] == ratio
        assert record.budget.asked is not None and record.budget.pruned.prunable <= record.budget.asked.cost
        assert ratio - 0.02 < record.budget.kept.prunable <= ratio
    large, middle, small = records
    assert small.shared is None
    for record in (large, middle):
        assert record.to_dict()["shared"] == {"keep_ratios": [0.9, 0.75, 0.6], "nested": False}
    assert [judgement.candidate for judgement in small.choice][:2] == ["start", "gates 1/4"]
    # The others take the candidate that was chosen at the smallest, and the damping that suits the next larger one; of
    # them the largest alone is measured, to see whether training helps.
    assert small.judged_at is None and large.judged_at == middle.judged_at == 0.6
    rebuilt, chosen = small.choice[-2:]
    assert (rebuilt.compensation, chosen.compensation) == ("reconstruction", "reconstruction diagonals")
    assert all("diagonals" in record.compensation for record in (large, middle))
    assert [judgement.compensation for judgement in large.choice] == ["least_squares", "least_squares diagonals"]
    assert {judgement.candidate for judgement in large.choice} == {chosen.candidate} and middle.choice == ()
    assert small.settings == {} and large.settings == middle.settings and set(large.settings) == {"damping"}


def test_nested_masks_are_judged_as_others_are(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    *_, small = GRASPPruner(config).prune_many(make_model(), tokenizer, RATIOS, nested=True)
    alone = GRASPPruner(config.model_copy(update={"keep_ratio": 0.6})).prune(make_model(), tokenizer)
    assert small.plan == alone.plan  # nothing that it keeps had gone before
    assert small.record.choice == alone.record.choice and small.record.compensation == alone.record.compensation


def test_candidates_are_made_once_at_every_ratio(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    real = GRASPrune.candidates_at

    def watched(self: GRASPrune, problems: Any, scores_U: torch.Tensor) -> Callable[[Problem], dict[str, UnitMask]]:
        masks = real(self, problems, scores_U)
        return lambda problem: made.append(problem.config.keep_ratio) or masks(problem)

    monkeypatch.setattr(GRASPrune, "candidates_at", watched)
    list(GRASPPruner(config).prune_many(model, tokenizer, RATIOS))
    assert sorted(made) == sorted(RATIOS)


@pytest.mark.parametrize("best", [0, 1])
def test_how_to_refit_is_decided_where_weights_are_refitted(
    best: int,
    config: GRASPConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The smallest is rebuilt and has no damping to choose; what suits the next larger one holds for the others."""
    measured = WholeModel.mean_loss
    losses: list[float] = []

    def one_is_best(self: WholeModel, windows_NS: torch.Tensor, batch_size: int | None = None) -> float:
        losses.append(measured(self, windows_NS, batch_size))
        # Five candidates and the model that is rebuilt; then the one that won at 0.75, with two dampings.
        return 0.1 if len(losses) == 7 + best else losses[-1]

    monkeypatch.setattr(WholeModel, "mean_loss", one_is_best)
    large, middle, _ = (pruned.record for pruned in GRASPPruner(config).prune_many(model, tokenizer, RATIOS))
    assert large.settings == middle.settings == {"damping": FITS["weighted"].dampings[best]}


def test_the_dense_model_is_read_once_by_all_that_it_teaches(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []
    teacher, streams = WholeModel.teacher, []
    stream = WholeModel.stream

    def watched(self: WholeModel, tokens_NS: torch.Tensor, *, live: bool = False) -> Any:
        assert self.model is model and not live
        read.extend(tokens_NS)
        return teacher(self, tokens_NS)

    monkeypatch.setattr(WholeModel, "teacher", watched)
    monkeypatch.setattr(WholeModel, "stream", lambda self, tokens_NS: streams.append(1) or stream(self, tokens_NS))
    list(GRASPPruner(config).prune_many(model, tokenizer, RATIOS))
    assert len(read) == config.diagonal_sequences(6, 24) == len(torch.stack(read).unique(dim=0)) == 12
    assert len(streams) == 3  # the products for least squares too, and both models while the smallest is rebuilt


def test_the_smallest_ratio_is_what_a_run_of_its_own_makes(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    compensations = [{}, *({"compensation": name} for name in ("refit", "rebuild", "scales", "reconstruction"))]
    for number, options in enumerate([*compensations, {"multipliers": "joint"}, {"held_out": 0}, {"method": "ddp"}]):
        config = config.model_copy(
            update={"method": "grasprune", "compensation": "auto", "held_out": 2, "learning_rate": None, **options}
        )
        *_, small = GRASPPruner(config).prune_many(make_model(), tokenizer, RATIOS)
        alone = GRASPPruner(config.model_copy(update={"keep_ratio": 0.6})).prune(make_model(), tokenizer)
        assert small.record == alone.record
        assert hashes(small, tmp_path / f"small-{number}") == hashes(alone, tmp_path / f"alone-{number}")


@pytest.mark.parametrize("compensation", ["refit", "auto"])
def test_where_training_does_not_help_the_smallest_is_that_too(
    compensation: str, config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(
        update={"compensation": compensation, "diagonal_learning_rate": 30.0, "keep_ratio": 0.6, "multipliers": "joint"}
    )
    # The bare cut is best, so that what training starts from is not what is had without it.
    measured = WholeModel.mean_loss
    losses: dict[int, float] = {}

    def bare_is_best(self: WholeModel, windows_NS: torch.Tensor, batch_size: int | None = None) -> float:
        loss = measured(self, windows_NS, batch_size)
        return losses.setdefault(len(losses), loss - 5) if not losses else loss

    runs = []
    for several in (True, False):
        losses.clear()
        with monkeypatch.context() as patched:
            patched.setattr(WholeModel, "mean_loss", bare_is_best)
            pruner = GRASPPruner(config)
            many = pruner.prune_many(make_model(), tokenizer, [0.9, 0.6])
            runs.append(many.prune(0.6) if several else pruner.prune(make_model(), tokenizer))
    assert runs[0].record == runs[1].record and runs[0].record.compensation == ()
    states = [each.model.state_dict() for each in runs]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_all_others_have_one_training_and_it_is_recorded(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    lengths: list[int] = []
    learn = WholeModel.learn

    def watched(self: WholeModel, trained: Any, tokens_NS: torch.Tensor, training: Any, *rest: Any, **more: Any) -> Any:
        if training.label == "diagonals":
            lengths.append(len(tokens_NS))
            orders.append(getattr(trained, "order", []))
        return learn(self, trained, tokens_NS, training, *rest, **more)

    monkeypatch.setattr(WholeModel, "learn", watched)
    pruned = list(GRASPPruner(config).prune_many(model, tokenizer, RATIOS))
    assert lengths == [12, 9]
    assert orders == [[], [0, 1, 0, 1, 0, 1, 0, 1, 0]]
    *larger, smallest = pruned
    assert smallest.record.trained_with is None
    # A report shows the steps at its own ratio: gates have steps at the smallest alone, six.
    taken = [{curves.label: curves.steps for curves in one.numbers.trainings} for one in pruned if one.numbers]
    assert taken == [{"diagonals": 5}, {"diagonals": 4}, {"gates": 6, "diagonals": 12}]
    for one in larger:
        others = one.record.trained_with
        assert others is not None and [entry.plan for entry in others] == [
            other.plan for other in pruned if other is not one
        ]
        *refitted, rebuilt = others
        assert all(entry.compensation == ("least_squares",) and entry.settings for entry in refitted)
        assert (rebuilt.compensation, rebuilt.settings) == (("reconstruction",), {})


def test_a_ratio_out_of_turn_is_what_it_is_in_turn(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, calls: list[str]
) -> None:
    runs = [GRASPPruner(config).prune_many(make_model(), tokenizer, RATIOS) for _ in range(2)]
    in_turn = [hashes(pruned, tmp_path / f"in-turn-{number}") for number, pruned in enumerate(runs[0])]
    calls.clear()
    assert hashes(runs[1].prune(0.6), tmp_path / "last") == in_turn[2]
    assert calls == ["gather", "gates", "diagonals", "diagonals"]
    assert hashes(runs[1].prune(0.75), tmp_path / "again") == in_turn[1]


def test_what_is_trained_together_whatever_chose_the_units(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for number, compensation in enumerate(("refit", "rebuild", "scales")):
        config = config.model_copy(update={"method": "taylor", "compensation": compensation, "held_out": 0})
        large, _ = GRASPPruner(config).prune_many(make_model(), tokenizer, [0.8, 0.6])
        assert large.record.shared is not None and large.record.judged_at is None
        # A plan holds scales, so that nothing has to be trained again.
        assert (large.record.trained_with is None) == (compensation == "scales")
        files = hashes(large, tmp_path / f"large-{number}")
        replayed = GRASPPruner().replay(make_model(), tokenizer, *read_plan(tmp_path / f"large-{number}"))
        assert hashes(replayed, tmp_path / f"replayed-{number}") == files
        alone = GRASPPruner(config.model_copy(update={"keep_ratio": 0.8})).prune(make_model(), tokenizer)
        assert alone.plan is not None and large.plan is not None
        assert alone.plan.without_scales() == large.plan.without_scales()
        assert hashes(alone, tmp_path / f"alone-{number}")["model.safetensors"] != files["model.safetensors"]


def test_a_plan_whose_record_lacks_the_others_is_refused(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    small, _ = GRASPPruner(config).prune_many(make_model(), tokenizer, [0.8, 0.6])
    assert small.plan is not None
    record = replace(small.record, trained_with=())
    with pytest.raises(
        PlanError, match=r"^the plan was trained together with 0 others, which are not those of its run"
    ):
        GRASPPruner().replay(make_model(), tokenizer, small.plan, record)
    walked = replace(small.record, trained_with=None, trained_before=small.record.trained_with)
    with pytest.raises(PlanError, match=r"^the plan was trained with those of other ratios as earlier versions did"):
        GRASPPruner().replay(make_model(), tokenizer, small.plan, walked)
    # Trained by itself it is another model, and its record does not say anything else.
    options = GRASPConfig(compensation="diagonals")
    alone = GRASPPruner(options).replay(make_model(), tokenizer, small.plan, small.record)
    assert alone.record.trained_with is None
    again = GRASPPruner().replay(make_model(), tokenizer, small.plan, alone.record)
    states = [each.model.state_dict() for each in (alone, again)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("method", ["taylor", "taylor+least_squares", "fasp", "flap"])
def test_what_trains_no_gates_comes_to_the_same_as_by_itself(
    method: str, config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, calls: list[str]
) -> None:
    method, _, compensation = method.partition("+")
    config = config.model_copy(update={"method": method, "compensation": compensation or "auto"})
    together = {
        pruned.record.recipe["keep_ratio"]: hashes(pruned, tmp_path / str(number))
        for number, pruned in enumerate(GRASPPruner(config).prune_many(make_model(), tokenizer, [0.9, 0.6]))
    }
    assert calls.count("gather") == (1 if method != "fasp" else calls.count("gather"))
    for ratio, files in together.items():
        alone = GRASPPruner(config.model_copy(update={"keep_ratio": ratio})).prune(make_model(), tokenizer)
        assert hashes(alone, tmp_path / f"alone-{ratio}") == files


def test_one_ratio_is_a_run_of_its_own(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (pruned,) = GRASPPruner(config).prune_many(make_model(), tokenizer, [0.6])
    alone = GRASPPruner(config.model_copy(update={"keep_ratio": 0.6})).prune(make_model(), tokenizer)
    assert hashes(pruned, tmp_path / "one") == hashes(alone, tmp_path / "other")


@pytest.mark.parametrize("options", [{}, {"compensation": "rebuild"}, {"least_squares": "robust"}])
def test_the_same_seed_gives_the_same_bytes_and_a_plan_replays(
    options: dict[str, str], config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = config.model_copy(update=options)
    first, second = (
        [
            hashes(pruned, tmp_path / f"{run}-{number}")
            for number, pruned in enumerate(GRASPPruner(config).prune_many(make_model(), tokenizer, RATIOS))
        ]
        for run in ("first", "second")
    )
    assert first == second
    for number, files in enumerate(first):
        pruner = GRASPPruner()
        replayed = pruner.replay(make_model(), tokenizer, *read_plan(tmp_path / f"first-{number}"))
        assert hashes(replayed, tmp_path / f"replayed-{number}") == files


def test_models_are_made_one_after_another(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    made: list[weakref.ref[Any]] = []
    for pruned in GRASPPruner(config).prune_many(model, tokenizer, RATIOS):
        made.append(weakref.ref(pruned.model))
        del pruned
        gc.collect()
        assert sum(one() is not None for one in made) <= 1


def shuffled(self: GRASPrune, problems: Any, scores_U: torch.Tensor) -> Callable[[Problem], dict[str, UnitMask]]:
    """Candidates that have nothing to do with those of another ratio."""

    def masks(problem: Problem) -> dict[str, UnitMask]:
        generator = torch.Generator().manual_seed(round(100 * problem.config.keep_ratio))
        random_U = torch.randn(len(scores_U), generator=generator)
        return {"random": project(random_U, problem.inventory, problem.budget)}

    return masks


@pytest.mark.parametrize("nested", [True, False])
def test_what_went_at_a_ratio_stays_away_where_masks_are_nested(
    nested: bool,
    config: GRASPConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GRASPrune, "candidates_at", shuffled)
    config = config.model_copy(update={"compensation": "none"})
    pruned = list(GRASPPruner(config).prune_many(model, tokenizer, RATIOS, nested=nested))
    large, middle, small = map(kept, pruned)
    assert (small <= middle <= large) == nested
    for one in pruned:
        own = one is pruned[-1] and not nested
        assert (one.record.shared is None) == own and (one.record.shared is None or one.record.shared.nested == nested)
        assert 0 < one.record.budget.kept.prunable <= float(str(one.record.recipe["keep_ratio"]))


def test_a_search_of_widths_stays_nested(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = config.model_copy(update={"search_trials": 12, "held_out": 0, "compensation": "none"})
    sets = [kept(pruned) for pruned in GRASPPruner(config).prune_many(model, tokenizer, RATIOS, nested=True)]
    assert sets[2] <= sets[1] <= sets[0]


def test_nested_ratios_are_made_in_order_and_as_often_as_one_likes(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = config.model_copy(update={"method": "random", "seed": 3})
    run = GRASPPruner(config).prune_many(model, tokenizer, [0.9, 0.75, 0.6], nested=True)
    with pytest.raises(OptionError, match=r"^keep_ratio=0.75: is nested in 0.9, which has to be made first"):
        run.prune(0.75)
    with pytest.raises(OptionError, match=r"^keep_ratio=0.5: is none of this run's, which are 0.9, 0.75, 0.6"):
        run.prune(0.5)
    first, again = ([kept(pruned) for pruned in run] for _ in range(2))
    assert first == again and len(first[0]) > len(first[1]) > len(first[2])
    assert kept(run.prune(0.75)) == first[1]


def test_each_ratio_is_trained_by_itself(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, calls: list[str]
) -> None:
    recover = {"recover": "distill", "recover_tokens": 96, "recover_watch": f"{__file__}[:60%]"}
    config = config.model_copy(update={**recover, "min_ffn_channels": 0, "budget": "total", "multipliers": "joint"})
    for number, pruned in enumerate(GRASPPruner(config).prune_many(model, tokenizer, [0.9, 0.75], nested=True)):
        pruned.save(tmp_path / str(number))
        assert pruned.record.recovery is not None and pruned.record.recovery.tokens == 96
        assert pruned.record.budget.kept.parameters <= float(str(pruned.record.recipe["keep_ratio"]))
    assert calls == ["gather", "gates", "diagonals", "diagonals", *["distill"] * 2]
    for number in range(2):
        replayed = GRASPPruner().replay(make_model(), tokenizer, *read_plan(tmp_path / str(number)))
        replayed.save(tmp_path / f"replayed-{number}")
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in (str(number), f"replayed-{number}")]
        assert weights[0] == weights[1]


def test_nested_masks_are_recorded_of_any_method(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = config.model_copy(update={"method": "magnitude"})
    for pruned in GRASPPruner(config).prune_many(model, tokenizer, [0.5, 0.8], nested=True):
        assert pruned.record.shared is not None and pruned.record.shared.keep_ratios == (0.8, 0.5)
    pruned.save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "in one run for the keep ratios 0.8 and 0.5; its units are among those of the larger ones." in card


@pytest.mark.parametrize(
    ("options", "ratios", "nested", "message"),
    [
        ({}, [0.5, 0.8, 0.50], False, r"^keep_ratio=0.5: is given twice"),
        ({}, [0.5, 1.5], False, r"^keep_ratio=1.5: input should be less than or equal to 1"),
        ({}, [0.5, "half"], False, r"^keep_ratio='half': input should be a valid number"),
        ({}, [], False, r"^keep_ratio=None: should be at least one ratio"),
        ({}, [0.5], True, r"^nested=True: nests the masks of several keep ratios, and there is one"),
        (
            {"method": "statistical", "pattern": "2:4"},
            [0.5, 0.6],
            False,
            r"^pattern='2:4': keeps exactly half of the weights, which leaves no other ratio",
        ),
        (
            {"method": "statistical", "pattern": "unstructured"},
            [0.5, 0.6],
            True,
            r"^nested=True: is for whole units; pattern unstructured cuts single weights",
        ),
    ],
)
def test_ratios_that_cannot_be_had_together(
    options: dict[str, str], ratios: list[Any], nested: bool, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        at_ratios(GRASPConfig(**options), ratios, nested=nested)


def test_a_budget_that_one_of_them_cannot_have_is_refused_before_any_work(
    config: GRASPConfig, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, calls: list[str]
) -> None:
    with pytest.raises(BudgetError, match=r"^keep_ratio=0.02: too small for"):
        GRASPPruner(config).prune_many(model, tokenizer, [0.9, 0.02])
    assert calls == []


def test_single_weights_at_several_ratios(
    corpus_file: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, calls: list[str]
) -> None:
    config = GRASPConfig(
        method="statistical", pattern="unstructured", dataset=str(corpus_file), num_samples=4, seq_len=24
    )
    shares = [
        pruned.record.budget.kept.prunable for pruned in GRASPPruner(config).prune_many(model, tokenizer, [0.5, 0.75])
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.7 and shares[1] < 0.52
    assert calls == ["gather"]
