"""The global budget.  (GRASPrune, arXiv 2604.19398, section 3.2)

Shape suffix: U units of the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from torch import Tensor

from ..config import BudgetOptions
from ..errors import BudgetError, OptionError
from .inventory import UnitGroup, UnitInventory
from .kinds import UnitKind
from .masks import UnitMask


@dataclass(frozen=True)
class Budget:
    """Limits that a `UnitMask` must meet. All of them are absolute, so that checking needs no further context.

    cost: parameters that the kept units may have in all.
    kv_width: KV-cache elements per token that they may have in all; None for no cap.
    minimum: units that must stay in every group of a kind; where it is 0 groups may go altogether, but not all of those
    that have a KV cache.  multiple_of: every group's width is a multiple of it; both are 1 for a kind not among them.
    options: the request these limits were resolved from, kept for error messages and reports.
    fixed_cost: parameters outside the inventory that count against a `total` budget (0 for `prunable`).
    added_cost: parameters that compensation will add, which count against it too.
    within_U: True for the units that may stay at all, shape (units,), bool, on the CPU; None for all of them.
    """

    cost: int
    kv_width: int | None = None
    minimum: Mapping[UnitKind, int] = field(default_factory=dict)
    multiple_of: Mapping[UnitKind, int] = field(default_factory=dict)
    options: BudgetOptions = field(default_factory=lambda: BudgetOptions())
    fixed_cost: int = 0
    added_cost: int = 0
    within_U: Tensor | None = field(default=None, compare=False, repr=False)

    @classmethod
    def resolve(
        cls, options: BudgetOptions, inventory: UnitInventory, total_parameters: int, added_parameters: int = 0
    ) -> Budget:
        """Absolute limits from ratios; the arguments are those of `unchecked`.

        Raises BudgetError or OptionError when no mask can meet the limits.
        """
        budget = cls.unchecked(options, inventory, total_parameters, added_parameters)
        for group in inventory.groups:
            budget.check_group(group)
        budget.check_feasible(inventory)
        return budget

    @classmethod
    def unchecked(
        cls, options: BudgetOptions, inventory: UnitInventory, total_parameters: int, added_parameters: int = 0
    ) -> Budget:
        """Absolute limits from ratios, whether they can be met or not.

        total_parameters: all parameters of the model, tied ones once.  added_parameters: those that compensation adds.
        """
        of_all = options.budget == "total"
        fixed = total_parameters - inventory.total_cost if of_all else 0
        added = added_parameters if of_all else 0
        ratio = exact_ratio(options.keep_ratio)
        kv_ratio = None if options.kv_keep_ratio is None else exact_ratio(options.kv_keep_ratio)
        return cls(
            cost=math.floor(ratio * (inventory.total_cost + fixed)) - fixed - added,
            kv_width=None if kv_ratio is None else math.floor(kv_ratio * inventory.total_kv_width),
            minimum={kind: _asked(options, kind.minimum_option) for kind in inventory.kinds},
            multiple_of={
                kind: math.lcm(_asked(options, kind.multiple_option), options.tensor_parallel_size)
                for kind in inventory.kinds
            },
            options=options,
            fixed_cost=fixed,
            added_cost=added,
        )

    def share_cut(self, inventory: UnitInventory) -> float:
        """Share of the inventory's parameters, or of its KV cache if that is larger, that has to go."""
        kept = [self.cost / inventory.total_cost]
        if self.kv_width is not None:
            kept.append(self.kv_width / inventory.total_kv_width)
        return max(0.0, 1 - min(kept))

    def within(self, mask: UnitMask) -> Budget:
        """These limits, and nothing but units of a mask that meets them but for its size."""
        return replace(self, within_U=mask.kept_U)

    def ranked(self, scores_U: Tensor) -> Tensor:
        """The scores with all units that may not stay at the end, shape (units,)."""
        if self.within_U is None:
            return scores_U
        return scores_U.masked_fill(~self.within_U.to(scores_U.device), -math.inf)

    def step(self, group: UnitGroup) -> int:
        """Units that the group grows or shrinks by at once."""
        return self.multiple_of.get(group.kind, 1)

    def smallest_width(self, group: UnitGroup) -> int:
        """Fewest units that the group may keep: its minimum, rounded up to the alignment."""
        step = self.step(group)
        return -(-min(self.minimum.get(group.kind, 1), group.count) // step) * step

    def cache_may_go(self, inventory: UnitInventory) -> bool:
        """Whether smallest widths alone would leave no KV cache in the whole model.

        Then the best unit that has one stays all the same: without any attention a model sees one token at a time, and
        no engine serves it.
        """
        return not attends([self.smallest_width(group) for group in inventory.groups], inventory)

    def check_group(self, group: UnitGroup) -> None:
        """Raise OptionError when the group is too narrow for its alignment."""
        if max(self.smallest_width(group), self.step(group)) <= group.count:
            return
        options, kind = self.options, group.kind
        name = kind.multiple_option
        if name is None or (getattr(options, name) <= group.count and options.tensor_parallel_size > 1):
            name = "tensor_parallel_size"
        least, label = max(1, self.minimum.get(kind, 1)), kind.label
        reason = (
            f"no multiple of it lies between the minimum {least} and the {group.count} {label}s of layer {group.layer}"
        )
        raise OptionError(name, getattr(options, name), reason)

    def check_feasible(self, inventory: UnitInventory) -> None:
        """Raise BudgetError when the smallest widths alone exceed a limit; it names the nearest feasible value."""
        least_cost = sum(self.smallest_width(group) * group.cost for group in inventory.groups)
        least_kv = sum(self.smallest_width(group) * group.kv_width for group in inventory.groups)
        if self.cache_may_go(inventory):
            steps = [(self.step(group), group) for group in inventory.groups if group.kv_width]
            least_cost += max(step * group.cost for step, group in steps)
            least_kv += max(step * group.kv_width for step, group in steps)
        if least_cost > self.cost:
            whole = inventory.total_cost + self.fixed_cost
            least = least_cost + self.fixed_cost + self.added_cost
            self._refuse("keep_ratio", self.options.keep_ratio, least, whole)
        if self.kv_width is not None and least_kv > self.kv_width:
            self._refuse("kv_keep_ratio", self.options.kv_keep_ratio, least_kv, inventory.total_kv_width)

    def _refuse(self, option: str, value: object, least: int, whole: int) -> None:
        nearest = math.ceil(Fraction(least, whole) * 10_000) / 10_000
        parts = [f"at least {count} {kind.label}s a layer" for kind, count in self.minimum.items() if count]
        parts += [f"one {kind.label} in the model" for kind, n in self.minimum.items() if kind.cached_vectors and not n]
        parts += [f"{kind.label}s in multiples of {n}" for kind, n in self.multiple_of.items() if n > 1]
        if self.fixed_cost and option == "keep_ratio":
            parts.append(f"{self.fixed_cost:,} parameters that are never pruned")
        if self.added_cost and option == "keep_ratio":
            parts.append(f"{self.added_cost:,} that the compensation adds")
        raise BudgetError(option, value, f"too small for {', '.join(parts)}; the nearest feasible value is {nearest}")


def budget_at(budget: Budget, whole: int, warmup: float, progress: float) -> Budget:
    """The budget in force during training: it shrinks from the whole model to what was asked.

    whole: parameters of all units.  warmup: share of the training after which the full cut is reached.  progress:
    share of the training that is done. The cost falls geometrically, so that early masks are close to the dense model
    and gradients are taken where they still mean something. A cap on the KV cache holds from the start.
    """
    if progress >= warmup or budget.cost >= whole:
        return budget
    return replace(budget, cost=int(whole * (budget.cost / whole) ** (progress / warmup)))


def exact_ratio(ratio: float) -> Fraction:
    """The decimal number that was written: in floating point, 0.29 * 100 is 28.999…, here it is 29."""
    return Fraction(repr(ratio))


def _asked(options: BudgetOptions, name: str | None) -> int:
    return 1 if name is None else getattr(options, name)


def attends(widths: Sequence[int], inventory: UnitInventory) -> bool:
    """Whether any group with a KV cache keeps units, where there are such groups. widths: of each group."""
    cached = [width for width, group in zip(widths, inventory.groups, strict=True) if group.kv_width]
    return any(cached) or not cached
