"""What a model is that no family takes, as far as its configuration tells, so that the refusal can say it."""

from __future__ import annotations

from transformers import PreTrainedConfig

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
_RECURRENT = (
    "mamba_d_state",
    "mamba_n_heads",
    "ssm_state_size",
    "state_size",
    "time_step_rank",
    "attention_hidden_size",
)
_RECURRENT_LAYERS = frozenset({"linear_attention", "mamba", "recurrent", "conv", "hybrid", "hybrid_sliding"})


def kind_of(config: PreTrainedConfig) -> str | None:
    """In words, with an article; None where nothing special is known of it."""
    if others := sorted(set(config.sub_configs) - {"text_config"}):
        return f"a model of more than text ({others[0]})"
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS):
        return "a mixture of experts"
    if getattr(config, "kv_lora_rank", None) is not None:
        return "a model with multi-head latent attention"
    layers = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    if layers & _RECURRENT_LAYERS or any(hasattr(config, name) for name in _RECURRENT):
        return "a model with recurrent layers"
    return None
