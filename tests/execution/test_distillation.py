from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig
from optimum_grasprune.execution import Training, UnitMultipliers, WholeModel, distillation_loss, loss, weights_given
from optimum_grasprune.execution.loss import next_token_loss, wide_dtype
from optimum_grasprune.gates import train_gates
from tests.conftest import logits_of
from tests.recovery.trained_scales import train_scales

TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))


def test_by_hand() -> None:
    # The model says ¼ and ¾, the teacher ½ and ½; the next token is the first.
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]])
    teacher = torch.zeros(1, 2, 2)
    tokens = torch.tensor([[1, 0]])
    assert distillation_loss(logits, tokens, teacher, 0.0).item() == pytest.approx(math.log(4))
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distillation_loss(logits, tokens, teacher, 1.0).item() == pytest.approx(divergence)
    assert distillation_loss(logits, tokens, teacher, 0.25).item() == pytest.approx(
        0.75 * math.log(4) + 0.25 * divergence
    )


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_those_of_autograd(kl_weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, teacher = (3 * torch.randn(2, 6, 11, generator=generator) for _ in range(2))
    tokens = torch.randint(11, (2, 6), generator=generator)
    logits.requires_grad_()
    loss = distillation_loss(logits, tokens, teacher, kl_weight)
    (found,) = torch.autograd.grad(3 * loss, [logits])
    log_p = logits[:, :-1].log_softmax(-1)
    divergence = functional.kl_div(log_p, teacher[:, :-1].log_softmax(-1), log_target=True, reduction="sum") / 10
    plain = (1 - kl_weight) * next_token_loss(logits, tokens) + kl_weight * divergence
    (expected,) = torch.autograd.grad(3 * plain, [logits])
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_each_sequence_may_have_its_own_share() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, teacher = (3 * torch.randn(3, 6, 11, generator=generator) for _ in range(2))
    tokens = torch.randint(11, (3, 6), generator=generator)
    logits.requires_grad_()
    shares = torch.tensor([0.0, 0.3, 1.0])
    loss = distillation_loss(logits, tokens, teacher, shares)
    rows = zip(logits.split(1), tokens.split(1), teacher.split(1), shares.tolist(), strict=True)
    expected = torch.stack([distillation_loss(*row) for row in rows]).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, [logits])[0] for each in (loss, expected)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_few_rows_at_a_time_have_the_gradient_of_all_to_the_bit(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits_BSV = torch.randn(2, 6, 11, generator=generator).mul(3).to(dtype).requires_grad_()
    teacher_BSV = torch.randn(2, 6, 11, generator=generator).to(dtype)
    tokens_BS, weight_B = torch.randint(11, (2, 6), generator=generator), torch.tensor([0.25, 1.0])
    plain = functional.cross_entropy(logits_BSV[:, :-1].to(wide_dtype(dtype)).flatten(0, 1), tokens_BS[:, 1:].flatten())
    (expected,) = torch.autograd.grad(plain, logits_BSV)
    monkeypatch.setattr(loss, "IN_CACHE", 10**9)
    taught = distillation_loss(logits_BSV, tokens_BS, teacher_BSV, weight_B)
    (expected_of_teacher,) = torch.autograd.grad(taught, logits_BSV)
    monkeypatch.setattr(loss, "IN_CACHE", rows * 11)
    for found, value, gradient in (
        (next_token_loss(logits_BSV, tokens_BS), plain, expected),
        (distillation_loss(logits_BSV, tokens_BS, teacher_BSV, weight_B), taught, expected_of_teacher),
    ):
        torch.testing.assert_close(found, value)
        assert torch.equal(torch.autograd.grad(found, logits_BSV)[0], gradient) and not gradient[:, -1].any()


def test_nothing_cut_loses_nothing(model: LlamaForCausalLM) -> None:
    teacher = WholeModel(model).teacher(TOKENS)
    logits = logits_of(model, TOKENS)
    assert distillation_loss(logits, TOKENS, teacher.logits(torch.arange(3)), 1.0).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_predicts_what_its_model_does_whatever_its_head_makes_of_hidden_states() -> None:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.logits_scaling = 7.0
    model = GraniteForCausalLM(config).eval()
    teacher = WholeModel(model).teacher(TOKENS)
    torch.testing.assert_close(teacher.logits(torch.tensor([2, 0])), logits_of(model, TOKENS[[2, 0]]))
    assert "forward" not in vars(model.base_model) and teacher.hidden_NSD.shape == (3, 20, 32)


def test_a_live_teacher_says_the_same_and_leaves_its_model_as_it_was(model: LlamaForCausalLM) -> None:
    model.train()
    cached, live = (WholeModel(model).teacher(TOKENS, live=flag) for flag in (False, True))
    places = torch.tensor([2, 0])
    torch.testing.assert_close(live.logits(places), cached.logits(places))
    assert model.training and all(each.requires_grad for each in model.parameters())
    assert not live.logits(places).requires_grad


def test_weights_that_are_given_are_gone_afterwards(model: LlamaForCausalLM) -> None:
    names = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    before = dict(model.named_parameters())
    with pytest.raises(KeyError, match="in the midst"), weights_given(model, names) as give:
        tensors = [torch.zeros_like(before[name], requires_grad=True) for name in names]
        give(tensors)
        logits = model(TOKENS).logits
        assert not logits.any() and torch.autograd.grad(logits.sum(), tensors[:1])[0].any()
        raise KeyError("in the midst")
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert logits_of(model, TOKENS).any()


def test_training_with_a_teacher_comes_closer_to_it(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    teacher = runner.teacher(TOKENS)
    training = Training(8, 1, 0, 0.05, "constant", gradient_checkpointing=False, label="gates", kl_weight=1.0)
    start_U = torch.full((runner.inventory.num_units,), 0.5)
    (learnt_U,) = runner.learn(UnitMultipliers(start_U, lambda values_U, _: values_U), TOKENS, training, runner)

    def divergence(values_U: torch.Tensor) -> float:
        with runner.gated() as gates:
            gates.values_U = values_U
            return distillation_loss(logits_of(model, TOKENS), TOKENS, teacher.logits(torch.arange(3)), 1.0).item()

    assert divergence(learnt_U) < 0.7 * divergence(start_U)


def test_gates_and_scales_listen_to_the_dense_model_where_they_are_told_to(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    budget = Budget(runner.inventory.total_cost // 2)
    scores = {
        weight: train_gates(runner, budget, TOKENS, GRASPConfig(kl_weight=weight, epochs=2))[-1]
        for weight in (None, 0.0, 0.25)
    }
    assert torch.equal(scores[None], scores[0.25]) and not torch.equal(scores[0.0], scores[0.25])  # for a cut of a half
    scales = {weight: train_scales(runner, TOKENS, GRASPConfig(kl_weight=weight), runner) for weight in (None, 0.5)}
    assert not torch.equal(scales[None], scales[0.5])


def test_what_equals_its_teacher_has_nothing_to_learn(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    scales = train_scales(runner, TOKENS, GRASPConfig(kl_weight=1.0, scale_learning_rate=1e-2), runner)
    plain = train_scales(runner, TOKENS, GRASPConfig(scale_learning_rate=1e-2), runner)
    assert (scales - 1).abs().mean() < 0.3 * (plain - 1).abs().mean()
