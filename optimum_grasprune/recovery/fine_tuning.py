"""Training the weights of the pruned model: what LoRA and distillation have in common.

What comes out is tensors for parameters of the model, whatever was trained for them.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from ..execution import Course, Runner, Trainable, Training, may_be_held, weights_given
from ..execution.training import training_steps
from ..record import HeldOutLosses, RecoveryRecord
from ..units import PruningPlan
from .base import Learnt, TrainedStage
from .reference import Reference

if TYPE_CHECKING:
    from ..config import GRASPConfig
    from ..problem import RecoveryText

KL_WEIGHT = 0.5
"""What `kl_weight=None` is here."""

CLIP = 1.0
"""Largest norm of the gradient of all that is trained."""


class TrainableWeights(Trainable):
    """Numbers that come to weights of a model."""

    @abstractmethod
    def weights(self, numbers: Sequence[Tensor]) -> dict[str, Tensor]:
        """What they come to: tensors by the names of the model's parameters, each in its dtype and on its device."""


@dataclass(frozen=True)
class FineTuning(TrainedStage):
    """Trains on text of the calibration corpus, and keeps the state that text of another kind allows."""

    config: GRASPConfig

    learning_rate: ClassVar[float]
    """What `recover_learning_rate=None` is."""

    needs_sequences = True
    fine_tunes = True

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        return cls(config)

    @abstractmethod
    def trainable(self, runner: Runner) -> TrainableWeights:
        """What is trained of the pruned model that the runner runs."""

    def train(self, reference: Reference, pruned: PreTrainedModel, plan: PruningPlan) -> LearntWeights:
        """Train on the recovery's text, or on the calibration sequences where there is none of its own."""
        text, training, runner = reference.recovery_text, self._training(reference), reference.runner.beside(pruned)
        course = Course(text.judged_on)
        trained = self.trainable(runner)
        numbers = runner.learn(
            trained, text.tokens_NS, training, reference.teacher, status=course.status, course=course
        )
        weights = trained.weights(course.best or numbers)
        return LearntWeights(pruned, weights, plan, self._record(course, text))

    def taught_on(self, reference: Reference) -> Tensor | None:
        """Its text, where what the dense model makes of that is held; None where that would be too much."""
        tokens_NS, training = reference.recovery_text.tokens_NS, self._training(reference)
        if not training.taught:
            return tokens_NS[:0]
        return None if training.live_teacher else tokens_NS

    def _training(self, reference: Reference) -> Training:
        config, text, model = self.config, reference.recovery_text, reference.model
        return replace(
            Training.of(
                config,
                self.name,
                epochs=config.recover_epochs,
                learning_rate=config.recover_learning_rate or self.learning_rate,
                kl_weight=KL_WEIGHT,
                rehearsed=text.rehearsed,
            ),
            batch_size=config.recovery_batch_size,
            batch_option="--batch-size" if config.recover_batch_size is None else "--recover-batch-size",
            schedule="cosine",
            clip=CLIP,
            live_teacher=not may_be_held(text.tokens_NS.numel(), model.config.hidden_size, model.dtype.itemsize),
        )

    def _record(self, course: Course, text: RecoveryText) -> RecoveryRecord:
        count, length = text.tokens_NS.shape
        best = next((entry for entry in course.check_ups if entry.step == course.best_step), None)
        batch_size, epochs = self.config.recovery_batch_size, self.config.recover_epochs
        return RecoveryRecord(
            stage=self.name,
            tokens=min(count * epochs, course.step * batch_size) * length,
            steps=course.step,
            planned_steps=training_steps(count, epochs, batch_size),
            kept_step=course.best_step,
            before=HeldOutLosses(**course.check_ups[0].losses) if course.check_ups else None,
            after=HeldOutLosses(**best.losses) if best else None,
            watched=text.watched,
            minutes=round(course.minutes, 2),
        )


@dataclass(frozen=True)
class LearntWeights(Learnt):
    """Weights for a sliced model.

    weights: by the names of its parameters.  plan: what was kept.  training: an account of it.
    """

    pruned: PreTrainedModel
    weights: Mapping[str, Tensor]
    plan: PruningPlan
    training: RecoveryRecord

    @property
    def record(self) -> RecoveryRecord:
        """The account of the training."""
        return self.training

    @property
    def verdict(self) -> bool | None:
        """Whether any state was better than the one before, where that was looked at."""
        return None if self.training.before is None else self.training.kept_step > 0

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The weights stand in for the model's own."""
        with weights_given(self.pruned, list(self.weights)) as give:
            give(list(self.weights.values()))
            yield

    @torch.no_grad()
    def fold(self) -> PruningPlan:
        """New parameters in place of the old ones, which the dense model may share."""
        for name, weight in self.weights.items():
            path, _, leaf = name.rpartition(".")
            module = self.pruned.get_submodule(path)
            old = module.get_parameter(leaf)
            module.register_parameter(leaf, nn.Parameter(weight, requires_grad=old.requires_grad))
        return self.plan
