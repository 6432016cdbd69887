from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, UnitMask
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.methods import get_method, grasprune
from optimum_grasprune.methods.gradients import annealed_sensitivity
from optimum_grasprune.methods.grasprune import standardised_log
from optimum_grasprune.selection.width_search import SearchLimits, WidthLoss, widths_of
from optimum_grasprune.statistics import PER_TOKEN
from optimum_grasprune.units import project
from tests.contracts.test_methods import choices, problem_of


def test_standardised_logarithm_by_hand() -> None:
    scores = standardised_log(
        torch.tensor([1.0, 100.0, 10.0, 0.0])
    )  # log10: 0, 2, 1 and, for the zero, the smallest: 0
    expected = torch.tensor([0.0, 2, 1, 0]) - 0.75
    torch.testing.assert_close(scores, expected / expected.std(correction=0))
    assert standardised_log(torch.zeros(3)).tolist() == [0, 0, 0]
    assert standardised_log(torch.ones(3)).tolist() == [0, 0, 0]


def test_candidates_are_start_snapshots_and_searched_widths(model: LlamaForCausalLM) -> None:
    options = {"keep_ratio": 0.5, "epochs": 2, "learning_rate": 0.3, "snapshots": 2}
    searched = problem_of(model, GRASPConfig(**options, search_trials=20))
    masks = choices(searched)
    assert list(masks) == ["start", "gates 1/2", "gates 2/2", "searched"]
    loss = WidthLoss(WholeModel(model), searched.tokens_NS)
    assert loss(masks["searched"]) <= min(loss(mask) for mask in masks.values())
    assert list(choices(problem_of(model, GRASPConfig(**options)))) == ["start", "gates 1/2", "gates 2/2"]
    assert list(choices(problem_of(model, GRASPConfig(**options, start="zero")))) == ["gates 1/2", "gates 2/2"]


def test_the_search_is_told_where_to_start_and_when_to_stop(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def watched(*given: Any) -> UnitMask:
        seen.append(given)
        return search(*given)

    search = grasprune.mask_of_best_widths
    monkeypatch.setattr(grasprune, "mask_of_best_widths", watched)
    options = {"learning_rate": 0.3, "search_trials": 3, "search_samples": 2, "search_seconds": 7200.0, "seed": 5}
    problem = problem_of(model, GRASPConfig(**options))
    masks = choices(problem)
    ((start, _, loss, budget, limits, seed, _),) = seen
    assert (limits, seed, budget) == (SearchLimits(trials=3, seconds=7200.0), 5, problem.budget)
    assert torch.equal(loss.tokens_NS, problem.tokens_NS[:2])
    losses = {widths_of(mask): loss(mask) for name, mask in masks.items() if name != "searched"}
    assert losses[start] == min(losses.values()) < max(losses.values())


def test_the_fisher_start_is_better_than_none(model: LlamaForCausalLM) -> None:
    problem = problem_of(model, GRASPConfig(keep_ratio=0.7, epochs=1, learning_rate=1e-9, snapshots=1))
    loss = WidthLoss(WholeModel(model), problem.held_out_NS)
    blind = problem_of(model, problem.config.model_copy(update={"start": "zero"}))
    random = get_method("random").select(problem, get_method("random").score(problem))
    assert get_method("grasprune").score(blind).eq(0).all()
    assert loss(choices(problem)["start"]) < loss(random)


def test_rounds_of_the_start_cut_a_little_at_a_time(model: LlamaForCausalLM) -> None:
    once = problem_of(model, GRASPConfig(keep_ratio=0.5))
    first = get_method("grasprune").score(once)
    assert torch.equal(annealed_sensitivity(once, PER_TOKEN, first, 1), first)
    scores = annealed_sensitivity(once, PER_TOKEN, first, 3)
    # Three rounds cut to the square root of the ratio, then to the ratio; what the first cut takes does not come back.
    half_way = replace(once.budget, cost=int(once.inventory.total_cost * 0.5**0.5))
    early = ~project(first, once.inventory, half_way).kept_U
    kept = project(scores, once.inventory, once.budget).kept_U
    assert early.any() and not (early & kept).any()
    assert torch.equal(scores[early].argsort(), first[early].argsort())
    assert not torch.equal(scores[~early].argsort(), first[~early].argsort())
    assert scores.isfinite().all() and scores[~kept].max() < scores[kept].min()


@pytest.mark.parametrize("recipe", ["quick", "default", "thorough"])
def test_recipes_use_what_is_learnt_in_order(recipe: str) -> None:
    from optimum_grasprune.config import RECIPES

    config = RECIPES[recipe]()
    assert config.start == "fisher" and config.snapshots > 1
    assert (config.budget_warmup > 0) == (recipe != "quick")  # the short one, which takes the full cut at once
    get_method(config.method).check(config)
