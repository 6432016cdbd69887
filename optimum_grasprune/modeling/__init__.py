"""The classes that pruned checkpoints load as; importing this registers them with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .configuration_grasp import GRASPLlamaConfig
from .modeling_grasp import GRASPLlamaForCausalLM, GRASPLlamaModel

PRUNED_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]] = {
    "llama": (GRASPLlamaConfig, GRASPLlamaModel, GRASPLlamaForCausalLM),
    "grasp_llama": (GRASPLlamaConfig, GRASPLlamaModel, GRASPLlamaForCausalLM),
}
"""Configuration, base model and causal language model that a dense `model_type` turns into."""

__all__ = [
    "PRUNED_CLASSES",
    "GRASPLlamaConfig",
    "GRASPLlamaForCausalLM",
    "GRASPLlamaModel",
    "register_auto_classes",
]


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` load pruned checkpoints; may be called repeatedly."""
    for config_class, model_class, causal_class in set(PRUNED_CLASSES.values()):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, causal_class, exist_ok=True)


register_auto_classes()
