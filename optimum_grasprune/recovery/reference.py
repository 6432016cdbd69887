"""What stages look at: the dense model, calibration sequences, statistics, and the maps that a cut goes through.

Shape suffixes: N sequences, S sequence, K columns that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Moments, collect_moments
from ..families import Family
from ..masks import ElementMask
from ..plan import PruningPlan
from ..surgery import kept_columns

Cut = PruningPlan | ElementMask
"""What was cut: whole units, or single weights."""

Settings = Mapping[str, float]
"""What is chosen on held-out data, by name; the names of one stage are no other's."""


@dataclass(frozen=True)
class Trial:
    """A cut and one choice of the settings of all stages that refit weights."""

    cut: Cut
    settings: Settings = field(default_factory=dict)

    @property
    def plan(self) -> PruningPlan:
        """The cut, for a stage that knows whole units only; TypeError where single weights were cut."""
        if isinstance(self.cut, ElementMask):
            raise TypeError("single weights were cut, there is no plan")
        return self.cut


@dataclass(frozen=True)
class Reference:
    """The model as it was before the cut, which a stage brings the pruned one closer to.

    tokens_NS: calibration sequences, shape (N, S), int64; none where no stage looks at any.
    statistic_samples: how many of them, at most, statistics look at.
    moments: of the dense input of every map that the cut goes through, by path, where a stage declares that it needs
    them.
    """

    model: PreTrainedModel
    family: Family
    tokens_NS: Tensor
    statistic_samples: int
    moments: Mapping[str, Moments] = field(default_factory=dict)

    @property
    def statistic_tokens_NS(self) -> Tensor:
        """The sequences that statistics look at, the first ones."""
        return self.tokens_NS[: self.statistic_samples]

    def with_moments(self, cut: Cut) -> Reference:
        """The same with the moments that any cut of this kind needs, from one forward pass of the dense model."""
        modules = {path: _linear(self.model, path) for path in _paths(cut, self.family)}
        return replace(self, moments=collect_moments(self.model, modules, self.statistic_tokens_NS))

    def cut_maps(self, pruned: PreTrainedModel, cut: Cut) -> Iterator[CutMap]:
        """The maps of a pruned model that lost inputs or weights, beside what they were."""
        groups = [None] * len(cut.kept) if isinstance(cut, ElementMask) else cut.groups
        for path, group in zip(_paths(cut, self.family), groups, strict=True):
            before, after = _linear(self.model, path), _linear(pruned, path)
            everything_I = torch.arange(before.in_features, device=before.weight.device)
            yield CutMap(path, before, after, everything_I if group is None else kept_columns(group, before))


@dataclass(frozen=True)
class CutMap:
    """A linear map before and after the cut.

    kept_K: indices of the columns that stay, shape (K,), on the weight's device; all, where single weights were cut.
    """

    path: str
    before: nn.Linear
    after: nn.Linear
    kept_K: Tensor


def _paths(cut: Cut, family: Family) -> list[str]:
    """Of the output projections, in inventory order, or of every map that lost single weights."""
    if isinstance(cut, ElementMask):
        return list(cut.kept)
    return [family.output_path(group.layer, group.kind) for group in cut.groups]


def _linear(model: PreTrainedModel, path: str) -> nn.Linear:
    return model.get_submodule(path)  # type: ignore[return-value]
