"""From a dense model and a plan to a smaller dense model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..dispatched import is_dispatched, state_of
from ..errors import CheckpointError, ModelError, first_line
from ..families import Block, Family, family_of
from ..progress import without_library_bars
from ..units import PruningPlan
from .depth import layers_that_stay, shallower_config, shallower_state
from .slicing import parameters_of, slice_block


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


def built_model(
    dense: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    read: Callable[[str], Tensor],
    outputs: Mapping[str, Tensor],
    everywhere: bool,
    let_go: Callable[[Block], None] | None = None,
) -> PreTrainedModel:
    """A new model of the plan's units, with maps out of the blocks that are given.

    Weights that no unit runs through (embeddings, head, norms) are shared with the dense model.
    read: gives the dense model's parameters by name.  outputs: weights and biases of the maps out of its blocks, cut;
    they become the new model's own.  everywhere: whether all these maps have a bias.  let_go: called with each block
    when what stays of it is cut out.
    """
    config = pruned_config(dense.config, plan, output_bias=everywhere)
    state, dispatched = dict(dense.state_dict()), is_dispatched(dense)

    def whole(name: str) -> Tensor:
        tensor = read(name) if state[name].is_meta else state[name]
        return tensor.cpu() if dispatched else tensor  # no device alone need hold what is left of it

    for block in family.blocks(dense):
        weight = f"{block.output}.weight"
        own = slice_block(replace(block, slots=block.slots[:-1]), plan, whole)
        if plan.group(block.address).kept:
            own[weight] = outputs[weight].to(next(iter(own.values())).device)
        for name in parameters_of(block, gone=not own):
            del state[name]
        state.update(own)
        if let_go is not None:
            let_go(block)
    state.update({name: whole(name) for name in state})
    _own_output_biases(state, outputs, family.output_biases(dense), dense, everywhere=everywhere)
    return _materialise(family.pruned.causal_lm, config, state, dense)


def shallower_model(
    model: PreTrainedModel, plan: PruningPlan, family: Family, *, shared: bool = False
) -> PreTrainedModel:
    """A model of the same class with the layers that the plan leaves any unit; it has copies of them, unless shared."""
    kept = layers_that_stay(plan, family.num_layers(model.config))
    config = shallower_config(model.config, kept, family)
    state = shallower_state(state_of(model), kept, family, shared=shared)
    return _materialise(type(model), config, state, model)


def _own_output_biases(
    state: dict[str, Tensor],
    outputs: Mapping[str, Tensor],
    biases: Mapping[str, Tensor | None],
    dense: PreTrainedModel,
    *,
    everywhere: bool,
) -> None:
    device = next(iter(state.values())).device
    for name, bias_O in biases.items():
        if name in outputs:
            state[name] = outputs[name].to(device)
        elif bias_O is not None:  # of a block that was gone before
            state[name] = state[name].clone()
        elif everywhere:
            state[name] = torch.zeros(dense.config.hidden_size, dtype=dense.dtype, device=device)


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
