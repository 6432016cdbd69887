"""What an engine is to a benchmark: the modes it can be measured in, and a session that starts it and measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Generic, Literal, TypeVar

from ...errors import GraspruneError
from ..checkpoints import Checkpoint
from ..plan import Plan, Turn
from ..quantities import Quantity
from ..results import Run, RunOptions, Start

Announce = Callable[[str], None]
Running = TypeVar("Running")
"""What a session needs of a checkpoint that runs: a server, a model, or nothing."""


class BenchmarkError(GraspruneError):
    """A point could not be measured; the message names the checkpoint and the point."""


@dataclass(frozen=True)
class ElementSizes:
    """Bytes of one weight and of one element of the KV cache, as served."""

    weight: int
    kv: int


class Session(ABC, Generic[Running]):
    """Starts checkpoints and measures them, each as often as the benchmark asks; keeps what is told of the starts."""

    def __init__(self, plan: Plan, announce: Announce) -> None:
        self.plan, self.announce = plan, announce
        self.starts: list[Start] = []
        self.commands: list[str] = []

    @abstractmethod
    def running(self, checkpoint: Checkpoint, repetition: int, place: int) -> AbstractContextManager[Running]:
        """A checkpoint that runs for the time of a block. place: among those that run at once.

        Notes its start in `starts`. Raises GraspruneError when it does not run; nothing is left running.
        """

    @abstractmethod
    def measure(self, running: Running, turn: Turn) -> Run:
        """One measurement, `turn.measured(quantities by name)`; BenchmarkError when it fails.

        `prompt_tokens` and `output_tokens`, of a request, have to be among the quantities.
        """


@dataclass(frozen=True)
class Mode:
    """One way of measuring an engine.

    session: does it.  runs: what runs, in Markdown, for the page.  headline: quantities for the terminal.
    without: options of the command that mean nothing in it.  at_once: what a concurrency is.
    overflows: whether more sequences are asked for than the dense KV cache holds.
    inner: what changes fastest within a repetition; None for the checkpoints if all of them run together, else the
    points.
    """

    session: type[Session[Any]]
    runs: str
    headline: tuple[str, ...]
    without: tuple[str, ...] = ()
    at_once: str = "concurrency"
    overflows: bool = False
    inner: Literal["points", "checkpoints"] | None = None


class Engine(ABC):
    """An engine that serves checkpoints. Never instantiated: all it has belongs to the class.

    modes: by name, the usual one first.  quantities: that no other engine has, by name.  packages: whose versions are
    recorded beside the usual ones.  requires: packages, each with what is said where it is missing.
    """

    modes: ClassVar[Mapping[str, Mode]]
    quantities: ClassVar[Mapping[str, Quantity]] = {}
    packages: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[Mapping[str, str]] = {}

    @classmethod
    @abstractmethod
    def element_sizes(cls, options: RunOptions, stored: str) -> ElementSizes:
        """What weights and KV cache take by the options. stored: element type of the weights on disk."""

    @classmethod
    def check_installed(cls) -> None:
        """Raise GraspruneError where a package that the engine needs is missing."""
        for package, message in cls.requires.items():
            if find_spec(package) is None:
                raise GraspruneError(message)

    @classmethod
    def default_cache_bytes(cls) -> int | None:
        """Memory of the KV cache where none was asked for; None for what the engine finds."""
        return None
