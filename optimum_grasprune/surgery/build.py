"""From a dense model and a plan to a smaller dense model."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..dispatched import state_of
from ..errors import CheckpointError, ModelError, first_line
from ..families import Family, family_of
from ..progress import without_library_bars
from ..units import PruningPlan
from .depth import layers_that_stay, shallower_config, shallower_state


def pruned_config(config: PreTrainedConfig, plan: PruningPlan, *, output_bias: bool = False) -> Any:
    """The configuration of the pruned model: the dense one, with `per_layer_config` holding each layer's widths.

    output_bias: whether all output projections get a bias. Those of a model that is already pruned stay either way.
    """
    family = family_of(config)
    classes = family.pruned
    widths = {group.address: len(group.kept) for group in plan.groups}
    values = config.to_dict()
    for key in ("model_type", "per_layer_config", "architectures", "auto_map", "transformers_version"):
        values.pop(key, None)
    pruned = classes.config(
        **{
            **values,
            "architectures": [classes.causal_lm.__name__],
            **family.pruned_values(config, widths),
            "output_bias": output_bias or getattr(config, "output_bias", False),
        }
    )
    pruned._attn_implementation = config._attn_implementation
    return pruned


def dense_config(config: PreTrainedConfig) -> Any:
    """The configuration that a pruned one was cut from, as far as shapes go; None for one that is not pruned.

    Raises ModelError where there is no such model.
    """
    if not getattr(config, "is_heterogeneous", False):
        return None
    values = config.to_dict()
    values.pop("per_layer_config")
    try:
        return type(config).from_dict({**values, "output_bias": False})
    except Exception as error:  # what each layer may be by itself, a whole model of them need not be
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"no model can be built from the configuration of {config.name_or_path}: {what}") from None


def shallower_model(
    model: PreTrainedModel, plan: PruningPlan, family: Family, *, shared: bool = False
) -> PreTrainedModel:
    """A model of the same class with the layers that the plan leaves any unit; it has copies of them, unless shared."""
    kept = layers_that_stay(plan, family.num_layers(model.config))
    config = shallower_config(model.config, kept, family)
    state = shallower_state(state_of(model), kept, family, shared=shared)
    return materialised(type(model), config, state, model)


@without_library_bars()
def materialised(
    causal_class: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, Tensor], like: PreTrainedModel
) -> PreTrainedModel:
    """The model of a configuration with these tensors, which become its own; all else is as of another model.

    Raises CheckpointError when they do not fit.
    """
    loaded: Any = causal_class.from_pretrained(
        None, config=config, state_dict=state, dtype=like.dtype, output_loading_info=True
    )
    pruned, info = loaded
    problems = {name: keys for name, keys in info.items() if keys}
    if problems:
        raise CheckpointError(f"the pruned tensors do not fit the pruned configuration: {problems}")
    pruned.generation_config = copy.deepcopy(like.generation_config)
    pruned.config.name_or_path = pruned.name_or_path = like.config.name_or_path
    return pruned.to(next(iter(state.values())).device).train(like.training)
