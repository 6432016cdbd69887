"""Gates and unbounded multipliers trained together: z = m ⊙ (1 + g)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import Budget, GRASPConfig, GRASPPruner, UnitMask
from optimum_grasprune import replay as replay_module
from optimum_grasprune.calibration_data import calibration_for
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.gates import Snapshot, gate_snapshots, train, train_gates
from optimum_grasprune.methods.selection import Selection, SelectionCache
from optimum_grasprune.recovery import chain_names
from optimum_grasprune.selection.width_search import WidthLoss
from tests.conftest import logits_of, make_model
from tests.contracts.test_methods import choices, problem_of

TOKENS = torch.randint(258, (4, 20), generator=torch.Generator().manual_seed(0))


def snapshots(model: LlamaForCausalLM, **options: Any) -> list[Snapshot]:
    config = GRASPConfig(**{"keep_ratio": 0.5, "start": "zero", "budget_warmup": 0, "multipliers": "joint", **options})
    runner = WholeModel(model)
    start_U = torch.randn(runner.inventory.num_units, generator=torch.Generator().manual_seed(1))
    return gate_snapshots(runner, Budget.resolve(config, runner.inventory, 0), TOKENS, config, start_U)


def test_the_gradients_of_a_step_by_hand(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    config = GRASPConfig(keep_ratio=0.5, budget_warmup=0, multipliers="joint", temperature=2.0)
    budget = Budget.resolve(config, runner.inventory, 0)
    start_U = torch.randn(runner.inventory.num_units, generator=torch.Generator().manual_seed(1))
    gates = train.Gates(runner.inventory, budget, config, start_U, rate=1e-2)
    scores_U, raw_U = (number.clone().requires_grad_() for number in gates.start())
    assert raw_U.eq(0).all()
    with torch.no_grad():
        raw_U.copy_(torch.linspace(-1.5, 1.5, len(raw_U)))
    values_U = gates.values([scores_U, raw_U], 0.0)
    mask_U = gates.mask.kept_U
    assert torch.equal(values_U != 0, mask_U & (raw_U != -1))
    torch.testing.assert_close(values_U[mask_U], 1 + raw_U[mask_U])  # unbounded: below zero, and above two
    weight_U = torch.linspace(1, 2, len(raw_U))
    by_score_U, by_raw_U = torch.autograd.grad((values_U * weight_U).sum(), [scores_U, raw_U])
    p_U = torch.sigmoid(start_U / 2)
    torch.testing.assert_close(by_score_U, weight_U * (1 + raw_U) * p_U * (1 - p_U) / 2)
    torch.testing.assert_close(by_raw_U, weight_U * mask_U)


def test_with_multipliers_that_stand_still_gates_are_what_they_were(model: LlamaForCausalLM) -> None:
    (joint,) = snapshots(model, snapshots=1, multiplier_learning_rate=1e-9)
    (alone,) = snapshots(model, snapshots=1, multipliers="none")
    torch.testing.assert_close(joint.scores_U, alone.scores_U)
    assert alone.multipliers_U is None and joint.multipliers_U is not None
    torch.testing.assert_close(joint.multipliers_U, torch.ones_like(joint.scores_U))
    (joint,) = snapshots(model, snapshots=1, multiplier_learning_rate=0.1)
    assert joint.multipliers_U is not None and (joint.multipliers_U - 1).abs().max() > 0.1


def test_each_snapshot_has_its_own_multipliers(model: LlamaForCausalLM) -> None:
    first, last = snapshots(model, snapshots=2, epochs=2)
    assert first.multipliers_U is not None and last.multipliers_U is not None
    assert not torch.equal(first.multipliers_U, last.multipliers_U)
    config = GRASPConfig(keep_ratio=0.5, start="zero", budget_warmup=0, multipliers="joint", snapshots=2, epochs=2)
    runner = WholeModel(model)
    start_U = torch.randn(runner.inventory.num_units, generator=torch.Generator().manual_seed(1))
    scores = train_gates(runner, Budget.resolve(config, runner.inventory, 0), TOKENS, config, start_U)
    assert torch.equal(scores[-1], last.scores_U)


@pytest.mark.parametrize("kl_weight", [None, 1.0])
def test_what_they_are_trained_on_falls(model: LlamaForCausalLM, kl_weight: float | None) -> None:
    """The mask stands still, so that multipliers alone have to lower the loss, or bring the dense predictions back."""
    runner = WholeModel(model)
    (trained,) = snapshots(
        model,
        learning_rate=1e-9,
        multiplier_learning_rate=0.02,
        epochs=20,
        batch_size=4,
        snapshots=1,
        kl_weight=kl_weight,
    )
    mask = trained.mask(runner.inventory, Budget(runner.inventory.total_cost // 2))
    dense = logits_of(model, TOKENS)

    def measured(mask: UnitMask) -> float:
        with runner.gated() as gates:
            gates.values_U = mask.gates_U
            logits = logits_of(model, TOKENS)
        if kl_weight is None:
            return float(next_token_loss(logits, TOKENS))
        log_p, log_q = (each[:, :-1].log_softmax(-1) for each in (logits, dense))
        return float((log_q.exp() * (log_q - log_p)).sum(-1).mean())

    assert measured(mask) < measured(UnitMask(mask.inventory, mask.kept_U)) - 0.02


def test_a_search_of_widths_takes_the_multipliers_along(model: LlamaForCausalLM) -> None:
    problem = problem_of(model, GRASPConfig(multipliers="joint", search_trials=12, learning_rate=0.3))
    masks = choices(problem)
    assert masks["start"].multipliers_U is None
    searched, loss = masks["searched"], WidthLoss(problem.runner, problem.tokens_NS)
    assert searched.multipliers_U is not None
    assert loss(searched) <= min(loss(mask) for mask in masks.values())
    assert loss(searched) != loss(UnitMask(searched.inventory, searched.kept_U))


@pytest.fixture
def options(corpus_file: Path) -> dict[str, Any]:
    return {
        "keep_ratio": 0.5,
        "dataset": str(corpus_file),
        "num_samples": 4,
        "seq_len": 24,
        "epochs": 2,
        "learning_rate": 0.2,
        "multipliers": "joint",
        "multiplier_learning_rate": 0.1,
    }


def tensors(model: Any) -> dict[str, Tensor]:
    return dict(model.state_dict())


def same(first: Any, second: Any) -> bool:
    ours, theirs = tensors(first), tensors(second)
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("compensation", chain_names())
def test_a_replay_makes_the_same_model_whatever_made_up_for_the_cut(
    compensation: str, options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pruner = GRASPPruner(GRASPConfig(**options, compensation=compensation, held_out=0, scale_learning_rate=0.1))
    pruned = pruner.prune_model(make_model(), tokenizer)
    pruner.save(tmp_path / "out")
    plan, record = read_plan(tmp_path / "out")
    again = GRASPPruner(GRASPConfig()).replay(make_model(), tokenizer, plan, record)
    assert same(again.model, pruned) and again.plan == pruner.plan == plan
    multiplied = [group.multipliers is not None for group in plan.groups]
    scaled = [group.scales is not None for group in plan.groups]
    replaced = {"least_squares", "reconstruction"} & set(record.compensation)
    assert set(multiplied) == {not replaced}
    assert set(scaled) == {"scales" in record.compensation}
    assert ("has a multiplier" in (tmp_path / "out" / "README.md").read_text()) == plan.multiplied


@pytest.mark.parametrize("compensation", ["none", "scales"])
def test_what_the_plan_holds_is_replayed_without_data(
    compensation: str,
    options: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruner = GRASPPruner(GRASPConfig(**options, compensation=compensation, held_out=0))
    pruned = pruner.prune_model(make_model(), tokenizer)
    pruner.save(tmp_path / "out")
    monkeypatch.setattr(replay_module, "calibration_for", lambda *_: pytest.fail("data"))
    plan, record = read_plan(tmp_path / "out")
    for origin in (record, None):
        assert same(GRASPPruner(GRASPConfig()).replay(make_model(), None, plan, origin).model, pruned)
    unscaled = GRASPPruner(GRASPConfig(compensation="none")).replay(make_model(), None, plan, record)
    assert unscaled.plan == plan.without_scales()


def test_another_compensation_that_replaces_the_weights_replaces_the_multipliers(
    options: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pruner = GRASPPruner(GRASPConfig(**options, compensation="none", held_out=0))
    pruner.prune_model(make_model(), tokenizer)
    assert pruner.plan is not None
    other = GRASPPruner(GRASPConfig(**options, compensation="least_squares"))
    replayed = other.replay(make_model(), tokenizer, pruner.plan)
    bare = other.replay(make_model(), tokenizer, pruner.plan.without_multipliers())
    assert replayed.plan == pruner.plan.without_multipliers() and same(replayed.model, bare.model)


def test_candidates_are_judged_with_their_multipliers(
    options: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    pruner = GRASPPruner(GRASPConfig(**options, compensation="none", held_out=2, snapshots=1, start="zero"))
    pruned = pruner.prune(make_model(), tokenizer)
    assert pruned.selection is not None
    ((name, mask),) = pruned.selection.candidates.items()
    (judgement,) = pruned.record.choice
    assert isinstance(mask, UnitMask) and mask.multipliers_U is not None and judgement.candidate == name
    runner = WholeModel(make_model())
    corpus = calibration_for(make_model(), tokenizer, None, pruner.config)
    assert corpus is not None and len(corpus.held_out_NS)
    with runner.gated() as gates:
        gates.values_U = mask.gates_U
        assert judgement.loss == pytest.approx(runner.mean_loss(corpus.held_out_NS), rel=1e-5)


def test_selections_with_and_without_are_kept_apart(small_inventory: Any) -> None:
    cache, joint = SelectionCache(), GRASPConfig(multipliers="joint")
    kept_U = torch.ones(12, dtype=torch.bool)
    known = Selection(torch.zeros(12), {"gates": UnitMask(small_inventory, kept_U, torch.full((12,), 1.5))})
    cache.keep(joint, known)
    assert cache.for_recipe(joint.model_copy(update={"compensation": "scales"})) is known
    assert cache.for_recipe(GRASPConfig()) is None
