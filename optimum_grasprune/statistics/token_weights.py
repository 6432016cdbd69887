"""How much each token's output counts for the loss: what an error there would do to it, to second order.

Shape suffixes: N sequences, S sequence, T tokens of one sequence, O output features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ..families import Block
from .base import Collector, Statistic


@dataclass(frozen=True)
class TokenWeights(Statistic[dict[str, Tensor]]):
    """w_t = ‖∂S/∂y_t‖² of every map that leads out of a block, y its output and S the summed loss of the sequence.

    With errors of the output that are alike in all directions, w_t is their Fisher information at token t (cf.
    GuidedQuant, arXiv 2505.07004). A massive activation has almost no gradient, so it counts for almost nothing.

    What is gathered: shape (N, S), fp32, on the CPU, by the path of the map.
    """

    from_gradients = True

    def collector(self, blocks: tuple[Block, ...], maps: Mapping[str, int]) -> Collector[dict[str, Tensor]]:
        """The weights at all maps that lead out."""
        return _Collector({block.output: [] for block in blocks})


TOKEN_WEIGHTS = TokenWeights()


class _Collector(Collector[dict[str, Tensor]]):
    def __init__(self, seen: dict[str, list[Tensor]]) -> None:
        self._seen = seen

    def see_output_gradient(self, path: str, gradient_TO: Tensor) -> None:
        self._seen[path].append(gradient_TO.float().square().sum(1))

    def kept(self) -> dict[str, Tensor]:
        return {path: torch.stack(weights).cpu() for path, weights in self._seen.items() if weights}

    def take_up(self, kept: Mapping[str, Tensor], device: torch.device) -> None:
        self._seen = {path: list(kept[path].to(device)) if path in kept else [] for path in self._seen}

    def merged(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        paths = [path for path in self._seen if any(path in part for part in parts)]
        of_paths = {path: [part[path] for part in parts if path in part] for path in paths}
        turns = {path: zip_longest(*of_path) for path, of_path in of_paths.items()}
        return {
            path: torch.stack([weights for turn in of_path for weights in turn if weights is not None])
            for path, of_path in turns.items()
        }

    def result(self, tokens: int) -> dict[str, Tensor]:
        return {path: torch.stack(weights).cpu() for path, weights in self._seen.items()}
