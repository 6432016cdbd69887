"""Scores of units against numbers worked out by hand, and sensitivities against autograd and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from optimum_grasprune import GRASPConfig
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.families import Slot, family_of
from optimum_grasprune.methods import get_method
from optimum_grasprune.methods.flap import standardised, unit_fluctuation
from optimum_grasprune.methods.magnitude import unit_norms
from optimum_grasprune.methods.wanda_sp import unit_metric
from optimum_grasprune.statistics import squared_per_sequence, squared_per_token
from optimum_grasprune.units import FFN, KV, Address
from tests.conftest import sensitivity
from tests.contracts.test_methods import problem_of

TOKENS = torch.arange(48).view(3, 16)


def linear(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    weight = torch.tensor(rows)
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    module.weight.data = weight
    if bias is not None:
        module.bias.data = torch.tensor(bias)
    return module


def parameters_of(*maps: nn.Linear) -> dict[str, Tensor]:
    return dict(nn.ModuleList(maps).named_parameters())


def test_magnitude_by_hand() -> None:
    # Unit 0: rows (3) and (0), column (4); unit 1: rows (1) and (2), column (2). Biases count for nothing.
    maps = linear([[3.0], [1.0]], [9.0, 9.0]), linear([[0.0], [2.0]]), linear([[4.0, 2.0]], [9.0])
    parameters = parameters_of(*maps)
    slots = Slot("0.weight"), Slot("0.bias"), Slot("1.weight"), Slot("2.weight", 1)
    assert unit_norms(parameters, slots, 2).tolist() == [5, 3]
    assert unit_norms(parameters, slots, 1).tolist() == pytest.approx([34**0.5])


def test_magnitude_where_queries_outnumber_keys() -> None:
    """A KV group of two queries: rows 0 and 1 of q, row 0 of k and v, columns 0 and 1 of o."""
    q, o = linear([[1.0], [2], [3], [4]]), linear([[1.0, 1, 0, 2]])
    parameters = parameters_of(q, linear([[2.0], [0.0]]), linear([[0.0], [1.0]]), o)
    slots = Slot("0.weight"), Slot("1.weight"), Slot("2.weight"), Slot("3.weight", 1)
    assert unit_norms(parameters, slots, 2).tolist() == pytest.approx(
        [(1 + 4 + 4 + 1 + 1) ** 0.5, (9 + 16 + 1 + 4) ** 0.5]
    )


def test_magnitude_where_maps_are_fused() -> None:
    """A gate and up projection in one: unit 0 has rows 0 and 2 of it, unit 1 rows 1 and 3."""
    parameters = parameters_of(linear([[3.0], [1.0], [0.0], [2.0]]), linear([[4.0, 2.0]]))
    assert unit_norms(parameters, (Slot("0.weight", 0, (2, 2)), Slot("1.weight", 1)), 2).tolist() == [5, 3]


def test_wanda_by_hand() -> None:
    weight, norm = torch.tensor([[1.0, -2, 0, 3], [1, 2, -1, 0]]), torch.tensor([1.0, 2, 3, 4]).double()
    # Columns: 1·2, 2·4, 3·1, 4·3.
    assert unit_metric(weight, norm, 4).tolist() == [2, 8, 3, 12]
    assert unit_metric(weight, norm, 2).tolist() == [10, 15]


def test_flap_by_hand() -> None:
    weight, variance = torch.tensor([[1.0, 0, 2, 1], [1, 2, 0, 0]]), torch.tensor([1.0, 1, 1, 2]).double()
    # Columns: 2, 4, 4, 2 with mean 3 and deviation √(4/3).
    expected = [-(0.75**0.5), 0.75**0.5, 0.75**0.5, -(0.75**0.5)]
    assert unit_fluctuation(weight, variance, 4).tolist() == pytest.approx(expected)
    assert unit_fluctuation(weight, variance, 2).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert unit_fluctuation(torch.ones(2, 4), torch.ones(4), 4).tolist() == [0, 0, 0, 0]
    assert standardised(torch.tensor([1.0, 2, 3])).tolist() == [-1, 0, 1]


def summed_loss(model: LlamaForCausalLM, tokens_S: Tensor) -> Tensor:
    tokens_BS = tokens_S[None]
    return next_token_loss(model(tokens_BS, use_cache=False).logits, tokens_BS, reduction="none").sum()


def test_per_sequence_is_the_squared_derivative_by_the_gate(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    expected = torch.zeros(inventory.num_units)
    with WholeModel(model).gated() as gates:
        for tokens_S in TOKENS:
            gates.values_U = torch.ones(inventory.num_units, requires_grad=True)
            (gradient_U,) = torch.autograd.grad(summed_loss(model, tokens_S), gates.values_U)
            expected += gradient_U.square()
    found = sensitivity(model, TOKENS, squared_per_sequence)
    torch.testing.assert_close(found, expected / TOKENS.numel(), rtol=1e-3, atol=1e-6)
    assert (found > 0).all()


def test_per_sequence_against_finite_differences(model: LlamaForCausalLM) -> None:
    model = model.double()
    family = family_of(model.config)
    inventory = family.inventory(model)
    found = sensitivity(model, TOKENS[:1], squared_per_sequence)
    step = 2e-2  # norms and the loss are computed in fp32, which leaves no digits to smaller ones
    with WholeModel(model).gated() as gates, torch.no_grad():
        for unit in (0, 1, inventory.slice_of(Address(1, KV)).start, inventory.num_units - 1):
            losses = []
            for sign in (1, -1):
                gates.values_U = torch.ones(inventory.num_units, dtype=torch.float64)
                gates.values_U[unit] += sign * step
                losses.append(float(summed_loss(model, TOKENS[0])))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert float(found[unit]) == pytest.approx(slope**2 / TOKENS[:1].numel(), rel=0.03)


def test_per_token_is_the_squared_derivative_by_a_gate_on_one_token(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    found = sensitivity(model, TOKENS, squared_per_token)
    modules = family.output_projections(model)
    for address in (Address(0, KV), Address(2, FFN)):
        span = inventory.slice_of(address)
        count, module = span.stop - span.start, modules[address]
        expected = torch.zeros(count)
        for tokens_S in TOKENS:
            gate_SK = torch.ones(len(tokens_S), count, requires_grad=True)
            wide_SI = gate_SK.repeat_interleave(module.in_features // count, dim=1)
            handle = module.register_forward_pre_hook(lambda _, inputs, wide=wide_SI: (inputs[0] * wide,))
            (gradient_SK,) = torch.autograd.grad(summed_loss(model, tokens_S), gate_SK)
            handle.remove()
            expected += gradient_SK.square().sum(0)
        torch.testing.assert_close(found[span], expected / TOKENS.numel(), rtol=1e-3, atol=1e-7)


def test_units_that_are_out_have_no_sensitivity(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    kept = torch.ones(inventory.num_units, dtype=torch.bool)
    kept[::3] = False
    found = sensitivity(model, TOKENS, squared_per_token, kept_U=kept)
    assert not found[~kept].any() and (found[kept] > 0).all()


def test_sensitivity_leaves_no_trace(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    sensitivity(model, TOKENS[:1], squared_per_token)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(linear._forward_pre_hooks for linear in family.output_projections(model).values())


def test_gradients_that_are_not_finite_name_their_layer(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(GraspruneError, match=r"the gradient in layer \d \((kv|ffn)\) is not finite"):
        sensitivity(model, TOKENS[:1], squared_per_token)


@pytest.mark.parametrize("name", ["fasp", "flap", "wanda_sp"])
def test_statistics_look_at_as_many_sequences_as_asked_for(name: str, model: LlamaForCausalLM) -> None:
    problem, method = problem_of(model, GRASPConfig(method=name, statistic_samples=2)), get_method(name)
    scores = method.score(problem)
    assert torch.equal(scores, method.score(replace(problem, tokens_NS=problem.tokens_NS[:2])))
    assert not torch.equal(scores, method.score(replace(problem, config=GRASPConfig(method=name))))
