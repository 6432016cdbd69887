"""What every method must do, whatever it scores by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig
from optimum_grasprune.errors import OptionError
from optimum_grasprune.families import family_of
from optimum_grasprune.methods import Method, Task, get_method, method_names, register


@pytest.fixture(params=method_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_task(model: LlamaForCausalLM, name: str) -> Callable[..., Task]:
    def make(**options: object) -> Task:
        config = GRASPConfig(method=name, keep_ratio=0.5, epochs=1, learning_rate=0.3, **options)
        family = family_of(model.config)
        inventory = family.inventory(model)
        return Task(
            model, family, inventory, Budget.resolve(config, inventory, 0), torch.arange(60).view(3, 20), config
        )

    return make


def test_meets_the_budget(name: str, make_task: Callable[..., Task]) -> None:
    task = make_task(kv_keep_ratio=0.67)
    mask = get_method(name).select(task)
    assert 0 < mask.kept_cost <= task.budget.cost
    assert mask.kept_kv_width <= (task.budget.kv_width or 0)


def test_same_seed_same_units(name: str, make_task: Callable[..., Task]) -> None:
    first, second, other = (get_method(name).select(make_task(seed=seed)).kept_U for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_leaves_the_model_alone(name: str, make_task: Callable[..., Task]) -> None:
    task = make_task()
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    get_method(name).select(task)
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.model.state_dict().items())


def test_unknown_method_names_those_that_exist() -> None:
    with pytest.raises(OptionError, match="method='magic': no such method; there are grasprune, random"):
        get_method("magic")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="a method named 'random' exists already: Random"):

        @register("random")
        class Another(Method):
            pass


def test_random_cuts_every_layer_alike(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    config = GRASPConfig(method="random", keep_ratio=0.5)
    task = Task(model, family, inventory, Budget.resolve(config, inventory, 0), torch.zeros(1, 2).long(), config)
    mask = get_method("random").select(task)
    widths = [len(mask.kept(layer, "ffn")) for layer in range(3)]
    assert max(widths) - min(widths) <= 1
