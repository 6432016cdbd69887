from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.evaluation import mean_loss
from optimum_grasprune.evaluation.positions import loss_by_position, ranges
from tests.conftest import logits_of, make_model


def test_ranges_double_and_the_last_one_is_not_a_crumb() -> None:
    assert list(ranges(512)) == [(1, 64), (64, 128), (128, 256), (256, 512)]
    assert list(ranges(600)) == [(1, 64), (64, 128), (128, 256), (256, 600)]
    assert list(ranges(768)) == [(1, 64), (64, 128), (128, 256), (256, 512), (512, 768)]
    assert list(ranges(64)) == [(1, 64)]
    assert list(ranges(2)) == [(1, 2)]


@given(window=st.integers(2, 5000), first=st.integers(2, 300))
def test_every_prediction_is_in_one_range(window: int, first: int) -> None:
    found = list(ranges(window, first))
    assert [place for start, stop in found for place in range(start, stop)] == list(range(1, window))


def test_it_is_the_loss_of_each_place() -> None:
    model = make_model()
    windows_WS = torch.randint(0, model.config.vocab_size, (3, 100), generator=torch.Generator().manual_seed(0))
    found = loss_by_position(model, windows_WS, batch_size=2)
    logits_WSV = logits_of(model, windows_WS)
    log_p = logits_WSV.double().log_softmax(-1)[:, :-1]
    losses_WP = -log_p.gather(-1, windows_WS[:, 1:, None])[..., 0]
    assert [(each.start, each.stop, each.tokens) for each in found] == [(1, 64, 3 * 63), (64, 100, 3 * 36)]
    assert found[0].loss == pytest.approx(losses_WP[:, :63].mean().item(), rel=1e-6)
    assert found[1].loss == pytest.approx(losses_WP[:, 63:].mean().item(), rel=1e-6)
    whole = sum(each.loss * each.tokens for each in found) / sum(each.tokens for each in found)
    assert whole == pytest.approx(mean_loss(model, windows_WS), rel=1e-12)


def test_what_is_not_finite_is_refused() -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(GraspruneError, match="not finite in the batch from window 1 of 2"):
        loss_by_position(model, torch.zeros(2, 9, dtype=torch.int64))
