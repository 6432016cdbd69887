"""From a dense model and a plan to a smaller dense model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..dispatched import state_of
from ..errors import CheckpointError, ModelError, first_line
from ..families import Family, family_of, inventory_of
from ..progress import without_library_bars
from ..units import PruningPlan
from .depth import layers_that_stay, shallower_config, shallower_state
from .folding import fold_multipliers, fold_scales
from .slicing import slice_state


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


def build_pruned_model(
    model: PreTrainedModel, plan: PruningPlan, family: Family, *, output_bias: bool = False
) -> PreTrainedModel:
    """A new model with the plan's units, its multipliers and scales folded in; the given model stays as it is.

    Where the plan drops whole layers it is one of the same class with fewer layers, and no biases are added.

    Weights that no unit runs through (embeddings, head, norms) are shared with the given model; those of output
    projections never are, so that they may be edited in place.
    output_bias: give every output projection that has no bias one of zeros, to be filled by the caller.
    Raises PlanError when the plan was made for other shapes.
    """
    blocks = family.blocks(model)
    plan.check(inventory_of(blocks))
    if plan.whole_layers:
        return _build_shallower_model(model, plan, family)
    config = pruned_config(model.config, plan, output_bias=output_bias)
    state = slice_state(state_of(model), plan, blocks)
    _own_output_biases(state, family.output_biases(model), model, everywhere=config.output_bias)
    pruned = _materialise(family.pruned.causal_lm, config, state, model)
    fold_multipliers(pruned, plan, family)
    fold_scales(pruned, plan, family)
    return pruned


def _build_shallower_model(model: PreTrainedModel, plan: PruningPlan, family: Family) -> PreTrainedModel:
    kept = layers_that_stay(plan, family.num_layers(model.config))
    config = shallower_config(model.config, kept, family)
    return _materialise(type(model), config, shallower_state(state_of(model), kept, family), model)


def _own_output_biases(
    state: dict[str, Tensor], biases: Mapping[str, Tensor | None], model: PreTrainedModel, *, everywhere: bool
) -> None:
    # Slicing has already copied the weights, even of blocks that keep all their units.
    for name, bias_O in biases.items():
        if bias_O is not None:
            state[name] = state[name].clone()
        elif everywhere:
            anything = next(iter(state.values()))
            state[name] = anything.new_zeros(model.config.hidden_size, dtype=model.dtype)


@without_library_bars()
def _materialise(
    causal_class: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, Tensor], like: PreTrainedModel
) -> PreTrainedModel:
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
