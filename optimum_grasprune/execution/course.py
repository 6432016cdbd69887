"""What looks on while weights are trained: text that says which state is best, and a file to go on from.

Shape suffixes: N sequences, S sequence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .state_file import CheckUp, Standing, StateFile

if TYPE_CHECKING:
    from .runner import Runner

CHECK_UPS = 10
"""How often in a training its texts are looked at, after the first time."""

PATIENCE = 5
"""Check-ups in a row without a better state after which a training ends: the last ones, at small learning rates, bring
most, so that it is given half of its length."""


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


class Course:
    """The course of one training.

    texts: sequences that nothing is trained on, by a name, each of shape (N, S), int64; where there are none, no state
    is better than the last.  file: where the state is kept; None to keep none.
    """

    def __init__(self, texts: Mapping[str, Tensor], file: StateFile | None = None) -> None:
        self.texts, self.file = texts, file
        self.step, self.stopped = 0, False
        self.check_ups: list[CheckUp] = []
        self.best: list[Tensor] = []
        self._minutes, self._since = 0.0, time.monotonic()

    @property
    def minutes(self) -> float:
        """What the training took, in all runs that it was made in."""
        return self._minutes + (time.monotonic() - self._since) / 60

    @property
    def best_step(self) -> int:
        """Steps after which the state was best; 0 where none is better than before."""
        return self.check_ups[best_of(self.check_ups)].step if self.check_ups else self.step

    def status(self) -> list[str]:
        """What was found last, in words."""
        losses = self.check_ups[-1].losses if self.check_ups else {}
        return [f"{text.replace('_', ' ')} {loss:.3f}" for text, loss in losses.items()]

    def begin(self, runner: Runner, numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer, steps: int) -> int:
        """Take up the state that is kept, or look at where training starts. Returns the steps that are behind it.

        runner: of the model with the numbers in force.  steps: all there are, which is returned where it ended early.
        """
        self._since = time.monotonic()
        kept = None if self.file is None else self.file.read()
        if kept is None:
            self._look(runner, numbers, 0)
        else:
            standing, tensors = kept
            self._minutes, self.step, self.stopped = standing.minutes, standing.step, standing.stopped
            self.check_ups = list(standing.check_ups)
            self.best = [tensors[f"best.{index}"] for index in range(len(numbers))] if self.texts else []
            _restore(numbers, optimizer, tensors, self.step)
        return steps if self.stopped else self.step

    def goes_on(
        self, runner: Runner, numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> bool:
        """Look on after a step, and say whether another one is worth it."""
        self.step = step
        due = step * CHECK_UPS // steps > (step - 1) * CHECK_UPS // steps
        if due:
            self._look(runner, numbers, step)
        if self.file is not None and (due or step % self.file.every == 0):
            standing = Standing(
                of=self.file.of,
                step=step,
                stopped=self.stopped,
                check_ups=tuple(self.check_ups),
                minutes=self.minutes,
            )
            self.file.write(standing, {**_state(numbers, optimizer), **_named("best", self.best)})
        return not self.stopped

    def _look(self, runner: Runner, numbers: Sequence[Tensor], step: int) -> None:
        if not self.texts:
            return
        losses = {text: runner.mean_loss(windows_NS) for text, windows_NS in self.texts.items()}
        self.check_ups.append(CheckUp(step=step, losses=losses))
        best = best_of(self.check_ups)
        if best == len(self.check_ups) - 1:
            self.best = [number.detach().cpu().clone() for number in numbers]
        self.stopped = len(self.check_ups) - 1 - best >= PATIENCE


def _named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}


def _state(numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The numbers and AdamW's moments of them; how many steps they are of is counted elsewhere."""
    moments = {name: [optimizer.state[number][name] for number in numbers] for name in ("exp_avg", "exp_avg_sq")}
    named = [_named(name, tensors) for name, tensors in {"number": numbers, **moments}.items()]
    return {name: tensor.detach() for part in named for name, tensor in part.items()}


@torch.no_grad()
def _restore(
    numbers: Sequence[Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], step: int
) -> None:
    for index, number in enumerate(numbers):
        number.copy_(tensors[f"number.{index}"])
        moments = {name: tensors[f"{name}.{index}"].to(number.device) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[number] = {"step": torch.tensor(float(step), dtype=torch.float32), **moments}
