"""The loss from hidden states, whose logits are there for a chunk of tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GraniteConfig, GraniteForCausalLM, LlamaForCausalLM, PreTrainedModel

from optimum_grasprune.execution import Training, UnitMultipliers, WholeModel, chunks, distillation_loss, weights_given
from optimum_grasprune.execution.chunks import Predictions, chunked_loss, chunked_losses
from optimum_grasprune.execution.instrument import hidden_given
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.statistics import TOKEN_WEIGHTS, Sensitivity, squared_per_token
from tests.conftest import make_model
from tests.tiny_models import tiny_model

TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))
SMALL = 5 * 258
"""Logits of five tokens of the tiny models."""


@contextmanager
def at_most(logits: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MOST_LOGITS", logits)
        yield


def granite() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=258, initializer_range=0.2, **sizes)
    config.logits_scaling = 0.3
    return GraniteForCausalLM(config).eval()


@given(predictions=st.integers(0, 300), vocabulary=st.integers(1, 50), most=st.integers(1, 400))
def test_chunks_are_even_small_enough_and_all_there_is(predictions: int, vocabulary: int, most: int) -> None:
    with at_most(most):
        parts = [range(predictions)[part] for part in chunks.chunks(predictions, vocabulary)]
    assert [place for part in parts for place in part] == list(range(predictions))
    lengths = {len(part) for part in parts}
    assert not parts or (max(lengths) <= max(1, most // vocabulary) and min(lengths) >= max(lengths) - 1 > -1)
    assert len(parts) == math.ceil(predictions / max(1, most // vocabulary))


def test_all_tokens_of_a_usual_sequence_are_one_chunk() -> None:
    assert chunks.in_one(512, 128_256) and chunks.in_one(4 * 512, 32_000)
    assert not chunks.in_one(512, 262_144) and not chunks.in_one(2 * 512, 128_256)
    assert [part.stop - part.start for part in chunks.chunks(511, 262_144)] == [255, 256]
    assert {part.stop - part.start for part in chunks.chunks(4 * 511, 128_256)} == {511}


def test_by_hand() -> None:
    # The hidden states are logits: ¼ and ¾ where the second comes, ⅕ and ⅘ where the first does; the teacher knows
    # nothing.
    hidden = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(4)], [9.0, 9.0]]], requires_grad=True)
    tokens, teacher = torch.tensor([[0, 1, 0]]), Predictions(torch.zeros(1, 3, 2), lambda hidden: hidden)
    predicted = Predictions(hidden, lambda hidden: hidden.clone())
    with at_most(2):
        losses = chunked_losses(predicted, tokens, 2)
        loss = chunked_loss(predicted, tokens, 2)
        total = chunked_loss(predicted, tokens, 2, total=True)
        taught = chunked_loss(predicted, tokens, 2, teacher=teacher, kl_weight=1.0)
    torch.testing.assert_close(losses, torch.tensor([[-math.log(0.75), math.log(5)]]))
    assert loss.item() == pytest.approx((math.log(5) - math.log(0.75)) / 2)
    assert total.item() == pytest.approx(2 * loss.item())
    divergences = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in (0.25, 0.2)]
    assert taught.item() == pytest.approx(sum(divergences) / 2)
    (gradient,) = torch.autograd.grad(loss, [hidden])
    torch.testing.assert_close(gradient, torch.tensor([[[0.125, -0.125], [-0.4, 0.4], [0.0, 0.0]]]))
    (gradient,) = torch.autograd.grad(taught, [hidden])
    torch.testing.assert_close(gradient, torch.tensor([[[-0.125, 0.125], [-0.15, 0.15], [0.0, 0.0]]]))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 5), st.integers(2, 13)),
    most=st.integers(1, 80),
    kl_weight=st.sampled_from([None, 0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_are_those_of_all_logits(
    shape: tuple[int, int, int, int], most: int, kl_weight: float | None, dtype: torch.dtype, seed: int
) -> None:
    batch, length, width, vocabulary = shape
    generator = torch.Generator().manual_seed(seed)
    hidden, taught = (torch.randn(batch, length, width, generator=generator, dtype=dtype) for _ in range(2))
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    hidden.requires_grad_()

    def head(hidden: Tensor) -> Tensor:
        return 3 * torch.tanh(hidden @ weight.T / 3)  # a cap on logits, as Gemma has it

    if kl_weight is None:
        plain, teacher = next_token_loss(head(hidden), tokens), None
    else:
        plain = distillation_loss(head(hidden), tokens, head(taught), kl_weight)
        teacher = Predictions(taught, head)
    with at_most(most):
        predicted = Predictions(hidden, head)
        loss = chunked_loss(predicted, tokens, vocabulary, teacher=teacher, kl_weight=kl_weight or 0.0)
        losses = chunked_losses(predicted, tokens, vocabulary)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(loss, plain, **tolerance)
    torch.testing.assert_close(losses, next_token_loss(head(hidden), tokens, reduction="none"), **tolerance)
    (found,), (expected,) = torch.autograd.grad(3 * loss, [hidden]), torch.autograd.grad(3 * plain, [hidden])
    torch.testing.assert_close(found, expected, **tolerance)


def test_shares_of_sequences_go_with_their_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    tokens, shares = torch.randint(9, (3, 5), generator=generator), torch.tensor([0.0, 0.25, 1.0])
    hidden.requires_grad_()

    def head(hidden: Tensor) -> Tensor:
        return hidden @ weight.T

    plain = distillation_loss(head(hidden), tokens, head(taught), shares)
    with at_most(5 * 9):  # chunks of five predictions, of which each sequence has four
        predicted, teacher = Predictions(hidden, head), Predictions(taught, head)
        loss = chunked_loss(predicted, tokens, 9, teacher=teacher, kl_weight=shares)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(each, [hidden])[0] for each in (loss, plain)))


@pytest.mark.parametrize("kl_weight", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("total", [False, True])
def test_the_gradient_is_the_derivative(kl_weight: float | None, total: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    tokens = torch.randint(7, (2, 4), generator=generator)
    teacher = None if kl_weight is None else Predictions(taught, lambda hidden: hidden @ weight.T)

    def loss(hidden: Tensor) -> Tensor:
        predicted = Predictions(hidden, lambda hidden: (hidden @ weight.T).sin())
        return chunked_loss(predicted, tokens, 7, teacher=teacher, kl_weight=kl_weight or 0.0, total=total)

    with at_most(15):
        assert torch.autograd.gradcheck(loss, [hidden.requires_grad_()])


MODELS = {
    "LLaMA": lambda: make_model(),
    "tied": lambda: make_model(tie_word_embeddings=True),
    "Gemma with a cap": lambda: tiny_model("Gemma 3", final_logit_softcapping=3.0),
    "OPT whose embeddings are narrower": lambda: tiny_model("OPT", "as-350m"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_runner_says_the_same_of_a_few_logits_at_a_time(name: str, checkpointing: bool) -> None:
    model = MODELS[name]()
    runner = WholeModel(model)
    statistics = [Sensitivity(squared_per_token), TOKEN_WEIGHTS]
    start_U = torch.full((runner.inventory.num_units,), 0.9)

    def results() -> list[Tensor]:
        gathered = runner.gather(statistics, TOKENS, gradient_checkpointing=checkpointing)
        found = [gathered[statistics[0]], *gathered[TOKEN_WEIGHTS].values(), *runner.losses(TOKENS, 2)]
        for kl_weight, live in ((0.0, False), (0.6, False), (0.6, True)):
            training = Training(
                2, 2, 0, 1e-3, "constant", checkpointing, "gates", kl_weight=kl_weight, live_teacher=live
            )
            multipliers = UnitMultipliers(start_U, lambda values_U, _: values_U)
            found += [*runner.learn(multipliers, TOKENS, training, runner), runner.trainings[-1].values["loss"]]
        return found

    plain = results()
    with at_most(SMALL):
        chunked = results()
    for found, expected in zip(chunked, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert "forward" not in vars(model.get_decoder())


def test_what_a_model_makes_of_its_logits_afterwards_is_in_the_loss() -> None:
    model = granite()
    with torch.no_grad():
        expected = next_token_loss(model(TOKENS).logits, TOKENS, reduction="none")
    with at_most(SMALL), torch.no_grad():
        found = WholeModel(model)._losses(TOKENS)
    torch.testing.assert_close(found, expected)


def test_what_fits_into_one_chunk_is_the_plain_loss_bit_by_bit(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        expected = next_token_loss(model(TOKENS).logits, TOKENS, reduction="none")
    (found,) = WholeModel(model).losses(TOKENS, 3)
    assert torch.equal(found, expected.double())


class _Logits(TorchDispatchMode):
    """Sees how many logits the largest tensor of them has. vocabulary: unlike every other size of the model."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.most = vocabulary, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and self.vocabulary in each.shape and self.width not in each.shape:
                self.most = max(self.most, each.numel())
        return result


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
@pytest.mark.parametrize("live", [False, True])
def test_no_more_logits_are_made_than_may_be(model: LlamaForCausalLM, kl_weight: float, live: bool) -> None:
    runner, dense = WholeModel(model), WholeModel(make_model(1))
    multipliers = UnitMultipliers(torch.ones(runner.inventory.num_units), lambda values_U, _: values_U)
    training = Training(1, 3, 0, 0.1, "constant", False, "gates", kl_weight=kl_weight, live_teacher=live)
    for most, expected in ((SMALL, SMALL), (2**26, TOKENS.numel() * 258)):
        with at_most(most), _Logits(258, 32) as seen:
            runner.learn(multipliers, TOKENS, training, dense)
        assert seen.most == expected
    with at_most(SMALL), _Logits(258, 32) as seen:
        runner.mean_loss(TOKENS, batch_size=3)
        runner.gather([Sensitivity(squared_per_token)], TOKENS)
    assert seen.most == SMALL


def test_a_head_that_is_trained_gets_its_gradient(model: LlamaForCausalLM) -> None:
    runner = WholeModel(model)
    given_weight = model.lm_head.weight.detach().clone().requires_grad_()
    with weights_given(model, ["lm_head.weight"]) as give, at_most(SMALL):
        give([given_weight])
        loss = runner._loss(TOKENS, torch.arange(3), 0.0, None)
        (gradient,) = torch.autograd.grad(loss, [given_weight])
    assert gradient.any(1).sum() > 200


def test_a_forward_that_was_put_on_the_decoder_is_there_again(model: LlamaForCausalLM) -> None:
    stack = model.get_decoder()
    own = stack.forward
    stack.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as accelerate does
    given = stack.forward
    with hidden_given(model, torch.zeros(1, 2, 32)):
        assert model(TOKENS).logits.shape == (1, 2, 258)
    assert stack.forward is given
