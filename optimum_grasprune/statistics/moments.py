"""Mean and spread of activations, streamed. An update returns new moments and changes none.

Shape suffixes: T tokens, I features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GraspruneError
from ..families import Block
from ..numerics import fp64_device, in_fp64, precision_advice
from .base import Collector, Statistic


@dataclass(frozen=True)
class Moments:
    """Mean and spread of every feature over the tokens seen so far, in fp64, where those were or on the CPU.

    count: tokens.  mean_I: shape (I,).  spread_I: Σ (x − mean)², shape (I,).
    """

    count: int
    mean_I: Tensor
    spread_I: Tensor

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Moments before the first token."""
        zeros = torch.zeros(features, dtype=torch.float64, device="cpu")
        return cls(0, zeros, zeros)

    def update(self, x_TI: Tensor) -> Moments:
        """Moments with these tokens added; x_TI: shape (T, I), any float dtype.

        The merge of two samples is that of Chan, Golub and LeVeque (1979): no sum of squares, so no cancellation where
        a mean is large beside its deviation.
        """
        if not len(x_TI):
            return self
        x_TI = in_fp64(x_TI)
        mean_I = x_TI.mean(0)
        return self.with_others(Moments(len(x_TI), mean_I, (x_TI - mean_I).square().sum(0)))

    def with_others(self, others: Moments) -> Moments:
        """Moments of both samples, where the others are; neither changes."""
        total, device = self.count + others.count, others.mean_I.device
        if not others.count:
            return self
        shift_I = others.mean_I - self.mean_I.to(device)
        spread_I = others.spread_I + shift_I.square() * (self.count * others.count / total)
        return Moments(
            total,
            self.mean_I.to(device) + shift_I * (others.count / total),
            self.spread_I.to(device) + spread_I,
        )

    @property
    def variance_I(self) -> Tensor:
        """Unbiased variance, shape (I,); 0 with fewer than two tokens."""
        return self.spread_I / max(self.count - 1, 1)

    @property
    def norm_I(self) -> Tensor:
        """‖x‖₂ of every feature over all tokens, shape (I,)."""
        return (self.spread_I + self.count * self.mean_I.square()).sqrt()


@dataclass(frozen=True)
class InputMoments(Statistic[dict[str, Moments]]):
    """Moments of the input of every linear map that the cut goes through, by its path."""

    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[dict[str, Moments]]:
        """Moments of all the maps."""
        return _Collector({path: Moments.empty(features) for path, features in maps.items()})


MOMENTS = InputMoments()
"""What is declared by who looks at moments."""


class _Collector(Collector[dict[str, Moments]]):
    def __init__(self, moments: dict[str, Moments]) -> None:
        self._moments = moments
        self._dtype = torch.float32

    def see(self, path: str, x_TI: Tensor) -> None:
        # Not asked whether it is finite, which would stop the device at every map: that shows in the end.
        self._dtype = x_TI.dtype
        self._moments[path] = self._moments[path].update(x_TI)

    def kept(self) -> dict[str, Tensor]:
        return _as_tensors(self._moments)

    def take_up(self, kept: Mapping[str, Tensor], device: torch.device) -> None:
        place = fp64_device(device)
        for path in self._moments:
            count, mean_I, spread_I = (kept[f"{path}:{name}"] for name in ("count", "mean", "spread"))
            self._moments[path] = Moments(int(count), mean_I.to(place), spread_I.to(place))

    def merged(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        every = _Collector(dict(self._moments))
        whole = {path: Moments.empty(len(moments.mean_I)) for path, moments in self._moments.items()}
        for part in parts:
            every.take_up(part, torch.device("cpu"))
            whole = {path: moments.with_others(every._moments[path]) for path, moments in whole.items()}
        return _as_tensors(whole)

    def result(self, tokens: int) -> dict[str, Moments]:
        for path, moments in self._moments.items():
            if not moments.spread_I.isfinite().all():
                raise _not_finite(path, self._dtype)
        return self._moments


def _as_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, each in moments.items():
        tensors[f"{path}:count"] = torch.tensor(each.count, device="cpu")
        tensors[f"{path}:mean"], tensors[f"{path}:spread"] = each.mean_I.clone(), each.spread_I.clone()
    return tensors


def finite(x_TI: Tensor, path: str) -> Tensor:
    """The input of the map at this path, as it is; GraspruneError, with the path, when it is not finite."""
    if not torch.isfinite(x_TI).all():
        raise _not_finite(path, x_TI.dtype)
    return x_TI


def _not_finite(path: str, dtype: torch.dtype) -> GraspruneError:
    return GraspruneError(f"the input of {path} is not finite; {precision_advice(dtype)}")
