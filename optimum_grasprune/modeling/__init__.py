"""The classes that pruned checkpoints load as, and their registration with transformers' Auto classes."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from . import configuration_grasp, modeling_grasp
from .configuration_grasp import GRASPLlamaConfig
from .modeling_grasp import GRASPLlamaForCausalLM, GRASPLlamaModel

PRUNED_CLASSES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]] = {
    "llama": (GRASPLlamaConfig, GRASPLlamaModel, GRASPLlamaForCausalLM),
    "grasp_llama": (GRASPLlamaConfig, GRASPLlamaModel, GRASPLlamaForCausalLM),
}
"""Configuration, base model and causal language model that a dense `model_type` turns into."""

CODE_FILES: tuple[Path, ...] = tuple(Path(str(module.__file__)) for module in (configuration_grasp, modeling_grasp))
"""The files that travel inside a checkpoint."""

__all__ = [
    "CODE_FILES",
    "PRUNED_CLASSES",
    "GRASPLlamaConfig",
    "GRASPLlamaForCausalLM",
    "GRASPLlamaModel",
    "auto_map",
    "register_auto_classes",
]


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` load pruned checkpoints; may be called repeatedly."""
    for config_class, model_class, causal_class in set(PRUNED_CLASSES.values()):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, causal_class, exist_ok=True)


def auto_map(config: PreTrainedConfig) -> dict[str, str]:
    """The `auto_map` entry of a pruned checkpoint's config.json, which names the classes in its code files."""
    config_class, model_class, causal_class = PRUNED_CLASSES[config.model_type]
    return {
        auto: f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"
        for auto, cls in (
            ("AutoConfig", config_class),
            ("AutoModel", model_class),
            ("AutoModelForCausalLM", causal_class),
        )
    }
