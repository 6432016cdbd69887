"""Dropping whole layers: a model of the same class with fewer of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedConfig

from ..families import Family
from ..units import PruningPlan


def layers_that_stay(plan: PruningPlan, layers: int) -> list[int]:
    """Of so many layers, those that the plan leaves any unit; also those that had none before."""
    with_units = {group.layer for group in plan.groups}
    kept = {group.layer for group in plan.groups if group.kept}
    return [layer for layer in range(layers) if layer in kept or layer not in with_units]


def shallower_config(config: PreTrainedConfig, kept: Sequence[int], family: Family) -> PreTrainedConfig:
    """A copy of the configuration for the kept layers, in order: lists with an entry for each layer are cut too."""
    shallower = copy.deepcopy(config)
    own = {}
    if getattr(config, "is_heterogeneous", False):
        own = {int(layer): values for layer, values in config.to_dict()["per_layer_config"].items()}
        shallower.per_layer_config = None
    for name in family.layer_lists:
        if (values := getattr(config, name, None)) is not None:
            setattr(shallower, name, [values[layer] for layer in kept])
    setattr(shallower, family.sizes.layers, len(kept))
    if own:
        shallower.per_layer_config = {place: own[layer] for place, layer in enumerate(kept) if layer in own}
    return shallower


def shallower_state(
    state: Mapping[str, Tensor], kept: Sequence[int], family: Family, *, shared: bool = False
) -> dict[str, Tensor]:
    """The tensors of the kept layers, copies unless shared, under their new numbers; all others are shared."""
    places = {layer: place for place, layer in enumerate(kept)}
    cut, prefix = {}, f"{family.layers}."
    for name, tensor in state.items():
        if not name.startswith(prefix):
            cut[name] = tensor
            continue
        number, _, rest = name.removeprefix(prefix).partition(".")
        if int(number) in places:
            cut[f"{prefix}{places[int(number)]}.{rest}"] = tensor if shared else tensor.clone()
    return cut
