from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_grasprune import PruningPlan, UnitMask
from optimum_grasprune.errors import ModelError
from optimum_grasprune.families import family_of
from optimum_grasprune.families.shape import LayerShape, ModelShape, model_shape, splits, tensor_parallel_sizes
from optimum_grasprune.loading import count_parameters, empty_model
from optimum_grasprune.serving.fit import (
    BATCHED_TOKENS,
    RUNTIME_BYTES,
    SCORED_SEQUENCES,
    Fit,
    activation_bytes,
    cache_blocks,
    fit,
    kv_bytes_per_token,
    parameters_per_gpu,
)
from optimum_grasprune.serving.inspection import inspection
from optimum_grasprune.surgery import dense_config, pruned_config
from optimum_grasprune.units import FFN, KV, Address
from tests.tiny_models import some_plan, tiny_model

GIB = 2**30
LLAMA_2_7B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    vocab_size=32000,
    tie_word_embeddings=False,
)


def shape_with(kv_heads: list[int], queries_per_kv: int = 1, channels: int = 64, head_dim: int = 64) -> ModelShape:
    """Round prices: a query head 10, a KV head 20, a channel 3, 1000 in the vocabulary, 7 on every GPU."""
    layers = tuple(LayerShape(heads * queries_per_kv, heads, channels) for heads in kv_heads)
    return ModelShape(layers, 100, 50, head_dim, 10, 20, 3, 600, 400, False, 7)


def shape_of(config: LlamaConfig) -> ModelShape:
    return model_shape(empty_model(config), family_of(config))


def test_kv_cache_tokens_are_those_that_vllm_reports() -> None:
    # Measured on vLLM 0.32: 8 layers, 8 KV heads of 64 elements, bf16, blocks of 128 tokens, one GiB.
    dense, pruned = shape_with([8] * 8), shape_with([8, 2, 4, 3, 6, 5, 1, 7])
    assert (kv_bytes_per_token(dense, 2), kv_bytes_per_token(pruned, 2)) == (16384, 9216)
    assert 128 * cache_blocks(GIB, 16384, 128) == 65_536
    assert 128 * cache_blocks(GIB, 9216, 128) == 116_480 == 512 * 64 // 36 * 128


def test_no_memory_no_blocks() -> None:
    assert cache_blocks(-5, 10) == 0


def test_kv_heads_are_copied_where_there_are_fewer_than_gpus() -> None:
    shape = shape_with([8, 4, 2, 1], queries_per_kv=8)
    assert kv_bytes_per_token(shape, 1, 1) == 2 * 15 * 64
    assert kv_bytes_per_token(shape, 1, 4) == 2 * (2 + 1 + 1 + 1) * 64


def test_parameters_of_each_gpu() -> None:
    shape = shape_with([4, 1], queries_per_kv=2)
    # Layer 0: 8 query heads and 4 KV heads; layer 1: 2 and 1; 64 channels each.
    assert shape.parameters == 7 + 1000 + (80 + 80 + 192) + (20 + 20 + 192)
    assert parameters_per_gpu(shape, 2) == 7 + 500 + (40 + 40 + 96) + (10 + 20 + 96)


def test_activations_of_the_largest_step() -> None:
    shape = shape_with([1, 1], channels=64)
    per_token = (3 * 64 + 4 * 100) * 2
    assert activation_bytes(shape, 2) == BATCHED_TOKENS * per_token + SCORED_SEQUENCES * 50 * 4
    assert activation_bytes(shape, 2, 2) == BATCHED_TOKENS * (96 + 400) * 2 + SCORED_SEQUENCES * 50 * 4


def test_sequences_take_whole_blocks() -> None:
    # 1000 bytes for the cache, 2 a token: 31 blocks of 16. A sequence of 33 tokens takes 3 of them.
    held = Fit(granted=1500, weights=300, overhead=200, kv_bytes_per_token=2, block_tokens=16, context=33)
    assert (held.kv_memory, held.kv_tokens, held.sequences) == (1000, 31 * 16, 10)


def test_a_model_that_does_not_fit_serves_nothing() -> None:
    held = Fit(granted=1500, weights=1600, overhead=200, kv_bytes_per_token=2, block_tokens=16, context=33)
    assert (held.kv_memory, held.kv_tokens, held.sequences) == (-300, 0, 0)


def test_llama_2_7b_on_24_gib() -> None:
    shape = shape_of(LLAMA_2_7B)
    assert shape.parameters == 6_738_415_616  # as published
    assert kv_bytes_per_token(shape, 2) == 512 * 1024
    held = fit(
        shape, gpu_memory=24 * GIB, utilization=0.9, context=4096, weight_bytes=2, kv_element_bytes=2, overhead=GIB
    )
    # 21.6 GiB less 12.55 of weights less 1: 8.05 GiB at half a MiB a token, 4 sequences of 2 GiB.
    assert held.weights == 2 * 6_738_415_616
    assert held.kv_tokens == (held.kv_memory // (512 * 1024 * 16)) * 16 == 16_480
    assert held.sequences == 4


def test_the_allowance_is_used_unless_overhead_is_given() -> None:
    shape = shape_with([1])
    sizes = {"gpu_memory": GIB, "utilization": 1.0, "context": 16, "weight_bytes": 2, "kv_element_bytes": 2}
    assert fit(shape, **sizes).overhead == activation_bytes(shape, 2) + RUNTIME_BYTES  # type: ignore[arg-type]
    assert fit(shape, **sizes, overhead=5).overhead == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("biases", [{}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}])
def test_shape_counts_every_parameter(build_model: Callable[..., LlamaForCausalLM], biases: dict[str, bool]) -> None:
    model = build_model(num_attention_heads=8, num_key_value_heads=2, **biases)
    shape = model_shape(model, family_of(model.config))
    assert shape.parameters == count_parameters(model)
    assert shape.layers == (LayerShape(8, 2, 48),) * 3
    layer = model.model.layers[0]
    queries = layer.self_attn.q_proj
    assert 8 * shape.query_head == sum(p.numel() for p in queries.parameters()) + layer.self_attn.o_proj.weight.numel()


def test_shape_of_a_pruned_model_and_of_what_it_was_cut_from(model: LlamaForCausalLM) -> None:
    inventory = family_of(model.config).inventory(model)
    kept = torch.ones(inventory.num_units, dtype=torch.bool)
    kept[inventory.index(Address(0, KV), 1)] = kept[inventory.index(Address(2, FFN), 40)] = False
    config = pruned_config(model.config, PruningPlan.from_mask(UnitMask(inventory, kept)), output_bias=True)
    assert shape_of(config).layers == (LayerShape(2, 1, 48), LayerShape(4, 2, 48), LayerShape(4, 2, 47))
    assert shape_of(config).parameters == count_parameters(empty_model(config))
    assert shape_of(dense_config(config)) == shape_of(model.config)
    assert dense_config(model.config) is None


def test_positions_and_projections_of_embeddings_are_no_norms() -> None:
    config = tiny_model("OPT", "as-350m").config  # 258 tokens of 16 elements, 32 in the layers; positions begin at 2
    shape = model_shape(empty_model(config), family_of(config))
    assert (shape.positions, shape.projections) == (130 * 32, 2 * 16 * 32)
    norms_and_biases = 3 * (2 * 2 * 32 + 2 * 32)  # no norm behind the last layer
    found = inspection("opt", config).other_parameters
    assert found == {
        "embedding": 258 * 16,
        "positions": 130 * 32,
        "projections_of_embeddings": 2 * 16 * 32,
        "norms_and_biases": norms_and_biases,
    }


def test_a_model_without_attention_is_refused(model: LlamaForCausalLM) -> None:
    config = pruned_config(model.config, some_plan(model))
    config.per_layer_config = {
        layer: {"num_attention_heads": 0, "num_key_value_heads": 0, "intermediate_size": 8} for layer in range(3)
    }
    with pytest.raises(ModelError, match="the model has no attention in any layer"):
        inspection("none", config)


def test_sizes_that_split_every_layer() -> None:
    assert tensor_parallel_sizes([LayerShape(32, 32, 11008)]) == [1, 2, 4, 8, 16, 32]
    assert tensor_parallel_sizes([LayerShape(32, 32, 11008), LayerShape(31, 31, 5504)]) == [1]
    # Three KV heads among two ranks: neither divides the other.
    assert tensor_parallel_sizes([LayerShape(12, 3, 48)]) == [1, 3, 6, 12]


widths = st.builds(
    lambda heads, queries, channels: LayerShape(heads * queries, heads, channels),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(1, 64),
)


@given(st.lists(widths, min_size=1, max_size=4))
def test_sizes_are_exactly_those_that_split(layers: list[LayerShape]) -> None:
    sizes = tensor_parallel_sizes(layers)
    assert sizes[0] == 1
    assert sizes == [size for size in range(1, 129) if all(splits(layer, size) for layer in layers)]


@given(st.lists(widths, min_size=1, max_size=4), st.integers(1, 10**9))
def test_more_gpus_never_hold_less(layers: list[LayerShape], memory: int) -> None:
    shape = ModelShape(tuple(layers), 8, 8, 4, 10, 20, 3, 100, 100, True, 7)
    held = [kv_bytes_per_token(shape, 2, size) for size in tensor_parallel_sizes(layers)]
    assert all(before >= after for before, after in itertools.pairwise(held))
    assert all(cache_blocks(memory, token) * 16 * token <= memory for token in held)


def test_sizes_of_enormous_layers_are_found_at_once() -> None:
    assert tensor_parallel_sizes([LayerShape(2**40, 2**40, 2**40)]) == [2**power for power in range(41)]
