"""What a run through several ratios does once, and hands on."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune.execution import RememberedTeacher, WholeModel
from optimum_grasprune.record import TrainedWith
from optimum_grasprune.sharing import Sharing
from tests.conftest import make_model
from tests.tiny_models import some_plan

TOKENS = torch.arange(12).view(4, 3)


def test_work_is_done_once() -> None:
    sharing = Sharing(WholeModel(make_model()), [0.8, 0.5])
    made = [sharing.once(("grams", key), lambda key=key: [key]) for key in (1, 1, 2)]
    assert made == [[1], [1], [2]] and made[0] is made[1]


def test_a_model_is_trained_with_all_others(model: LlamaForCausalLM) -> None:
    sharing = Sharing(WholeModel(model), [0.8, 0.5, 0.4])
    entries = [TrainedWith(plan=some_plan(model, seed=seed)) for seed in range(3)]
    sharing.models = dict(zip(sharing.keep_ratios, entries, strict=True))
    assert sharing.trained_with(0.5) == (entries[0], entries[2])


def test_a_teacher_reads_every_sequence_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, read = WholeModel(model), []
    hidden = WholeModel._hidden
    monkeypatch.setattr(
        WholeModel, "_hidden", lambda self, tokens_BS: read.append(tokens_BS.tolist()) or hidden(self, tokens_BS)
    )
    remembered = RememberedTeacher(runner)
    for places in ([0, 2], [2, 1, 2], [1, 0]):
        found = remembered.teacher(TOKENS[places]).logits(torch.tensor([1, 0]))
        torch.testing.assert_close(found, runner.model(TOKENS[places][[1, 0]]).logits)
    assert read == TOKENS[[0, 2, 1]][:, None].tolist()
    assert remembered.teacher(TOKENS[:1], live=True).logits(torch.tensor([0])).shape == (1, 3, 258)
    assert read[3:] == [TOKENS[:1].tolist()]  # one that is live is none that is remembered
