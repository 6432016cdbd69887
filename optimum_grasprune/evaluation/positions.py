"""Loss against the place of a token in its window: what a model makes of a long context.

Shape suffixes: W windows, B batch, S sequence, P predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..execution import WholeModel
from ..record import Stored

FIRST_RANGE = 64
"""Tokens that the first range looks back on at the most; every further one reaches twice as far."""


@dataclass(frozen=True)
class RangeLoss(Stored):
    """The mean loss of the tokens that have so many before them.

    start, stop: tokens before the predicted one, at least and below.  loss: in nats.  tokens: predictions.
    """

    start: int
    stop: int
    loss: float
    tokens: int


def ranges(window: int, first: int = FIRST_RANGE) -> Iterator[tuple[int, int]]:
    """Ranges of context that double: 1 to `first`, then to twice that, up to the window's last prediction.

    window: tokens in it, at least 2. A last range of less than half its length joins the one before it.
    """
    start, stop = 1, first
    while start < window:
        left = window - stop
        if left < stop / 2:
            stop = window
        yield start, stop
        start, stop = stop, 2 * stop


def loss_by_position(model: PreTrainedModel, windows_WS: Tensor, batch_size: int = 1) -> tuple[RangeLoss, ...]:
    """Mean next-token loss of token windows by how much context each prediction has.

    windows_WS: shape (W, S), int64, each scored on its own. The mean over all of them, weighted by tokens, is the loss
    that perplexity is made of.  Raises GraspruneError on a loss that is not finite.
    """
    count, window = windows_WS.shape
    sums_P = torch.zeros(window - 1, dtype=torch.float64)
    for losses_BP in WholeModel(model).losses(windows_WS, batch_size):
        sums_P += losses_BP.sum(dim=0).cpu()
    # The prediction at place p has p + 1 tokens before it.
    return tuple(
        RangeLoss(start, stop, sums_P[start - 1 : stop - 1].mean().item() / count, count * (stop - start))
        for start, stop in ranges(window)
    )
