"""What every method must do, whatever it scores by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig, UnitMask
from optimum_grasprune.errors import OptionError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.methods import Method, Problem, get_method, method_names, register
from optimum_grasprune.units import FFN, Address


@pytest.fixture(params=method_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def problem_of(model: LlamaForCausalLM, config: GRASPConfig) -> Problem:
    runner = WholeModel(model)
    tokens = torch.randint(258, (4, 20), generator=torch.Generator().manual_seed(config.seed))
    budget = get_method(config.method).budget(config, model, runner.family, runner.inventory, 0)
    return get_method(config.method).problem(runner, budget, tokens[:3], tokens[3:], config)


def choices(problem: Problem) -> dict[str, UnitMask]:
    method = get_method(problem.config.method)
    return method.candidates(problem, method.score(problem))


@pytest.fixture
def make_problem(model: LlamaForCausalLM, name: str) -> Callable[..., Problem]:
    def make(**options: object) -> Problem:
        return problem_of(
            model, GRASPConfig(method=name, epochs=1, learning_rate=0.3, **{"keep_ratio": 0.5, **options})
        )

    return make


def test_every_candidate_meets_the_budget(name: str, make_problem: Callable[..., Problem]) -> None:
    problem = make_problem(kv_keep_ratio=0.67)
    for mask in choices(problem).values():
        assert 0 < mask.kept_cost <= problem.budget.cost
        assert mask.kept_kv_width <= (problem.budget.kv_width or 0)


def test_candidates_at_several_budgets_meet_each(name: str, make_problem: Callable[..., Problem]) -> None:
    method, large = get_method(name), make_problem(keep_ratio=0.8)
    config = large.config.model_copy(update={"keep_ratio": 0.5})
    small = large.at(method.budget(config, large.model, large.family, large.inventory, 0), config)
    selections = method.selections([large, small])
    for problem in (large, small):
        candidates = selections(problem).candidates
        alone = {} if method.trains_at_all_budgets else choices(problem)
        for key, mask in candidates.items():
            assert isinstance(mask, UnitMask) and 0 < mask.kept_cost <= problem.budget.cost
            assert not alone or torch.equal(mask.kept_U, alone[key].kept_U)
    nested = large.at(small.budget.within(mask), config)
    assert all(not (one.kept_U & ~mask.kept_U).any() for one in selections(nested).candidates.values())


def test_same_seed_same_units(name: str, make_problem: Callable[..., Problem]) -> None:
    first, second, other = (choices(make_problem(seed=seed)) for seed in (1, 1, 2))
    assert list(first) == list(second)
    assert all(torch.equal(first[key].kept_U, second[key].kept_U) for key in first)
    if get_method(name).needs_calibration or name == "random":
        if all(mask.whole_layers for mask in first.values()):  # of which there are too few for other data to tell
            first_U, other_U = (get_method(name).score(make_problem(seed=seed)) for seed in (1, 2))
            assert not torch.equal(first_U, other_U)
            return
        assert any(not torch.equal(first[key].kept_U, other[key].kept_U) for key in first)


def test_scores_do_not_depend_on_the_budget(name: str, make_problem: Callable[..., Problem]) -> None:
    first, second = (get_method(name).score(make_problem(keep_ratio=ratio)) for ratio in (0.8, 0.4))
    assert torch.equal(first, second)


def test_leaves_the_model_alone(name: str, make_problem: Callable[..., Problem]) -> None:
    problem = make_problem()
    before = {key: tensor.clone() for key, tensor in problem.model.state_dict().items()}
    choices(problem)
    assert all(torch.equal(tensor, before[key]) for key, tensor in problem.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in problem.model.modules())


def test_the_estimate_knows_what_is_trained(name: str, make_problem: Callable[..., Problem]) -> None:
    problem = make_problem()
    choices(problem)
    trained = [traced.label for traced in problem.runner.trainings]
    assert trained == ([] if (label := get_method(name).training) is None else [label])


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_allocations(name: str, allocation: str, model: LlamaForCausalLM) -> None:
    method = get_method(name)
    config = GRASPConfig(method=name, allocation=allocation, keep_ratio=0.5, epochs=1)
    if allocation not in method.allocations:
        with pytest.raises(OptionError, match=f"allocation='{allocation}': {name} supports only global"):
            method.check(config)
        return
    (mask,) = list(choices(problem_of(model, config)).values())[-1:]
    if allocation == "uniform":
        widths = [len(mask.kept(Address(layer, FFN))) for layer in range(3)]
        assert max(widths) - min(widths) <= 1


def test_a_method_that_cannot_cut_single_weights_says_so() -> None:
    with pytest.raises(OptionError, match="pattern='2:4': magnitude supports only units"):
        get_method("magnitude").check(GRASPConfig(method="magnitude", pattern="2:4"))


def test_unknown_method_names_those_that_exist() -> None:
    with pytest.raises(OptionError, match="method='magic': no such method; there are .*grasprune.*random"):
        get_method("magic")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="a method named 'random' exists already: Random"):

        @register("random")
        class Another(Method):
            pass
