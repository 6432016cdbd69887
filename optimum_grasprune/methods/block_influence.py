"""Block influence: whole layers that change the residual stream least go.  (ShortGPT, arXiv 2403.03853)

What comes out is the model's own class with fewer layers. The baseline of depth, beside which the others cut width.

Shape suffixes: N sequences, S sequence, T tokens, D hidden, L layers, U units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import BudgetOptions, GRASPConfig
from ..errors import BudgetError, OptionError
from ..execution import Runner
from ..families import Family
from ..loading import count_parameters
from ..numerics import in_fp64
from ..problem import Problem
from ..progress import track
from ..units import Budget, UnitInventory, UnitMask
from .base import Method
from .registry import register

_OF_WIDTHS = tuple(name for name in BudgetOptions.model_fields if name.startswith("min_") or "multiple" in name)


@register("block_influence")
class BlockInfluence(Method):
    """The most influential layers that fit the budget stay, as they are."""

    source = "ShortGPT, arXiv 2403.03853"
    allocations = ("global",)

    def check(self, config: GRASPConfig) -> None:
        """Raise OptionError also for what is of widths, or would make up for a cut of them."""
        super().check(config)
        if config.compensation not in ("auto", "none"):
            raise OptionError("compensation", config.compensation, f"{config.method} supports only none")
        for name in (*_OF_WIDTHS, "tensor_parallel_size"):
            if getattr(config, name) != BudgetOptions.model_fields[name].default:
                raise OptionError(name, getattr(config, name), f"is for widths; {config.method} drops whole layers")

    def budget(
        self, config: GRASPConfig, model: PreTrainedModel, family: Family, inventory: UnitInventory, added: int
    ) -> Budget:
        """See `Method.budget`; the smallest model is the cheapest layer with attention; widths have no minimum.

        Of a `total` budget a layer takes all that goes with it, norms and biases too.
        """
        budget = Budget.unchecked(config, inventory, count_parameters(model), added)
        costs, kv_widths = layer_costs(config, model, family, inventory), kv_widths_of(inventory)
        beside_units = sum(costs.values()) - inventory.total_cost
        budget = replace(budget, cost=budget.cost + beside_units, fixed_cost=budget.fixed_cost - beside_units)
        attending = [layer for layer in inventory.layers if kv_widths[layer]] or inventory.layers
        least = min(costs[layer] for layer in attending)
        _check_room("keep_ratio", config.keep_ratio, least, budget.cost, budget.fixed_cost, sum(costs.values()))
        if budget.kv_width is not None:
            least = min(kv_widths[layer] for layer in attending)
            _check_room("kv_keep_ratio", config.kv_keep_ratio, least, budget.kv_width, 0, inventory.total_kv_width)
        return budget

    def score(self, problem: Problem) -> Tensor:
        """The influence of its layer for every unit, shape (units,)."""
        influence_L = block_influence(problem.runner, problem.statistic_tokens_NS)
        return influence_L[problem.inventory.per_unit([group.layer for group in problem.inventory.groups])]

    def select(self, problem: Problem, scores_U: Tensor) -> UnitMask:
        """The layers to keep: in the order of their influence, whatever still fits.

        Where that would leave no attention, the best layer that has some goes first: see `Budget.cache_may_go`.
        Raises BudgetError where none fits of those that larger budgets of a nested run have left.
        """
        inventory, budget = problem.inventory, problem.budget
        layer_U = inventory.per_unit([group.layer for group in inventory.groups])
        costs = layer_costs(problem.config, problem.model, problem.family, inventory)
        kv_widths = kv_widths_of(inventory)
        influence = {layer: float(scores_U[layer_U == layer][0]) for layer in inventory.layers}
        room = budget.cost, inventory.total_kv_width if budget.kv_width is None else budget.kv_width
        kept_U = torch.zeros(inventory.num_units, dtype=torch.bool, device="cpu")
        layers = [
            layer for layer in inventory.layers if budget.within_U is None or budget.within_U[layer_U == layer].all()
        ]
        best_first = sorted(layers, key=lambda layer: -influence[layer])
        kept = fitting(best_first, costs, kv_widths, *room)
        if inventory.total_kv_width and not any(kv_widths[layer] for layer in kept):
            first = fitting([layer for layer in best_first if kv_widths[layer]], costs, kv_widths, *room)[:1]
            if not first:
                raise BudgetError("keep_ratio", problem.config.keep_ratio, "too small for any layer that is left")
            kept = fitting(dict.fromkeys([*first, *best_first]), costs, kv_widths, *room)
        for layer in kept:
            kept_U[layer_U == layer] = True
        return UnitMask(inventory, kept_U, whole_layers=True)


def layer_costs(
    config: BudgetOptions, model: PreTrainedModel, family: Family, inventory: UnitInventory
) -> dict[int, int]:
    """What each layer with units takes of the budget: all of its parameters if it is a `total` one, else its units'."""
    if config.budget == "total":
        layers = family.decoder_layers(model)
        return {layer: sum(each.numel() for each in layers[layer].parameters()) for layer in inventory.layers}
    costs = dict.fromkeys(inventory.layers, 0)
    for group in inventory.groups:
        costs[group.layer] += group.count * group.cost
    return costs


def kv_widths_of(inventory: UnitInventory) -> dict[int, int]:
    """KV-cache elements per token of each layer with units."""
    kv_widths = dict.fromkeys(inventory.layers, 0)
    for group in inventory.groups:
        kv_widths[group.layer] += group.count * group.kv_width
    return kv_widths


def fitting(
    layers: Iterable[int], costs: Mapping[int, int], kv_widths: Mapping[int, int], cost: int, kv_width: int
) -> list[int]:
    """Of the layers, in this order, those that still fit. costs, kv_widths: of each.  cost, kv_width: the room."""
    kept = []
    for layer in layers:
        if costs[layer] <= cost and kv_widths[layer] <= kv_width:
            kept.append(layer)
            cost, kv_width = cost - costs[layer], kv_width - kv_widths[layer]
    return kept


def influence(before_TD: Tensor, after_TD: Tensor) -> float:
    """1 − the mean cosine of what enters a layer and what leaves it, token by token.  (Equation 1 of the paper)"""
    cosine_T = torch.cosine_similarity(in_fp64(before_TD), in_fp64(after_TD), dim=-1)
    return float(1 - cosine_T.mean())


def block_influence(runner: Runner, tokens_NS: Tensor) -> Tensor:
    """The influence of every layer, shape (layers,), fp32, on the CPU. tokens_NS: shape (N, S), int64."""
    found = []
    with runner.stream(tokens_NS) as stream:
        for index in track(range(len(stream.layers)), "block influence", "layer"):
            before = stream.hidden
            stream.advance(index)
            found.append(influence(torch.cat(before, dim=1)[0], torch.cat(stream.hidden, dim=1)[0]))
    return torch.tensor(found, dtype=torch.float32, device="cpu")


def _check_room(option: str, value: object, least: int, room: int, fixed: int, total: int) -> None:
    if least > room:
        nearest = math.ceil(Fraction(least + fixed, total + fixed) * 10_000) / 10_000
        raise BudgetError(option, value, f"too small for one whole layer; the nearest feasible value is {nearest}")
