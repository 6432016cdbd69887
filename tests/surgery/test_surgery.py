from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from optimum_grasprune import PruningPlan, UnitMask
from optimum_grasprune.families import family_of
from optimum_grasprune.gating import gated
from optimum_grasprune.surgery import build_pruned_model, feature_indices, keep_columns, keep_rows, scale_columns
from optimum_grasprune.units import KINDS
from tests.conftest import logits_of, make_model


def test_features_of_units() -> None:
    assert feature_indices([0, 2], features=6, count=3).tolist() == [0, 1, 4, 5]
    assert feature_indices([1], features=4, count=4).tolist() == [1]


def test_rows_and_columns_by_hand() -> None:
    weight = torch.arange(12).view(3, 4)
    assert keep_rows(weight, [0, 2], 3).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert keep_rows(torch.arange(4), [1], 2).tolist() == [2, 3]
    assert keep_columns(weight, [1], 2).tolist() == [[2, 3], [6, 7], [10, 11]]


def test_scales_multiply_the_columns_of_their_unit() -> None:
    weight = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert scale_columns(weight, torch.tensor([2.0, 0.5])).tolist() == [[2, 4, 1.5, 2], [10, 12, 3.5, 4]]


def test_scales_are_multiplied_in_fp32_and_rounded_once() -> None:
    weight = torch.tensor([[1.0 + 2**-7]], dtype=torch.bfloat16)
    # The scale has no bf16 of its own: rounded to 1 first, it would change nothing.
    scaled = scale_columns(weight, torch.tensor([1.0 + 2**-8]))
    assert scaled.dtype == torch.bfloat16 and scaled.tolist() == [[1.0 + 2**-6]]


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_slicing_equals_masking(count: int, width: int, data: st.DataObject) -> None:
    units = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    generator = torch.Generator().manual_seed(count * 10 + width)
    first, second = (torch.randn(count * width, 3, generator=generator) for _ in range(2))
    inputs = torch.randn(5, 3, generator=generator)
    mask = torch.zeros(count * width).index_fill(0, feature_indices(units, count * width, count), 1.0)
    masked = (inputs @ first.T * mask) @ second
    sliced = inputs @ keep_rows(first, units, count).T @ keep_columns(second.T, units, count).T
    torch.testing.assert_close(sliced, masked)


def random_plan(model: LlamaForCausalLM, scaled: bool) -> PruningPlan:
    inventory = family_of(model.config).inventory(model)
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(inventory.num_units, generator=generator) < 0.5
    for start, _ in inventory.spans():
        kept[start] = True
    plan = PruningPlan.from_mask(UnitMask(inventory, kept))
    return plan.with_scales(torch.rand(int(kept.sum()), generator=generator) + 0.5) if scaled else plan


def test_folded_scales_equal_gates_with_biases_everywhere() -> None:
    model = make_model(attention_bias=True, mlp_bias=True)
    family, plan = family_of(model.config), random_plan(model, scaled=True)
    inventory = family.inventory(model)
    tokens = torch.arange(40).view(2, 20)
    with gated(model, family, inventory) as gates:
        values = torch.zeros(inventory.num_units)
        for group in plan.groups:
            span = inventory.slice_of(group.layer, group.kind)
            values[span][list(group.kept)] = torch.tensor(group.scales)
        gates.values_U = values
        expected = logits_of(model, tokens)
    folded = logits_of(build_pruned_model(model, plan, family), tokens)
    assert ((folded - expected).norm() / expected.norm()).item() < 1e-5


def test_building_leaves_the_dense_model_alone_and_shares_what_is_not_cut(model: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = build_pruned_model(model, random_plan(model, scaled=True), family_of(model.config))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert pruned.get_input_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_pruned_model_generates_as_the_dense_one_with_settings_of_its_own(model: LlamaForCausalLM) -> None:
    model.generation_config.eos_token_id = [1, 7]
    model.generation_config.max_new_tokens = 5
    pruned = build_pruned_model(model, random_plan(model, scaled=False), family_of(model.config))
    assert pruned.generation_config.to_dict() == model.generation_config.to_dict()
    pruned.generation_config.eos_token_id.append(0)
    assert model.generation_config.eos_token_id == [1, 7]


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_output_projections_are_never_shared(overrides: dict[str, bool], output_bias: bool) -> None:
    model = make_model(**overrides)
    family = family_of(model.config)
    inventory = family.inventory(model)
    everything = UnitMask(inventory, torch.ones(inventory.num_units, dtype=torch.bool))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = build_pruned_model(model, PruningPlan.from_mask(everything), family, output_bias=output_bias)
    with torch.no_grad():
        for layer in family.decoder_layers(pruned):
            for kind in KINDS:
                for parameter in family.coupling(layer, kind).output.parameters():
                    parameter += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_new_output_biases_have_the_dtype_of_their_weights() -> None:
    model = make_model().to(torch.bfloat16)
    pruned = build_pruned_model(model, random_plan(model, scaled=True), family_of(model.config), output_bias=True)
    assert {tensor.dtype for tensor in pruned.state_dict().values()} == {torch.bfloat16}


def test_pruning_a_pruned_model_again(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    once = build_pruned_model(model, random_plan(model, scaled=False), family)
    twice = build_pruned_model(once, random_plan(once, scaled=False), family)  # type: ignore[arg-type]
    assert family.inventory(twice).total_cost < family.inventory(once).total_cost
    assert logits_of(twice, torch.arange(10)[None]).isfinite().all()
