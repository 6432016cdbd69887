"""Widths for a model that nothing was calibrated on: a profile over the depth, brought to a budget by `project`.

Shape suffixes: U units of the whole model, in inventory order.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..selection.width_search import mask_of, widths_of
from ..units import FFN, KV, Budget, PruningPlan, UnitInventory, UnitKind, UnitMask, project

Shares = dict[UnitKind, list[float]]
"""For each kind of unit, the share that every layer keeps, first layer first. Only their proportions count."""


def profile(layers: int) -> Shares:
    """Smooth shares like those that trained gates leave: FFNs wide at both ends, KV heads dense in the first half.

    Heads keep more than channels, as they do where both compete under one budget.
    """
    depths = [(layer + 0.5) / layers for layer in range(layers)]
    return {
        FFN: [1 + 0.4 * math.cos(2 * math.pi * depth) for depth in depths],
        KV: [1.3 * (1 + 0.3 * math.sin(2 * math.pi * depth)) for depth in depths],
    }


def shares_of(plan: PruningPlan, layers: int) -> Shares:
    """What a plan keeps of every layer, read at the same relative depths of a model with another number of layers.

    Of a block that was gone before, which the plan does not name, nothing is kept.
    """
    own = (np.arange(plan.num_layers) + 0.5) / plan.num_layers
    wanted = (np.arange(layers) + 0.5) / layers
    shares: Shares = {}
    for kind in (KV, FFN):
        kept = np.zeros(plan.num_layers)
        for group in plan.groups:
            if group.kind == kind:
                kept[group.layer] = len(group.kept) / group.count
        shares[kind] = np.interp(wanted, own, kept).tolist()
    return shares


def chosen_mask(shares: Shares, inventory: UnitInventory, budget: Budget) -> UnitMask:
    """The mask whose widths are the shares, all stretched by one factor until the budget is met.

    A group is filled from its first unit on. `project` decides, so minimum widths, alignment and the KV cap hold.
    """
    return project(_scores(shares, inventory), inventory, budget)


def uniform_mask(mask: UnitMask, budget: Budget) -> UnitMask:
    """The control of a mask: the same budget and the same share of each kind, but all layers alike.

    The inventory has layers of equal shapes. What dividing KV heads evenly leaves over goes to the FFNs, and what is
    left then would not have given every layer one more unit, or one more multiple of its alignment.
    """
    inventory = mask.inventory
    layers = 1 + max(group.layer for group in inventory.groups)
    stacked = UnitInventory(
        tuple(
            replace(group, cost=group.cost * layers, kv_width=group.kv_width * layers)
            for group in inventory.groups
            if group.layer == 0
        )
    )
    shares: Shares = {kind: [mask.share(kind)] for kind in inventory.kinds}
    widths = widths_of(chosen_mask(shares, stacked, budget))
    return mask_of(widths * layers, -inventory.place_U.float(), inventory)


def _scores(shares: Shares, inventory: UnitInventory) -> Tensor:
    """Minus the place of a unit in its group, as a fraction of the group's share; shape (units,), fp32."""
    counts_U = inventory.per_unit([group.count for group in inventory.groups])
    share_U = torch.cat([torch.full((group.count,), shares[group.kind][group.layer]) for group in inventory.groups])
    return -((inventory.place_U + 0.5) / counts_U) / share_U
