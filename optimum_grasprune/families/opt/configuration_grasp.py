"""Configurations of pruned models: transformers' own `per_layer_config` over a dense configuration.

This file and `modeling_grasp.py` travel inside every checkpoint, so that it loads with `trust_remote_code=True` where
optimum-grasprune is not installed: `save_pretrained` writes them, whoever calls it. They import nothing but
transformers and each other.
"""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import OPTConfig


@strict
class GRASPOPTConfig(OPTConfig):
    """An OPT whose layers differ in width.

    The plain fields hold the dense model's values; `per_layer_config` holds, for each layer that differs from them,
    `ffn_dim` and `num_attention_heads`.

    head_dim: elements of a head, which a layer cannot tell from its own number of heads; never None in a checkpoint.
    output_bias: whether `out_proj` and `fc2` of every layer have a bias, whatever `enable_bias` says, which puts one on
    the projections that lead in as well.
    """

    head_dim: int | None = None
    output_bias: bool = False

    model_type = "grasp_opt"
    _widths = frozenset({"ffn_dim", "num_attention_heads"})

    def __getattribute__(self, key: str) -> Any:
        """Return the dense model's widths without a warning each time that a model is loaded, copied or served."""
        return object.__getattribute__(self, key) if key in GRASPOPTConfig._widths else super().__getattribute__(key)

    def __post_init__(self, **kwargs: Any) -> None:
        """Keep the dense widths among the public keys: serving engines read them before they look at single layers."""
        super().__post_init__(**kwargs)
        self.allow_global_per_layer_attribute_access = True

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, with an `auto_map` that names every class of the code files, which go beside it.

        transformers alone would name the classes of what it has just saved, and leave the others as they were read.
        """
        # In here, because that file imports this one. transformers reads this line too: it takes both files along.
        from .modeling_grasp import GRASPOPTForCausalLM, GRASPOPTModel

        classes = {
            "AutoConfig": type(self),
            "AutoModel": GRASPOPTModel,
            "AutoModelForCausalLM": GRASPOPTForCausalLM,
        }
        self.auto_map = {auto: f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}" for auto, cls in classes.items()}
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


GRASPOPTConfig.register_for_auto_class()  # whoever saves one, Trainer or PEFT, writes the code files with it
