"""What `prune` and `replay` return, and what the pruner keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PrunedModel
from optimum_grasprune.errors import CheckpointError, GraspruneError
from optimum_grasprune.export.checkpoint import read_record
from optimum_grasprune.methods import Problem, Selection
from optimum_grasprune.methods.random import Random


@pytest.fixture
def prune(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus_file: Path) -> Callable[..., PrunedModel]:
    def run(earlier: Selection | None = None, **options: object) -> PrunedModel:
        data = {"dataset": str(corpus_file), "num_samples": 4, "seq_len": 24}
        config = GRASPConfig(**{"method": "random", **data, **options})  # type: ignore[arg-type]
        return GRASPPruner(config).prune(model, tokenizer, earlier=earlier)

    return run


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    other = second.state_dict()
    return all(
        tensor.shape == other[name].shape and torch.equal(tensor, other[name])
        for name, tensor in first.state_dict().items()
    )


@pytest.mark.parametrize("options", [{}, {"method": "statistical", "pattern": "2:4"}])
def test_what_is_saved_is_what_is_returned(
    prune: Callable[..., PrunedModel], options: dict[str, object], tmp_path: Path
) -> None:
    pruned = prune(**options)
    pruned.save(tmp_path / "out")
    assert read_record(tmp_path / "out") == pruned.record
    assert pruned.plan == pruned.record.plan and (pruned.plan is None) == bool(options)
    with pytest.raises(CheckpointError, match="is not empty"):
        pruned.save(tmp_path / "out")
    pruned.save(tmp_path / "out", overwrite=True, max_shard_size="30KB")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1


def test_it_does_not_change_with_the_next_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pruner = GRASPPruner(GRASPConfig(method="random"))
    for access in (lambda: pruner.model, lambda: pruner.plan, lambda: pruner.record, lambda: pruner.save(tmp_path)):
        with pytest.raises(GraspruneError, match="call prune_model first"):
            access()
    first = pruner.prune(model, tokenizer)
    assert (pruner.model, pruner.plan, pruner.record) == (first.model, first.plan, first.record)
    second = pruner.prune_model(model, tokenizer)
    assert second is pruner.model is not first.model and same(second, first.model)
    assert first.plan is not None
    third = pruner.replay(model, None, first.plan)
    assert third.model is pruner.model and same(third.model, first.model)
    assert third.selection is None and first.selection is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.plan = None  # type: ignore[misc]
    with pytest.raises(AttributeError):
        pruner.model = second  # type: ignore[misc]


def test_a_selection_is_not_made_again(prune: Callable[..., PrunedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = prune(keep_ratio=0.6), prune(compensation="scales")
    selection = prune().selection
    assert selection is not None and selection.scores_U is not None and list(selection.candidates) == ["random"]
    scored: list[float] = []
    selected: list[float] = []
    candidates = Random.candidates

    def score(self: Random, problem: Problem) -> torch.Tensor:
        scored.append(problem.config.keep_ratio)
        raise AssertionError

    def counted(self: Random, problem: Problem, scores_U: torch.Tensor) -> object:
        selected.append(problem.config.keep_ratio)
        return candidates(self, problem, scores_U)

    monkeypatch.setattr(Random, "score", score)
    monkeypatch.setattr(Random, "candidates", counted)
    other_budget = prune(selection.scores_alone(), keep_ratio=0.6)
    assert (scored, selected) == ([], [0.6])
    other_compensation = prune(selection, compensation="scales")
    assert (scored, selected) == ([], [0.6])
    for reused, own in zip((other_budget, other_compensation), alone, strict=True):
        assert reused.record == own.record and same(reused.model, own.model)


def test_masks_of_single_weights_are_not_kept(prune: Callable[..., PrunedModel]) -> None:
    assert prune(method="statistical", pattern="unstructured").selection is None
