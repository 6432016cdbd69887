"""Random models of every family in its variants, small enough for a test, whose logits depend on every weight."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optimum_grasprune import PruningPlan, UnitMask
from optimum_grasprune.families import FAMILIES, family_of
from tests.conftest import make_model

_SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_SIZES_OF_OTHERS = ("intermediate_size", "num_key_value_heads", "head_dim", "initializer_range")
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_FULL_TWICE = ["full_attention", "sliding_attention", "full_attention"]
_QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "LLaMA": {},
    "Mistral": {"sliding_window": None},
    "Ministral": {"head_dim": 8, "sliding_window": 8, "layer_types": _MIXED},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Phi-3": {},
    "OPT": {"ffn_dim": 48, "init_std": 0.2},
    "Gemma 3": {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 8, "layer_types": _MIXED},
}
"""What a family's tiny model has beside the sizes that all have."""


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0}
_SCALED = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LLaMA": {
        "gqa": {},
        "mha": {"num_key_value_heads": 4},
        "mqa": {"num_key_value_heads": 1},
        "tied": {"tie_word_embeddings": True},
        "attention-bias": {"attention_bias": True},
        "all-biases": {"attention_bias": True, "mlp_bias": True},
        "wide-heads": {"head_dim": 16},
        "linear-rope": _rope("linear", factor=2.0),
        "dynamic-rope": _rope("dynamic", factor=2.0),
        "llama3-rope": _rope("llama3", **_LLAMA3),
    },
    "Mistral": {
        "gqa": {},
        "mha-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "sliding-wide-heads": {"sliding_window": 8, "head_dim": 16},
    },
    "Ministral": {"mixed": {}, "mha-full": {"num_key_value_heads": 4, "layer_types": ["full_attention"] * 3}},
    "Qwen2": {
        "gqa": {},
        "mha-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "mixed-wide-heads": {**_QWEN_WINDOWS, "head_dim": 16},
    },
    "Qwen3": {
        "gqa": {},
        "mqa-tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "mixed-biases": {**_QWEN_WINDOWS, "attention_bias": True},
    },
    "Phi-3": {
        "gqa": {},
        "mha-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
        "sliding-wide-heads": {"sliding_window": 8, "head_dim": 16},
        "partial-rope": _rope("default", partial_rotary_factor=0.5),
        "longrope": {"original_max_position_embeddings": 24, **_rope("longrope", **_LONG)},
    },
    "Gemma 3": {
        "mixed": {},
        "one-kv-head": {"num_key_value_heads": 1},
        "untied-scaled-rope": {"tie_word_embeddings": False, "rope_parameters": _SCALED, "layer_types": _FULL_TWICE},
        "biases-mha": {"attention_bias": True, "num_key_value_heads": 4},
    },
    "OPT": {
        "biases": {},
        "untied-no-biases": {"enable_bias": False, "tie_word_embeddings": False},
        "as-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        "norms-without-weights": {"layer_norm_elementwise_affine": False},
    },
}
"""Every family in its variants: heads, biases, tied embeddings, positions, windows. The first is the plain one."""
CASES = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]


def tiny_model(family: str, variant: str | None = None, **overrides: Any) -> PreTrainedModel:
    """A random model of a family; by default its plain variant."""
    own = VARIANTS[family][variant] if variant else {}
    if family == "LLaMA":
        return make_model(**{**own, **overrides})
    torch.manual_seed(0)
    config_class = CONFIG_MAPPING[FAMILIES[family].dense_types[0]]
    values = {**_SIZES, **OF_FAMILY[family], **own, **overrides}
    if family == "OPT":  # which knows no such fields
        values = {name: value for name, value in values.items() if name not in _SIZES_OF_OTHERS}
    config = config_class(**values)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # as they are initialised, mistakes would not show
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def some_mask(model: PreTrainedModel, share: float = 0.6, seed: int = 0) -> UnitMask:
    """About this share of the units, drawn; the first of every block is among them."""
    inventory = family_of(model.config).inventory(model)
    kept_U = torch.rand(inventory.num_units, generator=torch.Generator().manual_seed(seed)) < share
    kept_U[[start for start, _ in inventory.spans()]] = True
    return UnitMask(inventory, kept_U)


def some_plan(model: PreTrainedModel, share: float = 0.6, seed: int = 0) -> PruningPlan:
    """The plan that keeps `some_mask`."""
    return PruningPlan.from_mask(some_mask(model, share, seed))
