"""The pruned model in the dense one's place: the same model, and never two of them but where training needs both."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.execution import Taught, WholeModel, distillation, runner
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.methods import Problem
from optimum_grasprune.recovery.diagonals import Diagonals
from optimum_grasprune.selection import Selected, choose
from optimum_grasprune.statistics import TOKEN_WEIGHTS
from tests.conftest import make_model
from tests.contracts.test_methods import problem_of
from tests.selection.test_choose import chain_of, masks
from tests.surgery.test_draft import same, state_of

LAYER = "model.layers.0.mlp.up_proj.weight"


def config_of(corpus_file: Path, **values: Any) -> GRASPConfig:
    few = {"num_samples": 4, "seq_len": 24, "epochs": 1, "held_out": 2, "search_trials": 0, "diagonal_samples": 3}
    return GRASPConfig(**{"keep_ratio": 0.5, "dataset": str(corpus_file), **few, **values})


RECIPES: dict[str, dict[str, Any]] = {
    "refit": {},
    "scales": {"compensation": "both", "least_squares": "robust"},
    "no teacher": {"compensation": "scales"},
    "nothing trained": {"method": "flap"},
    "sequential": {"method": "fasp"},
    "blind": {"held_out": 0},
    "whole layers": {"method": "block_influence"},
    "single weights": {"method": "statistical", "pattern": "2:4", "held_out": 0},
    "lora": {"method": "taylor", "compensation": "none", "recover": "lora", "recover_tokens": 96},
    "distill after all else": {"recover": "distill", "recover_tokens": 96, "recover_epochs": 2},
    "text alone": {"recover": "distill", "recover_tokens": 96, "recover_rehearsal": 0.0, "kl_weight": 0.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_comes_to_the_same_bytes(recipe: str, corpus_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    if RECIPES[recipe].get("recover") == "lora":
        pytest.importorskip("peft")
    apart, instead = pruned_both_ways(config_of(corpus_file, **RECIPES[recipe]), tokenizer)
    assert not apart.get_parameter(LAYER).is_meta
    assert instead.get_parameter(LAYER).is_meta != (recipe == "single weights")


def pruned_both_ways(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast) -> list[PreTrainedModel]:
    """The dense models after both ways, which must come to the same: the pruned one apart, and in its place."""
    models = [make_model(), make_model()]
    pruned = [
        GRASPPruner(config).prune(model, tokenizer, inplace=inplace)
        for model, inplace in zip(models, (False, True), strict=True)
    ]
    assert same(*(state_of(each.model) for each in pruned))
    records = [replace(each.record, recovery=None).to_dict() for each in pruned]  # the recovery's minutes differ
    assert records[0] == records[1]
    return models


@pytest.mark.parametrize("compensation", ["none", "refit"])
def test_a_teacher_that_cannot_be_held_stays_and_says_the_same(
    compensation: str, corpus_file: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"recover": "distill", "recover_tokens": 96, "recover_epochs": 2, "compensation": compensation}
    config = config_of(corpus_file, **recipe)
    held = state_of(GRASPPruner(config).prune_model(make_model(), tokenizer, inplace=True))
    monkeypatch.setattr(distillation, "HELD_BYTES", 96 * 32 * 4 - 1)
    apart, instead = pruned_both_ways(config, tokenizer)
    assert not apart.get_parameter(LAYER).is_meta and not instead.get_parameter(LAYER).is_meta
    live = state_of(GRASPPruner(config).prune_model(make_model(), tokenizer, inplace=True))
    assert same(live, held)
    monkeypatch.setattr(distillation, "HELD_BYTES", 96 * 32 * 4)
    _, instead = pruned_both_ways(config, tokenizer)
    assert instead.get_parameter(LAYER).is_meta


def test_large_maps_are_read_when_they_are_run_and_the_same_comes_out(
    corpus_file: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(corpus_file)
    expected = state_of(GRASPPruner(config).prune_model(make_model(), tokenizer, inplace=True))
    assert not WholeModel(make_model()).drafts_lean
    monkeypatch.setattr(runner, "LEAN_FROM", 0)
    assert WholeModel(make_model()).drafts_lean
    assert same(state_of(GRASPPruner(config).prune_model(make_model(), tokenizer, inplace=True)), expected)


def test_a_replay_takes_the_place_too(corpus_file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pruner = GRASPPruner(config_of(corpus_file))
    expected = state_of(pruner.prune_model(make_model(), tokenizer))
    pruner.save(tmp_path / "pruned")
    model = make_model()
    replayed = pruner.replay(model, tokenizer, *read_plan(tmp_path / "pruned"), inplace=True)
    assert same(state_of(replayed.model), expected) and model.get_parameter(LAYER).is_meta


def outcome_of(losses: list[float], *, inplace: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Selected, Problem]:
    """What is chosen where held-out losses come to these, one after another."""
    problem = problem_of(make_model(), GRASPConfig(method="random", keep_ratio=0.5, diagonal_samples=2))
    problem = replace(problem, declared=(TOKEN_WEIGHTS,), inplace=inplace)
    chain = chain_of(problem, ("least_squares", "diagonals"), least_squares="weighted")
    measured = itertools.chain(losses, itertools.repeat(9.0))
    with monkeypatch.context() as patched:
        patched.setattr(WholeModel, "mean_loss", lambda *_: next(measured))
        return choose({"0": masks(problem)["0"]}, chain, problem), problem


# The candidate as it is, refitted with either damping, and trained on the better of these.
@pytest.mark.parametrize(
    ("losses", "stages", "gone"),
    [
        ([5.0, 4.0, 4.5, 3.0], ("least_squares", "diagonals"), True),
        ([5.0, 4.0, 4.5, 6.0], ("least_squares",), True),
        ([3.0, 4.0, 4.5, 2.0], ("least_squares", "diagonals"), False),
        ([3.0, 4.0, 4.5, 6.0], (), True),
    ],
    ids=["training helps", "it does not", "refitting is for its sake", "neither helps"],
)
def test_the_dense_model_stays_while_it_may_be_needed(
    losses: list[float], stages: tuple[str, ...], gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[bool] = []
    train = Diagonals.train

    def watched(self: Diagonals, reference: Any, pruned: PreTrainedModel, plan: Any) -> Any:
        there.append(not reference.model.get_parameter(LAYER).is_meta)
        return train(self, reference, pruned, plan)

    monkeypatch.setattr(Diagonals, "train", watched)
    (apart, _), (outcome, problem) = (outcome_of(losses, inplace=it, monkeypatch=monkeypatch) for it in (False, True))
    assert outcome.stages == apart.stages == stages and outcome.judgements == apart.judgements
    assert same(state_of(outcome.model), state_of(apart.model))
    # By then the dense model is there only where what comes out may yet be another candidate.
    assert there == [True, losses[0] < losses[1]]
    assert problem.model.get_parameter(LAYER).is_meta == gone


def test_what_was_not_asked_while_the_dense_model_was_there_is_an_error() -> None:
    tokens_NS = torch.arange(2, 42).view(2, 20)
    model = make_model()
    taught = Taught(WholeModel(model), [tokens_NS])
    hidden_NSD: Tensor = taught.teacher(tokens_NS.clone()).logits(torch.tensor([1]))
    torch.testing.assert_close(hidden_NSD, model(tokens_NS[1:]).logits.detach())
    for options in ({}, {"live": True}):
        with pytest.raises(ValueError, match="not asked"):
            taught.teacher(tokens_NS if options else tokens_NS[:1], **options)
