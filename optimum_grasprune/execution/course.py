"""What looks on while numbers are trained: text that says which state is best, and a state to go on from.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..record import CheckUp
from .run_state import Content, Piece
from .state_file import Standing
from .trace import Trace, Traced

if TYPE_CHECKING:
    from .runner import Runner
    from .trainable import Trainable

CHECK_UPS = 10
"""How often in a training its texts are looked at, after the first time."""

PATIENCE = 5
"""Check-ups in a row without a lower mean loss than those before them, the first not counted, after which a training
ends: steps at the full learning rate make a model worse before the small ones at the end make it better."""


def best_of(check_ups: Sequence[CheckUp]) -> int:
    """Which of them is best: with the lowest mean over the texts, among those at which no text is worse than at first.

    So nothing is bought with text of another kind. The first is what training starts from; it wins draws.
    """
    first = check_ups[0].losses
    allowed = [
        index
        for index, check_up in enumerate(check_ups)
        if all(loss <= first[text] for text, loss in check_up.losses.items())
    ]
    return min(allowed, key=lambda index: sum(check_ups[index].losses.values()))


def is_over(check_ups: Sequence[CheckUp]) -> bool:
    """Whether so many of the last ones brought nothing that the training need not go on."""
    means = [sum(check_up.losses.values()) for check_up in check_ups[1:]]
    return len(means) > PATIENCE and min(means[:-PATIENCE]) <= min(means[-PATIENCE:])


class Course:
    """The course of one training.

    texts: sequences that nothing is trained on, by a name, each of shape (N, S), int64; where there are none, no state
    is better than the last.  piece: where the state is kept; None to keep none.  trace: what the steps come to.
    measured_by: what measures the texts; None for the runner that trains.
    """

    def __init__(self, texts: Mapping[str, Tensor], piece: Piece | None = None) -> None:
        self.texts, self.piece = texts, piece
        self.measured_by: Runner | None = None
        self.step, self.stopped = 0, False
        self.check_ups: list[CheckUp] = []
        self.best: list[Tensor] = []
        self.trace = Trace()
        self._minutes = 0.0
        self._since: float | None = time.monotonic()

    @property
    def minutes(self) -> float:
        """What the training took, in all runs that it was made in."""
        return self._minutes + (0.0 if self._since is None else (time.monotonic() - self._since) / 60)

    @property
    def best_step(self) -> int:
        """Steps after which the state was best; 0 where none is better than before."""
        return self.check_ups[best_of(self.check_ups)].step if self.check_ups else self.step

    def traced(self, label: str) -> Traced:
        """What there is to show of it. label: what was trained."""
        kept_step = self.best_step if self.check_ups else None
        return Traced(label, self.trace.tensors(), tuple(self.check_ups), kept_step)

    def status(self) -> list[str]:
        """What was found last, in words."""
        losses = self.check_ups[-1].losses if self.check_ups else {}
        return [f"{text.replace('_', ' ')} {loss:.3f}" for text, loss in losses.items()]

    def begin(
        self,
        runner: Runner,
        trained: Trainable,
        numbers: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        steps: int,
    ) -> int:
        """Take up the state that is kept, or look at where training starts. Returns the steps that are behind it.

        runner: of the model with the numbers in force.  steps: all there are, which is returned where it ended early.
        """
        self._since = time.monotonic()
        kept = None if self.piece is None else self.piece.kept()
        if kept is None:
            self._look(runner, numbers, 0)
        else:
            standing, tensors = kept
            self._take_up(trained, standing, tensors)
            _restore(numbers, optimizer, tensors, self.step)
        return steps if self.stopped else self.step

    def looks_after(self, step: int, steps: int) -> bool:
        """Whether the texts are looked at after a step."""
        return bool(self.texts) and step * CHECK_UPS // steps > (step - 1) * CHECK_UPS // steps

    def goes_on(
        self,
        runner: Runner,
        trained: Trainable,
        numbers: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        step: int,
        steps: int,
    ) -> bool:
        """Look on after a step, and say whether another one is worth it."""
        self.step = step
        if self.looks_after(step, steps):
            self._look(runner, numbers, step)
        if self.piece is not None:
            self.piece.step_done(
                lambda: self._content(trained, {**_named("number", numbers), **_moments(numbers, optimizer)})
            )
        return not self.stopped

    def finished(self, trained: Trainable) -> list[Tensor] | None:
        """What the numbers came to in a training that was finished, on the CPU, and all that was seen of it.

        None where it was not.
        """
        if self.piece is None or not self.piece.finished or (kept := self.piece.kept()) is None:
            return None
        standing, tensors = kept
        self._take_up(trained, standing, tensors)
        self._since = None
        return _all_of("number", tensors)

    def finish(self, trained: Trainable, numbers: Sequence[Tensor]) -> None:
        """Keep what the numbers came to."""
        self._minutes, self._since = self.minutes, None
        if self.piece is not None:
            self.piece.finish(*self._content(trained, _named("number", numbers)))

    def _content(self, trained: Trainable, tensors: Mapping[str, Tensor]) -> Content:
        of = "" if self.piece is None else self.piece.of
        standing = Standing(
            of=of, step=self.step, stopped=self.stopped, check_ups=tuple(self.check_ups), minutes=self.minutes
        )
        noted = {f"noted.{name}": tensor for name, tensor in trained.noted().items()}
        trace = {f"trace.{name}": tensor for name, tensor in self.trace.tensors().items()}
        return standing, {**tensors, **_named("best", self.best), **noted, **trace}

    def _take_up(self, trained: Trainable, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
        self._minutes, self.step, self.stopped = standing.minutes, standing.step, standing.stopped
        self.check_ups, self.best = list(standing.check_ups), _all_of("best", tensors)
        trained.take_up(_under("noted.", tensors))
        self.trace.take_up(_under("trace.", tensors))

    def _look(self, runner: Runner, numbers: Sequence[Tensor], step: int) -> None:
        if not self.texts:
            return
        measured_by = self.measured_by or runner
        losses = {text: measured_by.mean_loss(windows_NS) for text, windows_NS in self.texts.items()}
        self.check_ups.append(CheckUp(step=step, losses=losses))
        best = best_of(self.check_ups)
        if best == len(self.check_ups) - 1:
            self.best = [number.detach().cpu().clone() for number in numbers]
        self.stopped = is_over(self.check_ups)


def _named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _all_of(name: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The inverse of `_named`, among others."""
    count = sum(each.startswith(f"{name}.") for each in tensors)
    return [tensors[f"{name}.{index}"] for index in range(count)]


def _moments(numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments of the numbers; how many steps they are of is counted elsewhere."""
    moments = {name: [optimizer.state[number][name] for number in numbers] for name in ("exp_avg", "exp_avg_sq")}
    return {name: tensor for key, tensors in moments.items() for name, tensor in _named(key, tensors).items()}


@torch.no_grad()
def _restore(
    numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], step: int
) -> None:
    for index, number in enumerate(numbers):
        number.copy_(tensors[f"number.{index}"])
        if "exp_avg.0" in tensors:  # not where the training is finished
            moments = {name: tensors[f"{name}.{index}"].to(number.device) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[number] = {"step": torch.tensor(float(step), dtype=torch.float32), **moments}
