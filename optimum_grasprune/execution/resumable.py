"""A runner whose work is kept in the state of the run: what was worked out before is not worked out again.

Shape suffixes: N sequences, S sequence, U units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import JsonValue
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from ..errors import GraspruneError
from ..statistics import Statistic
from ..surgery import Draft
from .around import Around
from .course import Course
from .distillation import LiveTeacher, Teacher, Teaches
from .run_state import Piece, RunState
from .runner import Runner, Training
from .shared_state import SharedState
from .state_file import Standing, digest
from .trainable import Trainable

_OF_NO_MATTER = ("_name_or_path", "transformers_version")
"""What a model's configuration says and no result depends on."""


class Resumable(Around):
    """Another runner, which does what is not known yet.

    Kept are mean losses, statistics, trainings and what a teacher came to; what runs layer by layer is run again.
    """

    def __init__(self, inner: Runner, state: RunState) -> None:
        super().__init__(inner)
        self.state = state

    @classmethod
    def begun(
        cls, inner: Runner, state: RunState, of: Mapping[str, JsonValue], texts: Mapping[str, Tensor]
    ) -> Resumable:
        """The runner of a run whose state is taken up, as `RunState.begin` does. texts: as in `contents_of`.

        Raises GraspruneError where several processes would each keep a state of their own.
        """
        if inner.peers.count > 1 and not isinstance(state, SharedState):
            raise GraspruneError("a run of several processes keeps its state in a SharedState, not in a RunState")
        # Sums are made in an order that depends on it.
        of = {**of, "number of processes": inner.peers.count}
        contents = partial(contents_of, inner, texts)
        if inner.in_step:  # whose weights all processes read at once, while the first one alone asks, at any time
            known = contents()
            contents = partial(dict, known)
        state.begin(of, contents)
        return cls(inner, state)

    def beside(self, model: PreTrainedModel) -> Self:
        """See `Runner.beside`."""
        return type(self)(self.inner.beside(model), self.state)

    def built(self, draft: Draft, *, inplace: bool = False, again: bool = False) -> PreTrainedModel:
        """See `Runner.built`."""
        if inplace:
            self.release()
        return super().built(draft, inplace=inplace, again=again)

    def release(self) -> None:
        """See `Runner.release`; by its weights the model is known again, whenever the state is first written."""
        self.state.identify()
        super().release()

    def clock(self) -> float:
        """See `Runner.clock`."""
        return self.state.clock()

    def mean_loss(self, windows_NS: Tensor, batch_size: int | None = None) -> float:
        """See `Runner.mean_loss`."""
        of = fingerprint(windows_NS, batch_size)
        return self.state.number("loss", of, lambda: self.inner.mean_loss(windows_NS, batch_size))

    def gather(
        self,
        statistics: Iterable[Statistic[Any]],
        tokens_NS: Tensor,
        maps: Sequence[str] | None = None,
        *,
        kept_U: Tensor | None = None,
        gradient_checkpointing: bool = False,
        piece: Piece | None = None,
    ) -> dict[Statistic[Any], Any]:
        """See `Runner.gather`."""
        statistics = list(statistics)
        of = fingerprint(tokens_NS, [type(each).__name__ for each in statistics], maps)
        return self.inner.gather(
            statistics,
            tokens_NS,
            maps,
            kept_U=kept_U,
            gradient_checkpointing=gradient_checkpointing,
            piece=piece or self.state.piece("statistics", of),
        )

    def learn(
        self,
        trained: Trainable,
        tokens_NS: Tensor,
        training: Training,
        dense: Teaches | None = None,
        status: Callable[[], Sequence[str]] = tuple,
        course: Course | None = None,
    ) -> list[Tensor]:
        """See `Runner.learn`."""
        course = course or Course({})
        course.piece = self.state.piece(training.label, fingerprint(tokens_NS, type(trained).__name__, vars(training)))
        numbers = course.finished(trained)
        if numbers is None:
            numbers = self.inner.learn(trained, tokens_NS, training, dense or self, status, course)
            course.finish(trained, numbers)
        else:
            self.trainings.append(course.traced(training.label))
        return numbers

    def teacher(
        self, tokens_NS: Tensor, *, live: bool = False, hidden_NSD: Tensor | None = None
    ) -> Teacher | LiveTeacher:
        """See `Runner.teacher`."""
        if live:
            return self.inner.teacher(tokens_NS, live=True)
        # Who remembers what a teacher said asks for less of it than a run that goes on, and remembers nothing.
        piece = self.state.piece("teacher", fingerprint(tokens_NS), may_differ=True)
        kept = piece.kept()
        teacher = self.inner.teacher(tokens_NS, hidden_NSD=hidden_NSD if kept is None else kept[1]["hidden"])
        if isinstance(teacher, Teacher):
            piece.finish(Standing(of=piece.of, step=len(tokens_NS)), {"hidden": teacher.hidden_NSD})
        return teacher


def fingerprint(tokens_NS: Tensor, *others: object) -> str:
    """What tells work from other work of the same run: a hash of the sequences and of how they are gone through."""
    text = digest([("tokens", tokens_NS)]) + json.dumps(others)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def contents_of(runner: Runner, texts: Mapping[str, Tensor]) -> dict[str, JsonValue]:
    """What a run works on, by hashes, and where: what tells it from another run of the same options.

    texts: all sequences that it looks at, by name.
    """
    model = runner.model
    described = {name: value for name, value in model.config.to_dict().items() if name not in _OF_NO_MATTER}
    configuration = json.dumps(described, sort_keys=True, default=str)
    return {
        "model": digest(
            (name, runner.parameter(name) if tensor.is_meta else tensor) for name, tensor in model.state_dict().items()
        )[:16],
        "model's configuration": hashlib.sha256(configuration.encode()).hexdigest()[:16],
        "text": digest(texts.items())[:16],
        "place of computation": str(runner.device),
    }
