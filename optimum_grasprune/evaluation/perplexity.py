"""Perplexity: log-softmax in fp32 whatever the model computes in, fp64 sum, non-overlapping windows.

Shape suffixes: W windows, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..execution import runner_for
from ..record import OPTIONAL, Stored
from ..record.describe import dtype_name, precision_of

EVALUATION_WINDOW = 512
"""Tokens in a window of the commands that measure perplexity, unless they are told another number."""


@dataclass(frozen=True)
class Perplexity(Stored):
    """A measurement.

    perplexity: exp of the mean loss, infinite above 709.78 nats.  tokens: predicted tokens.  windows, window: their
    number and length.  loss: the mean, in nats.  dtype: what the model computed in; None of results that do not say.
    """

    perplexity: float
    tokens: int
    windows: int
    window: int
    loss: float
    dtype: str | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def of(cls, loss: float, windows_WS: Tensor, model: PreTrainedModel) -> Perplexity:
        """That of a model's mean loss, in nats, over token windows of shape (W, S)."""
        count, window = windows_WS.shape
        return cls(perplexity_of(loss), count * (window - 1), count, window, loss, dtype_name(model))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types; a perplexity that no float holds is None, and the loss tells it."""
        return {**super().to_dict(), "perplexity": self.finite}

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The inverse: None is one that no float holds."""
        if isinstance(values, Mapping) and values.get("perplexity", 0) is None:
            return {**values, "perplexity": math.inf}
        return values

    @property
    def finite(self) -> float | None:
        """The perplexity; None where no float holds it."""
        return self.perplexity if math.isfinite(self.perplexity) else None


def on_windows(measured: Sequence[Perplexity]) -> str:
    """What several models were measured on, and in which precision, in words."""
    first = measured[0]
    precision = precision_of(each.dtype for each in measured)
    return f"{first.windows} windows of {first.window:,} tokens, {precision}"


def perplexity_of(loss: float) -> float:
    """Exp of a mean loss in nats; infinity where no float holds it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def shown(value: float) -> str:
    """A perplexity, or the ratio of two, for a table."""
    return f"{value:.3f}" if value < 1e9 else f"{value:.3e}"


def mean_loss(model: PreTrainedModel, windows_WS: Tensor, batch_size: int = 1) -> float:
    """Mean next-token loss of a model over token windows, as in `Runner.mean_loss`; windows_WS: shape (W, S), int64."""
    return runner_for(model).mean_loss(windows_WS, batch_size)


def perplexity(model: PreTrainedModel, windows_WS: Tensor, batch_size: int = 1) -> Perplexity:
    """Perplexity of a model on token windows, each scored on its own: S - 1 predictions a window.

    windows_WS: shape (W, S), int64.  Raises GraspruneError on a non-finite loss instead of leaving it out; a finite one
    whose exponential no float holds gives infinity.
    """
    return Perplexity.of(mean_loss(model, windows_WS, batch_size), windows_WS, model)
