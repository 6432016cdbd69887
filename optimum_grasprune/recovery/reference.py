"""What stages look at: the dense model, calibration sequences, statistics, and the maps that a cut goes through.

Shape suffixes: N sequences, S sequence, O output features, I input features, K columns that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from ..execution import Gathered, Runner, Taught, Teaches
from ..families import Block, Family, linear_at
from ..problem import NO_TEXTS, Problem, RecoveryText, TrainingTexts
from ..sharing import Sharing
from ..statistics import Statistic
from ..surgery import feature_indices, in_memory
from ..units import ElementMask, PruningPlan

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

    runner: the dense model, and how models are run.
    tokens_NS: calibration sequences, shape (N, S), int64; none where no stage looks at any.
    statistic_samples: how many of them, at most, statistics look at.
    statistics: of the dense model, those that the stages declare.
    training_texts: more of them, for stages that are trained.
    taught: what has the dense model say of sequences what it predicts, or had it, and it may be gone.
    sharing: the run through several ratios, where there is one.
    learnt: what a stage's numbers came to, where that is known: of a training for several ratios.
    """

    runner: Runner
    tokens_NS: Tensor
    statistic_samples: int
    statistics: Gathered
    training_texts: TrainingTexts = NO_TEXTS
    sharing: Sharing | None = None
    learnt: Tensor | None = None
    taught: Teaches | None = None

    @classmethod
    def of(cls, problem: Problem) -> Reference:
        """The dense model of a problem, with the statistics that are gathered for it."""
        return cls(
            problem.runner,
            problem.tokens_NS,
            len(problem.statistic_tokens_NS),
            problem.statistics,
            problem.training_texts,
            problem.sharing,
            taught=problem.teacher,
        )

    @classmethod
    def on(
        cls,
        runner: Runner,
        tokens_NS: Tensor,
        statistic_samples: int,
        declared: Iterable[Statistic[Any]] = (),
        training_texts: TrainingTexts = NO_TEXTS,
        *,
        gradient_checkpointing: bool = False,
    ) -> Reference:
        """A dense model by itself, with statistics of the inputs of its output projections.

        gradient_checkpointing: as in `Runner.gather`.
        """
        sequences_NS = tokens_NS[:statistic_samples]
        statistics = Gathered(runner, declared, sequences_NS, gradient_checkpointing=gradient_checkpointing)
        return cls(runner, tokens_NS, statistic_samples, statistics, training_texts)

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.runner.model

    @property
    def family(self) -> Family:
        """Its family."""
        return self.runner.family

    @property
    def recovery_text(self) -> RecoveryText:
        """What weights are trained on: the calibration sequences, unwatched, where nothing else is said."""
        return self.training_texts.recovery or RecoveryText.unwatched(self.tokens_NS)

    @property
    def teacher(self) -> Teaches:
        """Where what the dense model predicts is to be had."""
        if self.taught is not None:
            return self.taught
        return self.runner if self.sharing is None else self.sharing.teacher

    def having_taught(self, sequences: Iterable[Tensor]) -> Self:
        """The same when the dense model has been asked all that it will be: of these sequences, shape (N, S) each."""
        return replace(self, taught=Taught(self.teacher, [tokens_NS for tokens_NS in sequences if len(tokens_NS)]))

    def having_learnt(self, keep_ratio: float) -> Self:
        """The same for a stage whose numbers were learnt for all ratios together."""
        return self if self.sharing is None else replace(self, learnt=self.sharing.numbers[keep_ratio])

    def trained_on_both(self, samples: int) -> tuple[Tensor, tuple[bool, ...]]:
        """Calibration sequences, and more of the corpus, with what is rehearsed evenly spread among them.

        samples: of all together. Returned with them is which are rehearsed, nothing where none is.
        """
        corpus_NS, texts = self.tokens_NS, self.training_texts
        if len(texts.further_NS):
            corpus_NS = torch.cat([corpus_NS, texts.further_NS])
        if not len(rehearsed_NS := texts.rehearsed_NS):
            return corpus_NS[:samples], ()
        own_NS = corpus_NS[: max(1, samples - len(rehearsed_NS))]
        order = spread_evenly(len(own_NS), len(rehearsed_NS))
        return torch.cat([own_NS, rehearsed_NS])[order], tuple(place >= len(own_NS) for place in order)

    @property
    def statistic_tokens_NS(self) -> Tensor:
        """The sequences that statistics look at, the first ones."""
        return self.tokens_NS[: self.statistic_samples]

    def linear(self, path: str) -> Linear:
        """A linear map of the dense model, to be read."""
        return Linear(self.runner.parameter(f"{path}.weight"))

    def cut_maps(self, pruned: PreTrainedModel, cut: Cut) -> Iterator[CutMap]:
        """The maps of a pruned model that lost inputs or weights, beside what they were."""
        if isinstance(cut, ElementMask):
            for path in cut.kept:
                before = self.linear(path)
                everything_I = torch.arange(before.in_features, device=before.weight.device)
                yield CutMap(path, before, linear_at(pruned, path), everything_I)
            return
        for block in self.runner.blocks:
            before = self.linear(block.output)
            after = linear_at(pruned, block.output)
            with in_memory(after):
                yield CutMap(block.output, before, after, kept_columns(cut, block, before))


def spread_evenly(own: int, others: int) -> list[int]:
    """Places of `own` things and, counted on from there, of others, in one order in which both are evenly spread."""
    among = [((place + 0.5) / own, place) for place in range(own)]
    among += [((place + 0.5) / others, own + place) for place in range(others)]
    return [place for _, place in sorted(among)]


@dataclass(frozen=True)
class Linear:
    """What a linear map multiplies by. weight: shape (O, I), on the device that the model computes on."""

    weight: Tensor

    @property
    def in_features(self) -> int:
        """I."""
        return self.weight.shape[1]


@dataclass(frozen=True)
class CutMap:
    """A linear map before and after the cut; after it, no more than a bias where its whole block is gone.

    kept_K: indices of the columns that stay, shape (K,), on the weight's device; all, where single weights were cut.
    """

    path: str
    before: Linear
    after: nn.Linear
    kept_K: Tensor


def kept_columns(plan: PruningPlan, block: Block, before: Linear) -> Tensor:
    """Indices of the columns of a block's dense output projection that stay, shape (K,), on the weight's device."""
    group = plan.group(block.address)
    return feature_indices(group.kept, before.in_features, group.count).to(before.weight.device)
