"""Loss against the place of a token in its window: what a model makes of a long context.

Shape suffixes: W windows, B batch, S sequence, P predictions, R ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..execution import runner_for
from ..record import Stored
from .paired import PairedMean, differences, paired_mean

FIRST_RANGE = 64
"""Tokens that the first range looks back on at the most; every further one reaches twice as far."""


@dataclass(frozen=True)
class RangeLoss(Stored):
    """The mean loss of the tokens that have so many before them.

    start, stop: tokens before the predicted one, at least and below.  loss: in nats.  tokens: predictions.
    by_window: the mean loss of the same tokens in each window, by which two models are held together.
    """

    start: int
    stop: int
    loss: float
    tokens: int
    by_window: tuple[float, ...] = ()


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
    places = list(ranges(window))
    # The prediction at place p has p + 1 tokens before it.
    means_WR = torch.cat(
        [
            torch.stack([losses_BP[:, start - 1 : stop - 1].mean(dim=1) for start, stop in places], dim=1).cpu()
            for losses_BP in runner_for(model).losses(windows_WS, batch_size)
        ]
    )
    return tuple(
        RangeLoss(start, stop, means_W.mean().item(), count * (stop - start), tuple(means_W.tolist()))
        for (start, stop), means_W in zip(places, means_WR.unbind(dim=1), strict=True)
    )


def mean_of(places: Sequence[RangeLoss]) -> float:
    """The mean loss of all predictions, in nats, from that of each range."""
    return math.fsum(place.loss * place.tokens for place in places) / sum(place.tokens for place in places)


def rise(place: RangeLoss, dense: RangeLoss) -> PairedMean:
    """What a pruned model's loss in a range is over the dense one's, in nats, window by window."""
    return paired_mean(differences(dense.by_window, place.by_window))
