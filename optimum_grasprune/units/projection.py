"""The projection of scores onto a budget.  (GRASPrune, arXiv 2604.19398, section 3.2)

It runs where the scores are, in whole numbers alone, and nothing in it waits for that device: it is done at every
training step. A unit becomes a key of 64 bits: the score, by which the highest comes first; below it the place in the
even order, for ties; below that the code of what it costs. One sort puts all units in order, running sums of costs say
how far the budget goes, and what stays is all keys up to a bound.

Shape suffixes: U units of the whole model; S units, sorted; B blocks of units that are kept together; G groups; C codes
of costs; R groups of one kind, W places in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import GraspruneError
from .budget import Budget, attends
from .inventory import UnitInventory
from .masks import UnitMask
from .tables import UnitTables

_FIRST, _LAST = -(2**63), 2**63 - 1
"""Keys before and behind those of all units."""


def project(scores_U: Tensor, inventory: UnitInventory, budget: Budget) -> UnitMask:
    """Highest-scoring units that fit the budget.  (GRASPrune, arXiv 2604.19398, section 3.2)

    scores_U: one score per unit, shape (units,), any real dtype (compared in fp32), on any device; higher is kept
        first. Equal scores are kept evenly over layers and kinds.

    The smallest allowed width of every group is paid for first, and where no KV cache at all would be left the best
    unit that has one; then units are kept in order of score while they fit,
    and when one does not fit any more, cheaper ones behind it still may. So the kept cost is at most the budget, and
    no unit that was cut would still have fitted, except where alignment forbids it. With an alignment of m, units are
    kept in blocks of m: the m best of a group, its next m best, and so on, each with its mean score. Where the budget
    allows some units only, nothing but those stay.
    Raises BudgetError when the smallest widths alone exceed the budget.
    """
    if scores_U.shape != (inventory.num_units,):
        raise GraspruneError(
            f"scores have shape {tuple(scores_U.shape)}, the inventory has {inventory.num_units} units"
        )
    if torch.isnan(scores_U).any():
        address, unit = inventory.locate(int(torch.isnan(scores_U).nonzero()[0]))
        raise GraspruneError(f"the score of {address.kind.label} {unit} of layer {address.layer} is NaN")
    budget.check_feasible(inventory)
    return UnitMask(inventory, kept_units(scores_U, inventory, budget).cpu())


def kept_units(scores_U: Tensor, inventory: UnitInventory, budget: Budget) -> Tensor:
    """The units that `project` keeps, True for those, shape (units,), bool, on the device of the scores.

    Nothing is checked, since asking the device would mean to wait for it. Where a score is NaN the mask is any one.
    """
    scores_U = budget.ranked(scores_U.detach().float())
    tables = inventory.on(scores_U.device)
    key_U = _keys(scores_U, tables)
    if all(step == 1 for step in budget.multiple_of.values()):
        least = [budget.smallest_width(group) for group in inventory.groups]
        kept_U = _filled(key_U, least, inventory, budget)
    else:
        ranked = [_sorted(rows.of_units(key_U, _LAST)) for rows in tables.rows]
        kept_U = key_U <= _bounds(ranked, _aligned_widths(ranked, inventory, budget), tables)
    # What may not stay comes last, so that it only ever took room that nothing else fits into.
    return kept_U if budget.within_U is None else kept_U & budget.within_U.to(kept_U.device)


def _keys(scores_U: Tensor, tables: UnitTables) -> Tensor:
    """The units as numbers, the smaller the sooner they are kept; shape (units,), int64."""
    bits_U = (scores_U + 0.0).view(torch.int32)  # + 0.0 makes -0.0 and 0.0 the same bits
    descending_U = bits_U.bitwise_xor_((bits_U >> 31).bitwise_and_(0x7FFFFFFF)).bitwise_not_()
    return descending_U.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(tables.tie_U)


def _scores(key: Tensor) -> Tensor:
    """The scores that keys were made of, fp32."""
    bits = (key >> 32).to(torch.int32).bitwise_not_()
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).view(torch.float32)


def _sorted(key: Tensor) -> Tensor:
    """The keys in ascending order, along the last axis. On the CPU NumPy's sort is three times faster than torch's."""
    if key.device.type == "cpu":
        return torch.from_numpy(np.sort(key.numpy()))
    return key.sort().values


def _filled(key_U: Tensor, least: Sequence[int], inventory: UnitInventory, budget: Budget) -> Tensor:
    """What stays: the best of each group, then whatever else fits; shape (units,), bool.

    least: how many of each group are paid for first.
    """
    tables = inventory.on(key_U.device)
    groups = list(zip(least, inventory.groups, strict=True))
    takes, left = [tables.cost_C], [budget.cost - sum(width * group.cost for width, group in groups)]
    if budget.kv_width is not None:
        takes.append(tables.kv_width_C)
        left.append(budget.kv_width - sum(width * group.kv_width for width, group in groups))
    if any(least):
        # The best one of each group is found without sorting them.
        depth = max(least)
        rows = [each.of_units(key_U, _LAST) for each in tables.rows]
        ranked = [key_RW.amin(1, keepdim=True) if depth == 1 else _sorted(key_RW) for key_RW in rows]
        key_U = _paid(key_U, key_U <= _bounds(ranked, tables.per_group(tuple(least)), tables), tables)
    left_1 = [key_U.new_full((1,), amount) for amount in left]
    key_S = _sorted(key_U)
    kept_U = _up_to_limits(key_U, key_S, takes, left_1, tables)
    if attends(least, inventory):
        return kept_U
    cached_U = tables.kv_width_C[key_U & tables.free] > 0
    best_1 = key_U.masked_fill(~cached_U, _LAST).amin(0, keepdim=True)
    left_1 = [amount_1 - taken_C[best_1 & tables.free] for taken_C, amount_1 in zip(takes, left_1, strict=True)]
    key_U, key_S = (_paid(key, key == best_1, tables) for key in (key_U, key_S))
    return torch.where((kept_U & cached_U).any(), kept_U, _up_to_limits(key_U, key_S, takes, left_1, tables))


def _paid(key_U: Tensor, chosen_U: Tensor, tables: UnitTables) -> Tensor:
    """The keys, with those of the chosen units marked as costing nothing more, at their places in the order."""
    return torch.where(chosen_U, key_U | tables.free, key_U)


def _bounds(ranked: Sequence[Tensor], width_G: Tensor, tables: UnitTables) -> Tensor:
    """For each unit the key of the last one that is among the best of its group, shape (units,).

    ranked: of each kind, keys of its groups in rows, ascending.  width_G: how many are the best, shape (groups,).
    """
    last = [
        key_RW.gather(1, (width_G[rows.groups_R, None] - 1).clamp_(0, key_RW.shape[1] - 1))
        for key_RW, rows in zip(ranked, tables.rows, strict=True)
    ]
    return torch.cat(last)[tables.row_G, 0].masked_fill_(width_G == 0, _FIRST)[tables.group_U]


def _up_to_limits(
    key_U: Tensor, key_S: Tensor, takes: Sequence[Tensor], left_1: Sequence[Tensor], tables: UnitTables
) -> Tensor:
    """Whatever fits, in order, shape (units,), bool.

    key_S: the keys in ascending order.
    takes: of each limit, what a unit of each code takes of it, shape (C,).  left_1: how much there is, shape (1,).

    A round goes on to the first unit that does not fit any more. What takes as much is then out for good, so there are
    as many rounds as there are codes, whatever the scores are. The keys that end a code's time bound it.
    """
    code_S = key_S & tables.free
    taken = [key_S.new_zeros(len(key_S) + 1) for _ in takes]  # by the first 0, 1, 2, … units, in this round
    place_1, end_C = key_S.new_zeros(1), torch.zeros_like(tables.cost_C)
    for _ in range(tables.codes):
        fits_C = torch.stack([each_C <= each_1 for each_C, each_1 in zip(takes, left_1, strict=True)]).all(0)
        reached = []
        for each_C, each_1, taken_S in zip(takes, left_1, taken, strict=True):
            torch.cumsum((each_C * fits_C)[code_S], 0, out=taken_S[1:])
            reached.append(torch.searchsorted(taken_S, taken_S[place_1] + each_1, right=True) - 1)
        reached_1 = torch.cat(reached).amin(0, keepdim=True)
        left_1 = [each_1 - taken_S[reached_1] + taken_S[place_1] for each_1, taken_S in zip(left_1, taken, strict=True)]
        end_C, place_1 = torch.where(fits_C, reached_1, end_C), reached_1
    bound_C = key_S[(end_C - 1).clamp_(min=0)].masked_fill_(end_C == 0, _FIRST)
    bound_C[tables.free] = _LAST
    return key_U <= bound_C[key_U & tables.free]


def _aligned_widths(ranked: Sequence[Tensor], inventory: UnitInventory, budget: Budget) -> Tensor:
    """How many units every group keeps where that is a multiple of something, shape (groups,).

    ranked: as in `_bounds`, all keys.
    """
    steps = tuple(budget.step(group) for group in inventory.groups)
    blocks = inventory.in_blocks(steps)
    tables = blocks.on(ranked[0].device)
    means = []
    for key_RW, rows in zip(ranked, tables.rows, strict=True):
        step, (height, width) = budget.multiple_of.get(rows.kind, 1), rows.units_RW.shape
        means.append(_scores(key_RW[:, : width * step]).reshape(height, width, -1).mean(-1).flatten())
    key_B = _keys(torch.cat(means)[tables.cell_U], tables)
    least = [budget.smallest_width(group) // step for group, step in zip(inventory.groups, steps, strict=True)]
    kept_B = _filled(key_B, least, blocks, budget)
    step_G = tables.per_group(steps)
    return step_G * torch.zeros_like(step_G).index_add_(0, tables.group_U, kept_B.long())
