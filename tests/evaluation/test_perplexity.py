from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune.corpora import windows_of
from optimum_grasprune.errors import DataError, GraspruneError
from optimum_grasprune.evaluation import Perplexity, mean_loss, perplexity, perplexity_of
from optimum_grasprune.evaluation.perplexity import on_windows
from optimum_grasprune.execution import WholeModel, runner
from optimum_grasprune.execution.loss import next_token_loss
from optimum_grasprune.writing import write_json
from tests.conftest import logits_of

WINDOWS = torch.arange(100).view(5, 20)


def test_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [9.0, 9.0]]])
    tokens = torch.tensor([[0, 1, 1]])
    # Position 0 predicts token 1 with 3/4, position 1 predicts token 1 with 1/5; the last position predicts nothing.
    losses = next_token_loss(logits, tokens, reduction="none")
    torch.testing.assert_close(losses, torch.tensor([[-math.log(0.75), -math.log(0.2)]]))
    torch.testing.assert_close(next_token_loss(logits, tokens), losses.mean())


def test_uniform_model_has_the_vocabulary_as_perplexity(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = perplexity(model, torch.arange(60).view(3, 20))
    assert result.perplexity == pytest.approx(258)
    assert (result.tokens, result.windows, result.window) == (3 * 19, 3, 20)
    assert result.loss == pytest.approx(math.log(258))


def test_batches_do_not_change_the_result(model: LlamaForCausalLM) -> None:
    one, three = (perplexity(model, WINDOWS, batch_size).perplexity for batch_size in (1, 3))
    assert one == pytest.approx(three, rel=1e-5)


def test_it_says_what_the_model_computes_in(model: LlamaForCausalLM) -> None:
    wide, half = perplexity(model, WINDOWS), perplexity(copy.deepcopy(model).bfloat16(), WINDOWS)
    assert (wide.dtype, half.dtype) == ("float32", "bfloat16")
    assert half.loss == pytest.approx(wide.loss, rel=0.05) and half.loss != wide.loss
    assert on_windows([wide, half]) == "5 windows of 20 tokens, fp32 and bf16"
    earlier = {name: value for name, value in wide.to_dict().items() if name != "dtype"}
    assert on_windows([Perplexity.from_dict(earlier, "a file")]) == "5 windows of 20 tokens, fp32"


def test_a_gpu_reads_several_windows_together(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for window, device, expected in ((512, "cpu", 1), (512, "cuda:1", 8), (300, "mps", 13), (8192, "cuda", 1)):
        assert runner.windows_at_once(window, torch.device(device)) == expected
    alone = mean_loss(model, WINDOWS, 1)
    assert WholeModel(model).mean_loss(WINDOWS) == alone
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, tokens: shapes.append(tuple(tokens[0].shape)))
    monkeypatch.setattr(runner, "windows_at_once", lambda window, device: 40 // window)
    assert WholeModel(model).mean_loss(WINDOWS) == pytest.approx(alone, rel=1e-5)
    assert shapes == [(2, 20), (2, 20), (1, 20)]


def test_losses_are_summed_in_double_precision(model: LlamaForCausalLM) -> None:
    windows = torch.randint(258, (3, 40), generator=torch.Generator().manual_seed(0))
    losses = next_token_loss(logits_of(model, windows), windows, reduction="none").flatten().tolist()
    exact = math.fsum(losses) / len(losses)
    assert mean_loss(model, windows, batch_size=3) == pytest.approx(exact, rel=1e-14)
    assert float(torch.tensor(losses).mean()) != pytest.approx(exact, rel=1e-14)  # what fp32 makes of it


def test_windows() -> None:
    assert windows_of(torch.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows_of(torch.arange(7), 3, limit=1).tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match="7 tokens, less than one window of 8"):
        windows_of(torch.arange(7), 8)


def test_non_finite_loss_is_an_error(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(GraspruneError, match="not finite in the batch from window 1 of 2"):
        perplexity(model, torch.arange(20).view(2, 10))


@pytest.mark.parametrize("loss", [0.0, 1.0, 709.7, 709.8, 1e4, 3e38])
def test_no_loss_is_too_large(loss: float) -> None:
    assert perplexity_of(loss) == (math.exp(loss) if loss < 709.78 else math.inf)
    assert perplexity_of(-loss) == math.exp(-loss)


def test_a_perplexity_that_no_float_holds(model: LlamaForCausalLM, tmp_path: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    result = perplexity(model, torch.arange(60).view(3, 20))
    assert result.perplexity == math.inf and 709.8 < result.loss < math.inf
    write_json(tmp_path / "result.json", result.to_dict())
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["perplexity"] is None and stored["loss"] == result.loss
