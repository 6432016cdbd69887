from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from optimum_grasprune import PruningPlan, UnitMask
from optimum_grasprune.errors import ModelError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import Slot, family_of
from optimum_grasprune.surgery import (
    build_pruned_model,
    dense_config,
    feature_indices,
    keep_units,
    pruned_config,
    scale_columns,
)
from tests.conftest import logits_of, make_model
from tests.tiny_models import some_plan, tiny_model

ROWS, COLUMNS = Slot("", 0), Slot("", 1)


def test_features_of_units() -> None:
    assert feature_indices([0, 2], features=6, count=3).tolist() == [0, 1, 4, 5]
    assert feature_indices([1], features=4, count=4).tolist() == [1]
    # Two KV head groups of two query heads of width 2 each: queries, then keys, then values, in one fused projection.
    assert feature_indices([1], 16, 2, (8, 4, 4)).tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
    assert feature_indices([0, 2], 6, 3, (3, 3)).tolist() == [0, 2, 3, 5]


def test_rows_and_columns_by_hand() -> None:
    weight = torch.arange(12).view(3, 4)
    assert keep_units(weight, ROWS, [0, 2], 3).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert keep_units(torch.arange(4), ROWS, [1], 2).tolist() == [2, 3]
    assert keep_units(weight, COLUMNS, [1], 2).tolist() == [[2, 3], [6, 7], [10, 11]]


def test_a_slice_is_a_contiguous_copy() -> None:
    weight = torch.arange(12).view(3, 4)
    for slot, count in ((ROWS, 3), (COLUMNS, 4)):
        everything = keep_units(weight, slot, range(count), count)
        assert torch.equal(everything, weight) and everything.is_contiguous()
        assert everything.data_ptr() != weight.data_ptr()


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
    sliced = inputs @ keep_units(first, ROWS, units, count).T @ keep_units(second.T, COLUMNS, units, count).T
    torch.testing.assert_close(sliced, masked)


@given(st.integers(1, 5), st.booleans(), st.data())
def test_slicing_a_fused_map_equals_masking(count: int, alternating: bool, data: st.DataObject) -> None:
    """Gate and up projection in one matrix: one after the other, or row by row."""
    units = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    generator = torch.Generator().manual_seed(count)
    fused, out = torch.randn(2 * count, 3, generator=generator), torch.randn(3, count, generator=generator)
    inputs, mask = torch.randn(5, 3, generator=generator), torch.zeros(count).index_fill(0, torch.tensor(units), 1.0)
    slot = Slot("", 0) if alternating else Slot("", 0, (count, count))

    def ffn(fused_OI: torch.Tensor, out_OI: torch.Tensor, mask: torch.Tensor | float) -> torch.Tensor:
        x = inputs @ fused_OI.T
        gate, up = (x[:, ::2], x[:, 1::2]) if alternating else x.chunk(2, dim=1)
        return (gate.sigmoid() * up * mask) @ out_OI.T

    sliced = ffn(keep_units(fused, slot, units, count), keep_units(out, COLUMNS, units, count), 1.0)
    torch.testing.assert_close(sliced, ffn(fused, out, mask))


@given(st.integers(2, 4), st.integers(1, 4), st.data())
def test_slicing_stacked_experts_equals_masking(experts: int, channels: int, data: st.DataObject) -> None:
    """Three-dimensional tensors: the same channels of all experts go, or whole experts."""
    generator = torch.Generator().manual_seed(experts)
    up = torch.randn(experts, channels, 3, generator=generator)
    down = torch.randn(experts, 3, channels, generator=generator)
    inputs = torch.randn(5, 3, generator=generator)

    def ffn(up_EOI: torch.Tensor, down_EOI: torch.Tensor, mask_EI: torch.Tensor | float) -> torch.Tensor:
        hidden = torch.einsum("ti,eoi->eto", inputs, up_EOI).relu() * mask_EI
        return torch.einsum("eti,eoi->to", hidden, down_EOI)

    kept = sorted(data.draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    mask = torch.zeros(channels).index_fill(0, torch.tensor(kept), 1.0)
    sliced = ffn(keep_units(up, Slot("", 1), kept, channels), keep_units(down, Slot("", 2), kept, channels), 1.0)
    torch.testing.assert_close(sliced, ffn(up, down, mask))
    kept = sorted(data.draw(st.sets(st.integers(0, experts - 1), min_size=1)))
    mask = torch.zeros(experts).index_fill(0, torch.tensor(kept), 1.0)[:, None, None]
    sliced = ffn(keep_units(up, Slot("", 0), kept, experts), keep_units(down, Slot("", 0), kept, experts), 1.0)
    torch.testing.assert_close(sliced, ffn(up, down, mask))


def random_plan(model: LlamaForCausalLM, scaled: bool) -> PruningPlan:
    inventory = family_of(model.config).inventory(model)
    generator = torch.Generator().manual_seed(3)
    kept = torch.rand(inventory.num_units, generator=generator) < 0.5
    for start, _ in inventory.spans():
        kept[start] = True
    plan = PruningPlan.from_mask(UnitMask(inventory, kept))
    return plan.with_scales(torch.rand(int(kept.sum()), generator=generator) + 0.5) if scaled else plan


def test_multipliers_and_scales_are_folded_one_after_the_other() -> None:
    model = make_model(attention_bias=True, mlp_bias=True)
    family, plan = family_of(model.config), random_plan(model, scaled=True)
    inventory = family.inventory(model)
    kept = torch.zeros(inventory.num_units, dtype=torch.bool)
    scales = torch.zeros(inventory.num_units)
    for group in plan.groups:
        span = inventory.slice_of(group.address)
        kept[span][list(group.kept)] = True
        scales[span][list(group.kept)] = torch.tensor(group.scales)
    multipliers = torch.linspace(-1, 3, inventory.num_units)
    both = PruningPlan.from_mask(UnitMask(inventory, kept, multipliers)).with_scales(scales[kept])
    tokens = torch.arange(40).view(2, 20)
    with WholeModel(model).gated() as gates:
        gates.values_U = multipliers * scales
        expected = logits_of(model, tokens)
    folded = logits_of(build_pruned_model(model, both, family), tokens)
    assert ((folded - expected).norm() / expected.norm()).item() < 1e-5


def test_folded_scales_equal_gates_with_biases_everywhere() -> None:
    model = make_model(attention_bias=True, mlp_bias=True)
    family, plan = family_of(model.config), random_plan(model, scaled=True)
    inventory = family.inventory(model)
    tokens = torch.arange(40).view(2, 20)
    with WholeModel(model).gated() as gates:
        values = torch.zeros(inventory.num_units)
        for group in plan.groups:
            span = inventory.slice_of(group.address)
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
        for linear in family.output_projections(pruned).values():
            for parameter in linear.parameters():
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


def test_a_dense_configuration_that_no_model_has() -> None:
    model = tiny_model("Gemma 3")
    config = pruned_config(model.config, some_plan(model))
    config.head_dim = 15  # of a layer by itself it passes, as a whole it does not
    with pytest.raises(ModelError, match="no model can be built from the configuration of .*even rotary dimension"):
        dense_config(config)
