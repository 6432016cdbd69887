"""All that a method, or what makes up for a cut, may look at.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import GRASPConfig
from .execution import Gathered, KnownStatistics, RememberedTeacher, Runner, Teaches
from .families import Family, linears
from .record import CorpusRecord
from .sharing import Sharing
from .statistics import Statistic
from .units import Budget, UnitInventory

NO_TOKENS_NS = torch.empty(0, 0, dtype=torch.int64, device="cpu")
"""The sequences of what looks at no data."""


@dataclass(frozen=True)
class RecoveryText:
    """What weights are trained on, and what says when that is enough.

    tokens_NS: sequences of the calibration corpus and those that are rehearsed, shape (N, S), int64.
    held_out_NS: of the corpus's end.  watched_NS: of a text of another kind; neither is trained on, and there may be
    none.
    watched: that text.
    rehearsed: for each sequence whether it is rehearsed; empty where none is.
    """

    tokens_NS: Tensor
    held_out_NS: Tensor
    watched_NS: Tensor
    watched: CorpusRecord | None
    rehearsed: tuple[bool, ...] = ()

    @classmethod
    def unwatched(cls, tokens_NS: Tensor) -> RecoveryText:
        """Sequences to train on, with nothing to say when that is enough."""
        return cls(tokens_NS, tokens_NS[:0], tokens_NS[:0], None)

    @property
    def judged_on(self) -> dict[str, Tensor]:
        """The texts that are not trained on, by the names of their losses in a record."""
        texts = {"held_out": self.held_out_NS, "watched": self.watched_NS}
        return {name: text_NS for name, text_NS in texts.items() if len(text_NS)}


@dataclass(frozen=True)
class TrainingTexts:
    """Sequences beside those that are calibrated on, of the same length, int64, for what is trained on more.

    further_NS: of the corpus, those that come after the calibration sequences, shape (M, S).
    rehearsed_NS: of another kind, of which a stage learns what the dense model predicts, shape (R, S).
    recovery: what weights are trained on, where they are.
    """

    further_NS: Tensor = NO_TOKENS_NS
    rehearsed_NS: Tensor = NO_TOKENS_NS
    recovery: RecoveryText | None = None


NO_TEXTS = TrainingTexts()
"""Those of what is trained on nothing else."""


@dataclass(frozen=True)
class Problem:
    """A model to be pruned, to a budget, on data.

    runner: the dense model, and how models are run.
    tokens_NS: calibration sequences, shape (N, S), int64; none for a method that needs none.
    held_out_NS: more of them that nothing is trained on, for choosing; none where nothing is to be chosen.
    declared: the statistics that the method, and what makes up for its cut, look at.
    training_texts: more of them, for stages that are trained.
    own_statistic_samples: sequences, at most, that statistics look at where the configuration does not say.
    sharing: the run through several ratios that it is of; None for one of its own.
    inplace: whether the pruned model may be made in the place of the dense one, which nobody needs afterwards.
    known: statistics that are gathered, for all problems that share it.
    """

    runner: Runner
    budget: Budget
    tokens_NS: Tensor
    held_out_NS: Tensor
    config: GRASPConfig
    declared: tuple[Statistic[Any], ...] = ()
    training_texts: TrainingTexts = NO_TEXTS
    own_statistic_samples: int | None = None
    sharing: Sharing | None = None
    inplace: bool = False
    known: KnownStatistics = field(default_factory=KnownStatistics)

    @property
    def model(self) -> PreTrainedModel:
        """The dense model."""
        return self.runner.model

    @property
    def family(self) -> Family:
        """Its family."""
        return self.runner.family

    @property
    def inventory(self) -> UnitInventory:
        """Its units."""
        return self.runner.inventory

    @cached_property
    def teacher(self) -> Teaches:
        """The dense model as the teacher of all that is trained, which reads every sequence once."""
        return RememberedTeacher(self.runner) if self.sharing is None else self.sharing.teacher

    def at(self, budget: Budget, config: GRASPConfig) -> Problem:
        """The same at another budget, as its configuration has it; statistics are gathered once for both."""
        return replace(self, budget=budget, config=config)

    @property
    def statistic_tokens_NS(self) -> Tensor:
        """The sequences that statistics look at: the first ones."""
        return self.tokens_NS[: self.config.statistic_samples or self.own_statistic_samples]

    @cached_property
    def statistics(self) -> Gathered:
        """The declared statistics by themselves, as in `problem.statistics[MOMENTS]`.

        Inputs are watched of the maps that the cut goes through: those that lead out of the blocks, or all of a block
        where single weights are cut.
        """
        maps = None if self.config.pattern == "units" else tuple(linears(self.model, self.runner.blocks))
        return Gathered(
            self.runner,
            self.declared,
            self.statistic_tokens_NS,
            maps,
            gradient_checkpointing=self.config.gradient_checkpointing,
            known=self.known,
        )
