"""Several keep ratios from one run."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PrunedModel, UnitMask, project
from optimum_grasprune.errors import BudgetError, OptionError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.methods.base import Problem
from optimum_grasprune.methods.grasprune import GRASPrune
from optimum_grasprune.ratios import at_ratios
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
    assert calls == ["gather", "gates", *["diagonals"] * 3]
    for ratio, record in zip(run.keep_ratios, records, strict=True):
        assert record.recipe["keep_ratio"] == ratio
        assert record.budget.asked is not None and record.budget.pruned.prunable <= record.budget.asked.cost
        assert ratio - 0.02 < record.budget.kept.prunable <= ratio
        assert record.to_dict()["shared"] == {"keep_ratios": [0.9, 0.75, 0.6], "nested": False}
        assert [judgement.candidate for judgement in record.choice][:2] == ["start", "gates 1/4"]


@pytest.mark.parametrize("method", ["taylor", "fasp", "flap"])
def test_what_trains_no_gates_comes_to_the_same_as_by_itself(
    method: str, config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, calls: list[str]
) -> None:
    config = config.model_copy(update={"method": method})
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


def test_the_same_seed_gives_the_same_bytes_and_a_plan_replays(
    config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
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
        assert one.record.shared is not None and one.record.shared.nested == nested
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
    assert calls == ["gather", "gates", *["diagonals", "distill"] * 2]
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
