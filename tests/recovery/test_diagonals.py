from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, PruningPlan, UnitMask
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of, linears
from optimum_grasprune.recovery.diagonals import (
    DiagonalMultipliers,
    Diagonals,
    LearntDiagonals,
    folded,
)
from optimum_grasprune.recovery.features import sizes_of, spread, taken_over
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import logits_of, make_model
from tests.contracts.test_families import VARIANTS
from tests.contracts.test_methods import choices, problem_of
from tests.tiny_models import some_plan, tiny_model

TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))


def test_folding_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert folded(weight, torch.tensor([0.5, 1.0]), torch.tensor([2.0, 1.0])).tolist() == [[1, 4], [1.5, 4]]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_folded_is_what_hooks_compute(options: dict[str, Any]) -> None:
    model = make_model(**options)
    trained = DiagonalMultipliers(linears(model, WholeModel(model).blocks))
    (start_D,) = trained.start()
    raw_D = torch.randn(len(start_D), generator=torch.Generator().manual_seed(0))
    inventory = family_of(model.config).inventory(model)
    plan = PruningPlan.from_mask(choices(problem_of(model, GRASPConfig(method="random", keep_ratio=1.0)))["random"])
    learnt = LearntDiagonals(raw_D, trained, WholeModel(model), plan)
    plain = logits_of(model, TOKENS)
    with learnt.in_force():
        hooked = logits_of(model, TOKENS)
    assert torch.equal(logits_of(model, TOKENS), plain) and not torch.allclose(hooked, plain)
    assert learnt.fold() == plan
    difference = logits_of(model, TOKENS) - hooked
    assert (difference.norm() / hooked.norm()).item() <= 1e-5
    assert family_of(model.config).inventory(model) == inventory


def test_what_was_learnt_is_taken_over_by_unit(model: LlamaForCausalLM) -> None:
    """First layer: FFN channels 0, 1, 5 and KV head group 1 at first; then channels 1, 2, 5, 7 and both groups."""
    runner = WholeModel(model)
    everything = PruningPlan.from_mask(UnitMask(runner.inventory, torch.ones(runner.inventory.num_units).bool()))

    def plan_of(channels: tuple[int, ...], groups: tuple[int, ...]) -> PruningPlan:
        kept = {Address(0, FFN): channels, Address(0, KV): groups}
        parts = (replace(group, kept=kept.get(group.address, group.kept)) for group in everything.groups)
        return replace(everything, groups=tuple(parts))

    def multipliers(plan: PruningPlan) -> DiagonalMultipliers:
        pruned = build_pruned_model(model, plan, runner.family)
        return DiagonalMultipliers(linears(pruned, runner.beside(pruned).blocks))

    before, after = plan_of((0, 1, 5), (1,)), plan_of((1, 2, 5, 7), (0, 1))
    first, second = multipliers(before), multipliers(after)
    raw_D = torch.arange(1.0, 1 + sum(sizes_of(first.maps)))
    numbers = spread(raw_D, first.maps, runner, before)
    taken_D = taken_over(numbers, second.maps, runner, after)
    assert torch.equal(taken_over(numbers, first.maps, runner, before), raw_D)

    def by_map(trained: DiagonalMultipliers, raw_D: torch.Tensor) -> dict[str, tuple[list[float], list[float]]]:
        parts = iter(raw_D.split(sizes_of(trained.maps)))
        return {path: (next(parts).tolist(), next(parts).tolist()) for path in trained.maps}

    old, new = by_map(first, raw_D), by_map(second, taken_D)
    for path, (columns, rows) in new.items():
        if not path.startswith("model.layers.0"):
            assert (columns, rows) == old[path]
    layer = "model.layers.0"
    for path in ("mlp.gate_proj", "mlp.up_proj"):
        columns, (_, one, five) = old[f"{layer}.{path}"]
        assert new[f"{layer}.{path}"] == (columns, [one, 0, five, 0])
    (_, one, five), rows = old[f"{layer}.mlp.down_proj"]
    assert new[f"{layer}.mlp.down_proj"] == ([one, 0, five, 0], rows)
    # A group is two query heads and a key-value head of 8 features each.
    for path, features in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        columns, rows = old[f"{layer}.self_attn.{path}"]
        assert len(rows) == features and new[f"{layer}.self_attn.{path}"] == (columns, [0] * features + rows)
    columns, rows = old[f"{layer}.self_attn.o_proj"]
    assert new[f"{layer}.self_attn.o_proj"] == ([0] * 16 + columns, rows)


@pytest.mark.parametrize(("family", "variant"), [("Phi-3", "gqa"), ("OPT", "biases"), ("LLaMA", "all-biases")])
def test_what_is_spread_comes_back_in_every_layout(family: str, variant: str) -> None:
    model = tiny_model(family, variant)
    runner, plan = WholeModel(model), some_plan(model)
    pruned = build_pruned_model(model, plan, runner.family)
    trained = DiagonalMultipliers(linears(pruned, runner.beside(pruned).blocks))
    raw_D = torch.randn(sum(sizes_of(trained.maps)), generator=torch.Generator().manual_seed(0))
    numbers = spread(raw_D, trained.maps, runner, plan)
    assert torch.equal(taken_over(numbers, trained.maps, runner, plan), raw_D)
    # Multiplying the dense maps and then cutting is cutting and then multiplying.
    whole = DiagonalMultipliers(linears(model, runner.blocks))
    whole_D = torch.cat([numbers[f"{path}.{axis}"] for path in whole.maps for axis in ("columns", "rows")])
    everything = some_plan(model, share=1.1)
    LearntDiagonals(raw_D, trained, runner.beside(pruned), plan).fold()
    LearntDiagonals(whole_D, whole, runner, everything).fold()
    expected = build_pruned_model(model, plan, runner.family).state_dict()
    for name, tensor in pruned.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_at_the_start_nothing_changes(model: LlamaForCausalLM) -> None:
    trained = DiagonalMultipliers(linears(model, WholeModel(model).blocks))
    with trained.attached(WholeModel(model), trained.start()) as step:
        step(0.0)
        hooked = logits_of(model, TOKENS)
    assert torch.equal(hooked, logits_of(model, TOKENS))


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_training_brings_the_pruned_model_closer_and_leaves_the_dense_one(
    model: LlamaForCausalLM, kl_weight: float
) -> None:
    config = GRASPConfig(
        method="random",
        compensation="diagonals",
        keep_ratio=0.6,
        diagonal_epochs=8,
        diagonal_learning_rate=3e-2,
        kl_weight=kl_weight,
    )
    problem = problem_of(model, config)
    plan = PruningPlan.from_mask(choices(problem)["random"])
    pruned = build_pruned_model(model, plan, problem.family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = [problem.runner.beside(pruned).mean_loss(problem.tokens_NS)]
    Diagonals.from_config(config).train(Reference.of(problem), pruned, plan).fold()
    losses.append(problem.runner.beside(pruned).mean_loss(problem.tokens_NS))
    assert losses[1] < losses[0] - 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_the_first_sequences_are_trained_on(model: LlamaForCausalLM) -> None:
    config = GRASPConfig(method="random", compensation="diagonals", keep_ratio=0.6, diagonal_samples=2)
    problem = problem_of(model, config)
    plan = PruningPlan.from_mask(choices(problem)["random"])
    learnt = [
        Diagonals.from_config(config)
        .train(Reference.of(each), build_pruned_model(model, plan, problem.family), plan)
        .raw_D
        for each in (problem, replace(problem, tokens_NS=problem.tokens_NS[:2]))
    ]
    assert torch.equal(*learnt) and learnt[0].any()
