"""What a run through several ratios does once, and hands on."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from optimum_grasprune import PruningPlan
from optimum_grasprune.execution import RememberedTeacher, WholeModel
from optimum_grasprune.record import TrainedBefore
from optimum_grasprune.sharing import Leg, Sharing, legs
from tests.conftest import make_model
from tests.tiny_models import some_plan

TOKENS = torch.arange(12).view(4, 3)


def test_a_leg_is_as_long_as_the_cut_from_the_next_larger_ratio_is_deep() -> None:
    assert [pytest.approx(leg) for leg in legs([0.9, 0.6])] == [(0, 0.25), (0.25, 1)]
    assert [pytest.approx(leg) for leg in legs([1.0, 0.8, 0.7, 0.5])] == [(0, 0), (0, 0.4), (0.4, 0.6), (0.6, 1)]
    assert legs([0.95 - 0.05 * number for number in range(10)])[-1][1] == 1


def test_all_legs_together_go_three_times_through_the_sequences() -> None:
    first, second = (Leg(*leg).sequences(TOKENS, 1) for leg in legs([0.95, 0.75]))
    assert first.tolist() == TOKENS[[0, 1]].tolist()  # a fifth of 12 steps is 2.4
    assert second.tolist() == TOKENS[[2, 3, 0, 1, 2, 3, 0, 1, 2, 3]].tolist()
    assert [len(Leg(*leg).sequences(TOKENS, 2)) for leg in legs([0.95, 0.75])] == [5, 19]
    assert Leg(0, 0).sequences(TOKENS, 1).tolist() == TOKENS[:1].tolist()  # nothing was cut


def test_work_is_done_once() -> None:
    sharing = Sharing(WholeModel(make_model()), [0.8, 0.5])
    made = [sharing.once(("grams", key), lambda key=key: [key]) for key in (1, 1, 2)]
    assert made == [[1], [1], [2]] and made[0] is made[1]


def test_a_leg_starts_from_what_the_next_larger_ratio_learnt(model: LlamaForCausalLM) -> None:
    sharing = Sharing(WholeModel(model), [0.8, 0.5, 0.4])
    assert sharing.leg(0.8).start == {} and not sharing.has(0.8)
    with pytest.raises(KeyError):
        sharing.leg(0.5)
    plans: list[PruningPlan] = [some_plan(model, seed=seed) for seed in range(2)]
    for number, (ratio, plan) in enumerate(zip([0.8, 0.5], plans, strict=True)):
        sharing.hand_on(ratio, TrainedBefore(plan=plan), {"g": torch.tensor([float(number)])})
    assert sharing.leg(0.5).start["g"] == 0 and sharing.leg(0.4).start["g"] == 1
    assert [before.plan for before in sharing.trained_before(0.4)] == plans


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
