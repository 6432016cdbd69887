"""From a dense model and a plan to a smaller dense model."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import CheckpointError
from ..families import Family, head_dimension
from ..modeling import PRUNED_CLASSES
from ..plan import PruningPlan
from ..progress import without_library_bars
from .folding import fold_scales
from .slicing import slice_state


def pruned_config(config: PreTrainedConfig, plan: PruningPlan, *, output_bias: bool = False) -> Any:
    """The configuration of the pruned model: the dense one, with `per_layer_config` holding each layer's widths.

    output_bias: whether all output projections get a bias. Those of a model that is already pruned stay either way.
    """
    config_class, _, causal_class = PRUNED_CLASSES[config.model_type]
    values = config.to_dict()
    for key in ("model_type", "per_layer_config", "architectures", "auto_map", "transformers_version"):
        values.pop(key, None)
    pruned = config_class(
        **{
            **values,
            "head_dim": head_dimension(config),
            "architectures": [causal_class.__name__],
            "per_layer_config": _layer_widths(config, plan),
            "output_bias": output_bias or getattr(config, "output_bias", False),
        }
    )
    pruned._attn_implementation = config._attn_implementation
    return pruned


def dense_config(config: PreTrainedConfig) -> Any:
    """The configuration that a pruned one was cut from, as far as shapes go; None for one that is not pruned."""
    if not getattr(config, "is_heterogeneous", False):
        return None
    values = config.to_dict()
    values.pop("per_layer_config")
    return type(config).from_dict({**values, "output_bias": False})


def _layer_widths(config: PreTrainedConfig, plan: PruningPlan) -> dict[int, dict[str, int]]:
    queries_per_kv = config.num_attention_heads // config.num_key_value_heads
    widths: dict[int, dict[str, int]] = {layer: {} for layer in range(plan.num_layers)}
    for group in plan.groups:
        if group.kind == "ffn":
            widths[group.layer]["intermediate_size"] = len(group.kept)
        else:
            widths[group.layer]["num_key_value_heads"] = len(group.kept)
            widths[group.layer]["num_attention_heads"] = len(group.kept) * queries_per_kv
    return widths


def build_pruned_model(
    model: PreTrainedModel, plan: PruningPlan, family: Family, *, output_bias: bool = False
) -> PreTrainedModel:
    """A new model with the plan's units, its scales folded in; the given model stays as it is.

    Weights that no unit runs through (embeddings, head, norms) are shared with the given model; those of output
    projections never are, so that they may be edited in place.
    output_bias: give every output projection that has no bias one of zeros, to be filled by the caller.
    Raises PlanError when the plan was made for other shapes.
    """
    plan.check(family.inventory(model))
    config = pruned_config(model.config, plan, output_bias=output_bias)
    state = slice_state(model.state_dict(), plan, family)
    _own_output_biases(state, plan, family, config.output_bias)
    pruned = _materialise(config, state, model)
    fold_scales(pruned, plan, family)
    return pruned


def _own_output_biases(state: dict[str, Tensor], plan: PruningPlan, family: Family, everywhere: bool) -> None:
    # Slicing has already copied the weights, even of groups that keep all their units.
    for group in plan.groups:
        path = family.output_path(group.layer, group.kind)
        weight_OI, bias_O = state[f"{path}.weight"], state.get(f"{path}.bias")
        if bias_O is not None:
            state[f"{path}.bias"] = bias_O.clone()
        elif everywhere:
            state[f"{path}.bias"] = weight_OI.new_zeros(weight_OI.shape[0])


@without_library_bars()
def _materialise(config: PreTrainedConfig, state: dict[str, Tensor], like: PreTrainedModel) -> PreTrainedModel:
    causal_class = PRUNED_CLASSES[config.model_type][2]
    loaded: Any = causal_class.from_pretrained(
        None, config=config, state_dict=state, dtype=like.dtype, output_loading_info=True
    )
    pruned, info = loaded
    problems = {name: keys for name, keys in info.items() if keys}
    if problems:
        raise CheckpointError(f"the pruned tensors do not fit the pruned configuration: {problems}")
    pruned.generation_config = copy.deepcopy(like.generation_config)
    pruned.config.name_or_path = pruned.name_or_path = like.config.name_or_path
    return pruned.to(like.device).train(like.training)
