from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from optimum_grasprune.execution import WholeModel, whole
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.families import family_of
from optimum_grasprune.statistics import squared_per_sequence, squared_per_token
from optimum_grasprune.statistics.sensitivity import Reduction
from tests.conftest import make_model, sensitivity
from tests.tiny_models import tiny_model

TOKENS = torch.arange(60).view(2, 30)


def half_of(units: int) -> Tensor:
    return torch.rand(units, generator=torch.Generator().manual_seed(0)) < 0.5


def test_the_sum_over_tokens_is_the_derivative_by_the_multiplier(model: LlamaForCausalLM) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    signed = sensitivity(model, TOKENS[:1], lambda sensitivity_SK: sensitivity_SK.sum(0))
    with WholeModel(model).gated() as gates:
        gates.values_U = torch.ones(inventory.num_units, requires_grad=True)
        loss = next_token_loss(model(TOKENS[:1]).logits, TOKENS[:1], reduction="none").sum()
        (gradient,) = torch.autograd.grad(loss, [gates.values_U])
    torch.testing.assert_close(signed, gradient / 30, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduce", [squared_per_token, squared_per_sequence])
@pytest.mark.parametrize("part", [False, True])
def test_gradient_checkpointing_changes_no_number(model: LlamaForCausalLM, reduce: Reduction, part: bool) -> None:
    family = family_of(model.config)
    inventory = family.inventory(model)
    kept_U = half_of(inventory.num_units) if part else None
    plain, recomputed = (
        sensitivity(model, TOKENS, reduce, kept_U=kept_U, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=0)
    assert (plain > 0).sum() > len(plain) // 3
    if kept_U is not None:
        assert not plain[~kept_U].any()


def test_gradient_checkpointing_holds_on_to_nothing_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right before the backward pass, which is where most is in memory."""
    model = make_model(intermediate_size=56, num_hidden_layers=4)
    saved: list[int] = []
    channels_alive: list[int] = []

    def counted(logits: Tensor, tokens: Tensor, reduction: str) -> Tensor:
        alive = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.shape == (1, 30, 56)]
        channels_alive.append(len(alive))
        return next_token_loss(logits, tokens, reduction="none")

    def pack(tensor: Tensor) -> Tensor:
        saved[-1] += tensor.nbytes
        return tensor

    monkeypatch.setattr(whole, "next_token_loss", counted)
    for checkpointing in (False, True):
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sensitivity(model, TOKENS[:1], squared_per_token, gradient_checkpointing=checkpointing)
    assert saved[1] < saved[0] / 3
    assert channels_alive[0] > 0 and channels_alive[1] == 0


def test_every_layer_runs_again_with_gradient_checkpointing_only(model: LlamaForCausalLM) -> None:
    calls: list[object] = []
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda *_: calls.append(None))
    for checkpointing, runs in ((False, 2), (True, 4)):
        calls.clear()
        sensitivity(model, TOKENS, squared_per_token, gradient_checkpointing=checkpointing)
        assert len(calls) == runs


def test_nothing_is_left_on_the_model(model: LlamaForCausalLM) -> None:
    sensitivity(model, TOKENS, squared_per_token, gradient_checkpointing=True)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gradient_checkpointing_draws_no_dropout_where_layers_do_it_by_themselves() -> None:
    model = tiny_model("OPT", dropout=0.5, layerdrop=0.5)
    found, expected = (
        sensitivity(model, TOKENS, squared_per_token, gradient_checkpointing=checkpointing)
        for checkpointing in (True, False)
    )
    torch.testing.assert_close(found, expected)
    assert {layer.dropout for layer in model.model.decoder.layers} == {0.5} and model.model.decoder.layerdrop == 0.5
