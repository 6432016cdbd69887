"""What a run is asked for, in numbers: sequences and tokens of each stage. No weights are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig
from typing_extensions import Self

from ..calibration_data import rehearses
from ..config import GRASPConfig, RunnerName
from ..corpora.sequences import CALIBRATION_TOKENS
from ..corpora.sources import SAMPLED, names_in
from ..execution import may_be_held
from ..families import family_of
from ..gates.train import teacher_share
from ..loading import calibration_length, empty_model
from ..methods import get_method
from ..methods.base import Method
from ..methods.ddp import KL_WEIGHT as DDP_KL_WEIGHT
from ..recovery.base import Stage
from ..recovery.chain import Chain
from ..recovery.diagonals import KL_WEIGHT as DIAGONAL_KL_WEIGHT
from ..recovery.fine_tuning import KL_WEIGHT as FINE_TUNING_KL_WEIGHT
from ..recovery.least_squares import LeastSquares
from ..selection.choose import FINALISTS
from ..statistics import Statistic
from .sizes import Sizes


def runners_for(processes: int) -> tuple[RunnerName, ...]:
    """In the order in which they are tried: each needs less memory than the one before, and more time.

    processes: that do the work together. Several would each offload a model of their own, and share one instead.
    """
    return ("whole", "offloaded", "streamed") if processes == 1 else ("whole", "sharded", "streamed")


@dataclass(frozen=True)
class Job:
    """One run of `export`.

    element: bytes of a number in the dtype that it computes in.  length: tokens in a calibration sequence.
    ratios: keep ratios, largest first.  runner: how the model is run.
    device: the kind of device, as torch calls it; on "cpu" and "mps" its memory is the host's.
    replays: whether a saved plan says what is cut, so that nothing is chosen.
    processes: that do the run together; this is the job of one of them.
    """

    config: GRASPConfig
    sizes: Sizes
    element: int
    length: int
    ratios: tuple[float, ...]
    runner: RunnerName = "whole"
    device: str = "cpu"
    replays: bool = False
    processes: int = 1

    @classmethod
    def of(
        cls,
        config: GRASPConfig,
        model_config: PreTrainedConfig,
        *,
        device: str,
        ratios: tuple[float, ...] = (),
        runner: RunnerName = "whole",
        replays: bool = False,
        processes: int = 1,
    ) -> Self:
        """By a recipe and the configuration of a model. Raises ModelError, UnsupportedFamilyError or OptionError."""
        sizes = Sizes.of(empty_model(model_config), family_of(model_config))
        dtype = model_config.dtype if config.dtype == "auto" else config.dtype
        return cls(
            config=config,
            sizes=sizes,
            element=_bytes_of(dtype),
            length=calibration_length(model_config, config.seq_len),
            ratios=ratios or (config.keep_ratio,),
            runner=runner,
            device=device,
            replays=replays,
            processes=processes,
        )

    def asking(self, **options: object) -> Self:
        """The same with other options of the recipe."""
        config = self.config.model_copy(update=options)
        length = int(config.seq_len) if config.seq_len is not None else self.length
        element = self.element if config.dtype == "auto" else _bytes_of(config.dtype)
        return replace(self, config=config, length=length, element=element)

    @property
    def by_layers(self) -> bool:
        """Whether one decoder layer is in memory at a time."""
        return self.runner in ("sharded", "streamed")

    @property
    def in_a_step(self) -> int:
        """Sequences of a step of training that one process takes."""
        return -(-self.config.batch_size // self.processes)

    @property
    def in_a_recovery_step(self) -> int:
        """The same while weights are trained."""
        return -(-self.config.recovery_batch_size // self.processes)

    @property
    def is_on_host(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.device in ("cpu", "mps")

    @cached_property
    def method(self) -> Method:
        """How units are chosen."""
        return get_method(self.config.method)

    @cached_property
    def chain(self) -> Chain:
        """What makes up for the cut, of several ratios at all but the smallest."""
        several = len(self.ratios) > 1
        return self.method.chain_for(self.method.beside_smaller(self.config) if several else self.config)

    @cached_property
    def smallest_chain(self) -> Chain:
        """What does at the smallest ratio."""
        return self.method.chain_for(self.config)

    @property
    def rebuilt(self) -> tuple[float, ...]:
        """Ratios whose models are rebuilt, largest first."""
        if self.chain.rebuilding_stages:
            return self.ratios
        return self.ratios[-1:] if self.smallest_chain.rebuilding_stages else ()

    @property
    def share(self) -> float:
        """Of the units, how much stays at the largest ratio."""
        if self.config.pattern != "units":
            return 1.0
        ratio, prunable, everything = self.ratios[0], self.sizes.prunable, self.sizes.parameters
        if self.config.budget == "total" and prunable:
            return min(1.0, max(0.0, 1 - (1 - ratio) * everything / prunable))
        return ratio

    def share_at(self, ratio: float) -> float:
        """The same at another of the ratios."""
        return ratio / self.ratios[0] * self.share

    @property
    def cut(self) -> Sizes:
        """The largest of the pruned models."""
        return self.sizes.kept(self.share)

    def cut_at(self, ratio: float) -> Sizes:
        """The pruned model of one of the ratios."""
        return self.sizes.kept(self.share_at(ratio))

    @property
    def calibrated(self) -> int:
        """Calibration sequences."""
        return self.config.num_samples or max(1, CALIBRATION_TOKENS // self.length)

    @property
    def in_statistics(self) -> int:
        """Sequences that statistics and least squares look at."""
        return min(self.method.statistic_samples_for(self.config), self.calibrated)

    @property
    def held_out(self) -> int:
        """Sequences that choices are judged on."""
        return self.method.held_out_for(self.config)

    @property
    def has_gradients(self) -> bool:
        """Whether statistics take a backward pass."""
        return any(each.from_gradients for each in self._statistics)

    @property
    def has_statistics(self) -> bool:
        """Whether there are any."""
        return bool(self._statistics)

    @property
    def _statistics(self) -> set[Statistic[Any]]:
        of_stages = {*self.chain.statistics, *self.smallest_chain.statistics}
        return {*self.method.statistics_for(self.config), *of_stages}

    @property
    def least_squares(self) -> LeastSquares | None:
        """The stage of that name, if it is asked for."""
        return next((stage for stage in self.chain.stages if isinstance(stage, LeastSquares)), None)

    @property
    def trained_for_units(self) -> int:
        """Trainings that the choice of units takes: one that serves all ratios, or one a ratio."""
        if self.method.training is None:
            return 0
        return 1 if self.method.trains_at_all_budgets else len(self.ratios)

    @property
    def has_gates(self) -> bool:
        """Whether those are gates, of which there are snapshots."""
        return self.method.training == "gates"

    @property
    def candidates(self) -> int:
        """Cuts that are judged."""
        if not self.has_gates:
            return 1
        return (self.config.start != "zero") + self.config.snapshots + bool(self.config.search_trials)

    @property
    def refitted(self) -> int:
        """Cuts whose weights are refitted, with each of the settings that are tried."""
        if self.least_squares is None:
            return 0
        if not self.held_out:
            return 1
        finalists = 1 if self.refits_beside_smallest else FINALISTS
        return min(finalists, self.candidates) * len(self.least_squares.variants())

    @property
    def refits_beside_smallest(self) -> bool:
        """Whether weights are refitted at all ratios but the smallest; how, the next larger one decides."""
        return bool(self.chain.weight_stages) and not self.smallest_chain.weight_stages

    def teaches(self, default: float) -> bool:
        """Whether what is trained has the dense model as its teacher. default: the stage's own `kl_weight`."""
        return (default if self.config.kl_weight is None else self.config.kl_weight) > 0

    @property
    def units_taught(self) -> bool:
        """Whether what is trained to choose units has."""
        if self.config.method == "ddp":
            return self.teaches(DDP_KL_WEIGHT)
        return teacher_share(self.config, 1 - min(self.ratios)) > 0

    @property
    def rehearsed(self) -> int:
        """Sequences beside the calibration text that diagonals are trained on."""
        if not self._may_rehearse or not rehearses(self.config):
            return 0
        return self.config.rehearsed_sequences(self.calibrated, self.length)

    @property
    def _may_rehearse(self) -> bool:
        return SAMPLED not in names_in(self.config.dataset)

    @property
    def diagonal_sequences(self) -> int:
        """Sequences that diagonals are trained on, in all."""
        return self.config.diagonal_sequences(self.calibrated, self.length)

    @property
    def diagonals_taught(self) -> bool:
        """Whether diagonals have the dense model as their teacher."""
        return self.rehearsed > 0 or self.teaches(DIAGONAL_KL_WEIGHT)

    @property
    def recovery_sequences(self) -> tuple[int, int]:
        """Sequences that weights are trained on: of the calibration corpus, and those rehearsed."""
        own, rehearsed = self.config.recovery_sequences(self.length)
        return (own, rehearsed) if self._may_rehearse else (own + rehearsed, 0)

    @property
    def recovery_taught(self) -> bool:
        """Whether weights that are trained have the dense model as their teacher."""
        return self.recovery_sequences[1] > 0 or self.teaches(FINE_TUNING_KL_WEIGHT)

    @property
    def recovery_holds(self) -> bool:
        """Whether what the dense model has to teach those weights is held, so that it may be gone meanwhile."""
        tokens = sum(self.recovery_sequences) * self.length
        return not self.recovery_taught or may_be_held(tokens, self.sizes.hidden, self.element)

    @property
    def taught_sequences(self) -> int:
        """Sequences that the dense model reads as a teacher that is remembered, each once for all that is trained.

        Of the corpus all begin with the same ones; what is rehearsed differs with how much of it there is.
        """
        return self._taught(self.chain.trained_stages)

    @property
    def taught_before_recovery(self) -> int:
        """The same of all that comes before weights are trained."""
        return self._taught(stage for stage in self.chain.trained_stages if not stage.fine_tunes)

    def _taught(self, stages: Iterable[Stage]) -> int:
        own = self.calibrated if self.trained_for_units and self.units_taught else 0
        rehearsed: set[int] = set()
        for stage in stages:
            if stage.name == "diagonals" and self.diagonals_taught:
                own = max(own, self.diagonal_sequences - self.rehearsed)
                rehearsed.add(self.rehearsed)
            elif stage.fine_tunes and self.recovery_taught and self.recovery_holds:
                own = max(own, self.recovery_sequences[0])
                rehearsed.add(self.recovery_sequences[1])
        return own + sum(rehearsed)


def _bytes_of(dtype: object) -> int:
    if not isinstance(dtype, str | torch.dtype):  # as a model is built where its configuration says nothing
        return torch.get_default_dtype().itemsize
    return (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
