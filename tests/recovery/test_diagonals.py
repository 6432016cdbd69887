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
from optimum_grasprune.recovery.features import features_in_all, places_in_dense, sizes_of
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


def test_places_by_hand(model: LlamaForCausalLM) -> None:
    """First layer: FFN channels 0, 1, 5 and KV head group 1, which is two query heads and a KV head of 8 features."""
    runner = WholeModel(model)
    everything = PruningPlan.from_mask(UnitMask(runner.inventory, torch.ones(runner.inventory.num_units).bool()))
    kept = {Address(0, FFN): (0, 1, 5), Address(0, KV): (1,)}
    groups = tuple(replace(group, kept=kept.get(group.address, group.kept)) for group in everything.groups)
    plan = replace(everything, groups=groups)
    maps = linears(model, runner.blocks)
    places = iter(
        places_in_dense(maps, runner, plan).split(
            sizes_of(linears(build_pruned_model(model, plan, runner.family), runner.blocks))
        )
    )
    found, before = {}, 0
    for path, linear in maps.items():
        for axis, features in (("columns", linear.in_features), ("rows", linear.out_features)):
            found[f"{path}.{axis}"] = (next(places) - before).tolist(), features
            before += features
    assert before == features_in_all(maps, runner)
    cut = {
        "mlp.gate_proj.rows": [0, 1, 5],
        "mlp.up_proj.rows": [0, 1, 5],
        "mlp.down_proj.columns": [0, 1, 5],
        "self_attn.q_proj.rows": list(range(16, 32)),
        "self_attn.k_proj.rows": list(range(8, 16)),
        "self_attn.v_proj.rows": list(range(8, 16)),
        "self_attn.o_proj.columns": list(range(16, 32)),
    }
    for name, (kept_features, features) in found.items():
        expected = cut.get(name.removeprefix("model.layers.0.")) if "layers.0" in name else None
        assert kept_features == (list(range(features)) if expected is None else expected), name


@pytest.mark.parametrize(("family", "variant"), [("Phi-3", "gqa"), ("OPT", "biases"), ("LLaMA", "all-biases")])
def test_multiplying_the_dense_maps_and_then_cutting_is_cutting_and_then_multiplying(family: str, variant: str) -> None:
    model = tiny_model(family, variant)
    runner, plan = WholeModel(model), some_plan(model)
    pruned = build_pruned_model(model, plan, runner.family)
    trained = DiagonalMultipliers(linears(pruned, runner.beside(pruned).blocks))
    whole = DiagonalMultipliers(linears(model, runner.blocks))
    whole_D = torch.randn(sum(sizes_of(whole.maps)), generator=torch.Generator().manual_seed(0))
    raw_D = whole_D[places_in_dense(trained.maps, runner, plan)]
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
