"""What a recovery stage is: a way to make up for a cut.

There are three kinds. A `WeightStage` works out weights, in one go, from statistics; the best candidates are judged
with each of its variants. A `RebuildingStage` works out weights of the winner, which is built by then, and a
`TrainedStage` learns on it, which costs more. Each is kept only if the loss on held-out data says so, where there are
any; what is rebuilt is judged with what is trained on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from ..execution import Runner, Trainable, Training
from ..record import RecoveryRecord
from ..statistics import Statistic
from ..units import PruningPlan
from .reference import Reference, Settings, Trial

if TYPE_CHECKING:
    from ..config import GRASPConfig

Edit = Callable[[PreTrainedModel], None]
"""What changes a pruned model in place."""


class Stage(ABC):
    """The contract of both kinds. The class attributes are what the rest of the project knows of a stage."""

    name: ClassVar[str]
    """The name that it is registered under."""

    sentence: ClassVar[str]
    """For the model card: what is different in the pruned model, without a full stop."""

    changes_weights: ClassVar[bool] = True
    """Whether weights that were kept get other values; for the card."""

    fine_tunes: ClassVar[bool] = False
    """Whether weights are trained; for the card."""

    statistics: ClassVar[tuple[Statistic[Any], ...]] = ()
    """The statistics of the dense model that it looks at, in `reference.statistics`."""

    needs_sequences: ClassVar[bool] = False
    """Whether it looks at the calibration sequences themselves."""

    options: ClassVar[tuple[str, ...]] = ()
    """The fields of `GRASPConfig` that are this stage's alone: no choice of units depends on them."""

    in_plan: ClassVar[bool] = False
    """Whether the plan holds what the stage came to, so that a replay takes it from there and looks at no data."""

    rehearses: ClassVar[bool] = False
    """Whether it learns from text beside the calibration corpus too, where that is asked for."""

    output_bias: ClassVar[bool] = False
    """Whether it adds a bias to every output projection that has none; a total budget pays for them."""

    single_weights: ClassVar[bool] = False
    """Whether it can make up for single weights too, and not for whole units only."""

    @classmethod
    def looks_at_data(cls) -> bool:
        """Whether it looks at anything beside the weights."""
        return cls.needs_sequences or bool(cls.statistics)

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage as a configuration asks for it, in which every "auto" is already the method's own value."""
        return cls()

    def check(self) -> None:  # noqa: B027
        """Raise OptionError where the stage cannot do what the configuration asks for."""

    @classmethod
    def held_by(cls, plan: PruningPlan) -> bool:
        """Whether this plan holds what the stage came to."""
        return False

    @abstractmethod
    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Do again, in place, what the stage did when a checkpoint was made.

        kept: what the stages before this one came to.  recorded: the saved plan, and the settings of its record.
        Returns the plan with what this stage adds to it.
        """


class WeightStage(Stage):
    """Works out weights from the dense model and statistics. A subclass writes `refit`."""

    replaces_multipliers: ClassVar[bool] = False
    """Whether it works the output projections out afresh, so that what they were multiplied by is of no account."""

    settings: ClassVar[tuple[str, ...]] = ()
    """Names of what differs between the variants; the record holds the values in force under them."""

    def variants(self) -> tuple[Settings, ...]:
        """The settings that are tried where held-out data can choose; the first is taken where they cannot."""
        return ({},)

    @abstractmethod
    def refit(self, reference: Reference, trial: Trial, pruned: PreTrainedModel) -> None:
        """Change the weights of a model that was cut as the trial says, in place."""

    def refits(self, reference: Reference, trials: Sequence[Trial]) -> list[Edit]:
        """`refit` of every trial, for a stage that can share work between them; what is shared is done here.

        All that may be shared is what follows from the dense model: other stages may have changed the pruned ones.
        """
        return [partial(self.refit, reference, trial) for trial in trials]

    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Refit to the same data with the recorded settings."""
        self.refit(reference, Trial(kept, recorded.settings), pruned)
        return kept


class RebuildingStage(Stage):
    """Works out weights of a sliced model, in place, for training to start from. A subclass writes `rebuild`."""

    @abstractmethod
    def rebuild(self, reference: Reference, pruned: Runner, plan: PruningPlan) -> None:
        """Change weights of a sliced model, in place, inside `pruned.editing`. plan: what was kept of the dense one."""

    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Work them out again from the same data."""
        self.rebuild(reference, reference.runner.beside(pruned), kept)
        return kept


class TrainedStage(Stage):
    """Learns something on the calibration sequences. A subclass writes `train`."""

    starts_refitted: ClassVar[bool] = False
    """Whether weights that were refitted before it are kept for its sake: they may come to their own only with it."""

    def taught_on(self, reference: Reference) -> Tensor | None:
        """All sequences of which it asks `reference.teacher`, shape (N, S), none where it has no teacher.

        None where it needs the dense model for more than that; then both models are in memory while it trains.
        """
        return None

    @abstractmethod
    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> Learnt:
        """Learn on a sliced model, which stays as it is. plan: what was kept of the dense one."""

    def replay(self, reference: Reference, pruned: PreTrainedModel, kept: PruningPlan, recorded: Trial) -> PruningPlan:
        """Train again on the same data; a stage whose result is in the plan takes it from there."""
        return self.train(reference, pruned, kept).fold()


class NumbersStage(TrainedStage):
    """Learns numbers for units, or for features of maps, so that one training can serve several ratios' models."""

    @abstractmethod
    def course(self, reference: Reference, cut: float) -> tuple[Tensor, Training]:
        """What it is trained on, shape (N, S), and how it goes through that. cut: as `share_cut` has it."""

    @abstractmethod
    def acting(self, pruned: Runner) -> Trainable:
        """The numbers on a sliced model: one tensor, whose zeros change nothing."""

    @abstractmethod
    def places(self, pruned: Runner, dense: Runner, plan: PruningPlan) -> Tensor:
        """Where its numbers of a sliced model are among those of the dense one, shape (numbers,), int64, on the CPU."""

    @abstractmethod
    def count(self, pruned: Runner, dense: Runner) -> int:
        """Numbers of the dense model. pruned: any sliced model."""

    @abstractmethod
    def learnt(self, numbers: Tensor, pruned: Runner, plan: PruningPlan) -> Learnt:
        """What they came to. numbers: on the CPU."""

    def taught_on(self, reference: Reference) -> Tensor:
        """All that it is trained on where it has a teacher."""
        tokens_NS, training = self.course(reference, cut=0.0)
        return tokens_NS if training.taught else tokens_NS[:0]

    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> Learnt:
        """Learn the numbers, or take those that were learnt together with other ratios'."""
        runner, numbers = reference.runner.beside(pruned), reference.learnt
        if numbers is None:
            tokens_NS, training = self.course(reference, share_cut(plan, reference.runner))
            (numbers,) = runner.learn(self.acting(runner), tokens_NS, training, reference.teacher)
        return self.learnt(numbers, runner, plan)


def share_cut(plan: PruningPlan, dense: Runner) -> float:
    """The share of the prunable parameters that a plan cuts."""
    return 1 - plan.mask(dense.inventory).kept_cost / dense.inventory.total_cost


class Learnt(ABC):
    """What training came to: it can be tried before it is kept."""

    @property
    def verdict(self) -> bool | None:
        """Whether it is better than nothing by what training itself looked at; None leaves that to held-out data."""
        return None

    @property
    def record(self) -> RecoveryRecord | None:
        """What the record says of it beside the name of the stage."""
        return None

    @abstractmethod
    def in_force(self) -> AbstractContextManager[object]:
        """Inside the block the pruned model computes with it; afterwards it is as it was."""

    @abstractmethod
    def fold(self) -> PruningPlan:
        """Put it into the pruned model for good; returns the plan with what belongs there."""
