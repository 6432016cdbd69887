from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, PruningPlan, UnitMask
from optimum_grasprune.evaluation import mean_loss
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.methods import Problem, get_method
from optimum_grasprune.recovery.chain import Chain
from optimum_grasprune.recovery.least_squares import FITS
from optimum_grasprune.recovery.reference import Reference, Settings, Trial
from optimum_grasprune.selection import choose
from optimum_grasprune.statistics import MOMENTS
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, Address
from tests.conftest import TINY_LLAMA
from tests.contracts.test_methods import choices, problem_of


@pytest.fixture
def problem(model: LlamaForCausalLM) -> Problem:
    config = GRASPConfig(method="random", keep_ratio=0.5, scale_samples=2)
    return replace(problem_of(model, config), declared=(MOMENTS,))


def chain_of(problem: Problem, stages: tuple[str, ...], **options: str) -> Chain:
    return Chain.of(stages, get_method("random").resolved(problem.config.model_copy(update=options)))


def masks(problem: Problem) -> dict[str, UnitMask]:
    return {
        str(seed): choices(problem_of(problem.model, problem.config.model_copy(update={"seed": seed})))["random"]
        for seed in range(3)
    }


def test_without_held_out_data_the_last_candidate_wins_with_every_compensation(problem: Problem) -> None:
    blind = replace(problem, held_out_NS=torch.empty(0, 20, dtype=torch.int64))
    candidates = masks(problem)
    outcome = choose(candidates, chain_of(problem, ("least_squares", "scales")), blind)
    assert outcome.plan.group(Address(0, FFN)).kept == tuple(candidates["2"].kept(Address(0, FFN)))
    assert outcome.stages == ("least_squares", "scales") and outcome.settings["damping"] == FITS["robust"].dampings[0]
    assert outcome.judgements == ()


def test_the_outcome_is_the_best_of_all_that_was_measured(problem: Problem) -> None:
    outcome = choose(masks(problem), chain_of(problem, ("least_squares", "scales")), problem)
    losses = [judgement.loss for judgement in outcome.judgements]
    assert len(losses) == 3 + 2 * len(FITS["robust"].dampings) + 1
    assert mean_loss(outcome.model, problem.held_out_NS) == pytest.approx(min(losses), abs=1e-5)
    winner = min(outcome.judgements, key=lambda judgement: judgement.loss)
    assert winner.compensation == (" ".join(outcome.stages) or "none")
    assert ("scales" in outcome.stages) == (outcome.plan.groups[0].scales is not None)


@pytest.mark.parametrize("restoration", ["dense", "sequential"])
def test_the_two_best_candidates_are_refitted(problem: Problem, restoration: str) -> None:
    chain = chain_of(problem, ("least_squares",), restoration=restoration)
    judgements = choose(masks(problem), chain, problem).judgements
    plain = {judgement.candidate: judgement.loss for judgement in judgements if judgement.compensation == "none"}
    best, second, worst = sorted(plain, key=plain.__getitem__)
    assert plain[best] < plain[second] < plain[worst]
    refitted = [judgement for judgement in judgements if judgement.compensation == "least_squares"]
    expected = [(name, damping) for name in (best, second) for damping in FITS["robust"].dampings]
    assert [(judgement.candidate, judgement.settings["damping"]) for judgement in refitted] == expected


WAYS = pytest.mark.parametrize(
    ("stages", "options"),
    [
        (("least_squares",), {"restoration": "dense"}),
        (("least_squares",), {"restoration": "sequential"}),
        (("bias",), {}),
        (("energy",), {}),
    ],
    ids=["dense", "sequential", "bias", "energy"],
)


def refitted_loss(plan: PruningPlan, chain: Chain, problem: Problem, settings: Settings) -> float:
    """The loss of a plan's model, made without a choice."""
    (draft,) = chain.refitted(Reference.of(problem), [Trial(plan, settings)])
    return mean_loss(draft.build(), problem.tokens_NS)


@WAYS
def test_what_wins_comes_with_its_plan(
    problem: Problem, stages: tuple[str, ...], options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = itertools.count(0, -1)
    # What is measured last wins: of three candidates the third, of refitted models the second best.
    for last, chain in (("2", Chain()), ("1", chain_of(problem, stages, **options))):
        with monkeypatch.context() as patched:
            patched.setattr(WholeModel, "mean_loss", lambda *_: float(next(falling)))
            outcome = choose(masks(problem), chain, problem)
        assert outcome.plan == PruningPlan.from_mask(masks(problem)[last]) and outcome.stages == chain.names
        expected = refitted_loss(outcome.plan, chain, problem, outcome.settings)
        assert mean_loss(outcome.model, problem.tokens_NS) == pytest.approx(expected, rel=1e-6)


@WAYS
def test_without_held_out_data_weights_are_refitted_with_the_damping_that_was_asked_for(
    problem: Problem, stages: tuple[str, ...], options: dict[str, str]
) -> None:
    config = problem.config.model_copy(update={"damping": 0.03125})
    asked = replace(problem, held_out_NS=problem.held_out_NS[:0], config=config)
    chain = chain_of(asked, stages, **options)
    outcome = choose({"0": masks(problem)["0"]}, chain, asked)
    assert dict(outcome.settings) == ({"damping": 0.03125} if "least_squares" in stages else {})
    found = mean_loss(outcome.model, problem.tokens_NS)
    assert found == pytest.approx(refitted_loss(outcome.plan, chain, problem, outcome.settings), rel=1e-6)
    assert found != pytest.approx(refitted_loss(outcome.plan, Chain(), problem, {}), rel=1e-3)


@pytest.mark.parametrize("blind", [False, True])
def test_scales_are_trained_on_the_first_calibration_sequences_and_no_others(
    problem: Problem, blind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    learn = WholeModel.learn

    def watched(*given: Any) -> list[Tensor]:
        seen.append(given[2])
        return learn(*given)

    monkeypatch.setattr(WholeModel, "learn", watched)
    held_out_NS = problem.held_out_NS[:0] if blind else problem.held_out_NS
    choose({"0": masks(problem)["0"]}, chain_of(problem, ("scales",)), replace(problem, held_out_NS=held_out_NS))
    (tokens_NS,) = seen
    assert problem.config.scale_samples == 2 < len(problem.tokens_NS)
    assert torch.equal(tokens_NS, problem.tokens_NS[:2])


@pytest.mark.parametrize("step", ["least_squares", "bias", "energy"])
@pytest.mark.parametrize("blind", [False, True])
def test_weights_are_refitted_to_as_many_sequences_as_asked_for(problem: Problem, step: str, blind: bool) -> None:
    def losses(problem: Problem) -> list[float]:
        outcome = choose({"0": masks(problem)["0"]}, chain_of(problem, (step,)), problem)
        return [judgement.loss for judgement in outcome.judgements] or [mean_loss(outcome.model, problem.tokens_NS[:1])]

    everything = replace(problem, held_out_NS=problem.held_out_NS[:0]) if blind else problem
    first = replace(everything, config=problem.config.model_copy(update={"statistic_samples": 1}))
    assert losses(first) == losses(replace(first, tokens_NS=problem.tokens_NS[:1])) != losses(everything)


@pytest.mark.parametrize("restoration", ["dense", "sequential"])
def test_each_compensation_alone(problem: Problem, restoration: str) -> None:
    for stages in ((), ("scales",), ("least_squares",), ("bias",), ("energy",)):
        outcome = choose({"0": masks(problem)["0"]}, chain_of(problem, stages, restoration=restoration), problem)
        assert set(outcome.stages) <= set(stages)
        assert outcome.judgements[0].compensation == "none"


def test_a_real_model_gets_better_by_each_part(tmp_path: Path) -> None:
    from optimum_grasprune.loading import load_model, load_tokenizer

    model, tokenizer = load_model(str(TINY_LLAMA), dtype="float32"), load_tokenizer(str(TINY_LLAMA))
    config = GRASPConfig(
        method="wanda_sp",
        compensation="both",
        keep_ratio=0.6,
        held_out=8,
        num_samples=32,
        seq_len=128,
        dataset="sampled",
    )
    pruner = GRASPPruner(config)
    pruner.prune_model(model, tokenizer)
    lowest = {
        name: min(judgement.loss for judgement in pruner.record.choice if judgement.compensation == name)
        for name in ("none", "least_squares", "least_squares scales")
    }
    assert lowest["none"] > lowest["least_squares"] > lowest["least_squares scales"]


def test_a_short_corpus_holds_nothing_out(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    config = GRASPConfig(num_samples=4, seq_len=24, epochs=1, search_trials=0, held_out=16)
    pruner = GRASPPruner(config)
    pruner.prune_model(model, tokenizer, texts=["Too short to spare a sequence. " * 4])
    assert pruner.record.calibration is not None and pruner.record.calibration.held_out_sequences == 0
    assert pruner.record.choice == ()


@pytest.mark.parametrize("stage", ["scales", "diagonals"])
def test_what_was_learnt_is_folded_and_recorded_with_its_candidate(problem: Problem, stage: str) -> None:
    options = {"scale_learning_rate": 0.1} if stage == "scales" else {"diagonal_learning_rate": 0.03}
    config = GRASPConfig(method="random", compensation=stage, keep_ratio=0.5, **options)
    problem = replace(
        problem_of(problem.model, config), held_out_NS=problem.tokens_NS
    )  # what is trained on gets better
    outcome = choose(masks(problem), chain_of(problem, (stage,)), problem)
    assert outcome.stages == (stage,)
    *bare, last = outcome.judgements
    best = min(bare, key=lambda judgement: judgement.loss)
    assert (last.candidate, last.compensation) == (best.candidate, stage) and last.loss < best.loss
    assert mean_loss(outcome.model, problem.held_out_NS) == pytest.approx(last.loss, rel=1e-5)
    assert outcome.plan is not None and (outcome.plan.groups[0].scales is not None) == (stage == "scales")


def test_training_that_does_not_help_is_left_out(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    for last, stages in ((1.9, ("scales",)), (2.0, ()), (9.0, ())):
        losses = iter([3.0, 2.0, 4.0, last])
        with monkeypatch.context() as patched:
            patched.setattr(WholeModel, "mean_loss", lambda *_, losses=losses: next(losses))
            outcome = choose(masks(problem), chain_of(problem, ("scales",), scale_learning_rate=0.1), problem)
        assert outcome.stages == stages and outcome.judgements[-1].candidate == "1"
        assert outcome.plan is not None and (outcome.plan.groups[0].scales is None) == (not stages)
        plan = outcome.plan if stages else outcome.plan.without_scales()
        found = build_pruned_model(problem.model, plan, problem.family).state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in outcome.model.state_dict().items())


def test_refitted_weights_are_trained_on_even_where_they_lose_by_themselves(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diagonals start from least squares; where the end of it is worse than the best without, that is taken."""
    config = GRASPConfig(method="random", compensation="refit", keep_ratio=0.5, damping=0.1)
    problem = replace(problem_of(problem.model, config), declared=())
    chain = chain_of(problem, ("least_squares", "diagonals"))
    for last, stages in ((0.5, ("least_squares", "diagonals")), (9.0, ())):
        # Three candidates, the two best refitted, and the one that is trained.
        losses = iter([3.0, 2.0, 4.0, 6.0, 5.0, last])
        with monkeypatch.context() as patched:
            patched.setattr(WholeModel, "mean_loss", lambda *_, losses=losses: next(losses))
            outcome = choose(masks(problem), chain, problem)
        assert outcome.stages == stages
        compensations = [judgement.compensation for judgement in outcome.judgements]
        assert compensations == ["none"] * 3 + ["least_squares"] * 2 + ["least_squares diagonals"]
        # The better one of those that were refitted is the second: candidate 0.
        assert outcome.judgements[-1].candidate == "0"
