"""The one display of what is going on: a bar on a terminal and in a notebook, a line now and then in a log.

Stages nest: a search measures losses, and measuring one takes a while of its own. Only the outermost stage is drawn; it
says in its status how far the stages inside it are.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol, TypeVar

from huggingface_hub import constants
from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm
from transformers.utils import logging

Item = TypeVar("Item")

LOG_INTERVAL = 30.0
"""Seconds between two lines where the output is no terminal; what takes less leaves none."""

_REDRAW_INTERVAL = 0.1
_STATUS_INTERVAL = 1.0
_open: list[Bar] = []


class Bar:
    """A stage of work while it is going on. It is made by `bar` and `track`."""

    def __init__(self, total: int | None, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done, self.text = 0, ""
        self._told = -math.inf
        # Drawn once for all stages inside it.
        self._display: _Display = _open[0]._display if _open else _display_of(self)
        _open.append(self)

    def update(self, count: int = 1) -> None:
        """Another `count` units are done."""
        self.done += count
        self._show()

    def status(self, text: str) -> None:
        """Show how it is going, as in "loss 3.120", until told otherwise."""
        self.text, self._told = text, monotonic()
        self._show()

    @property
    def status_is_old(self) -> bool:
        """Whether a second has passed since the last one; to work one out may be work, or mean to wait for a device."""
        return monotonic() - self._told >= _STATUS_INTERVAL

    def _show(self) -> None:
        if self in _open:  # not closed by what it was part of
            self._display.show(_open[0], _statuses())

    def close(self) -> None:
        """Leave the stage, and all stages inside it; the display of the outermost one ends with it."""
        if self not in _open:
            return
        outermost = _open[0] is self
        del _open[_open.index(self) :]
        if outermost:
            self._display.close(self)


@contextmanager
def bar(total: int | None, label: str, unit: str = "step") -> Iterator[Bar]:
    """A stage of `total` units, None if nobody knows how many. label: what is being done, as in "gates"."""
    stage = Bar(total, label, unit)
    try:
        yield stage
    finally:
        stage.close()


def track(iterable: Iterable[Item], label: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """The items, one unit of a stage each. total: how many there are, where the iterable has no length."""
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    if total == 0:
        return
    with bar(total, label, unit) as stage:
        for item in iterable:
            yield item
            stage.update()


@contextmanager
def tidy() -> Iterator[None]:
    """Stages that are still open when the block ends are closed, so that an error starts on a line of its own.

    A loop over `track` ends its stage by itself; an iterator that is held in a variable lives on with the traceback.
    """
    depth = len(_open)
    try:
        yield
    finally:
        for stage in reversed(_open[depth:]):
            stage.close()


@contextmanager
def without_library_bars() -> Iterator[None]:
    """While the block runs, transformers draws no bars of its own over ours."""
    before = logging.set_tqdm_hook(no_bar)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def no_bar(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What transformers gets in place of a bar, as a hook of its `logging.set_tqdm_hook`."""
    return tqdm(*args, **{**options, "disable": True})


def note(text: str) -> None:
    """Say something that a user did not ask for and would like to know, on a line of its own."""
    tqdm.write(text, file=sys.stderr)


def restart() -> None:
    """A new run begins: in a log, its first line comes no sooner than half a minute from now."""
    _Lines.last, _Lines.idle_since = monotonic(), None


def _statuses() -> str:
    first, *inner = _open
    counts = [f"{stage.label} {stage.done}" + (f"/{stage.total}" if stage.total is not None else "") for stage in inner]
    texts = [f"{count} {stage.text}".rstrip() for count, stage in zip(counts, inner, strict=True)]
    return ", ".join(text for text in (first.text, *texts) if text)


class _Display(Protocol):
    def show(self, stage: Bar, status: str) -> None: ...

    def close(self, stage: Bar) -> None: ...


class _Nothing:
    def show(self, stage: Bar, status: str) -> None:
        pass

    def close(self, stage: Bar) -> None:
        pass


class _Drawn:
    """A bar of tqdm's."""

    def __init__(self, stage: Bar) -> None:
        self._bar: Any = tqdm(
            total=stage.total, desc=stage.label, unit=f" {stage.unit}", dynamic_ncols=True, disable=False
        )
        self._drawn = monotonic()

    def show(self, stage: Bar, status: str) -> None:
        self._bar.set_postfix_str(status, refresh=False)
        # tqdm draws when something is done, but a status changes in between.
        if not self._bar.update(stage.done - self._bar.n) and monotonic() - self._drawn >= _REDRAW_INTERVAL:
            self._bar.refresh()
            self._drawn = monotonic()

    def close(self, stage: Bar) -> None:
        self._bar.set_postfix_str(stage.text, refresh=False)
        self._bar.close()


class _Lines:
    """A line every half minute, whatever stages there are, and one at the end of a stage that took longer."""

    last: float = 0.0
    idle_since: float | None = 0.0

    def __init__(self) -> None:
        self._begun = monotonic()
        # Where nothing ran for a while, that while says nothing about what begins now.
        if self.idle_since is not None and self._begun - self.idle_since >= LOG_INTERVAL:
            _Lines.last = self._begun
        _Lines.idle_since = None
        self._written = -1

    def show(self, stage: Bar, status: str) -> None:
        if monotonic() - self.last >= LOG_INTERVAL:
            self._write(stage, status)

    def close(self, stage: Bar) -> None:
        _Lines.idle_since = now = monotonic()
        if now - self._begun >= LOG_INTERVAL and self._written != stage.done:
            self._write(stage, stage.text)

    def _write(self, stage: Bar, status: str) -> None:
        now = monotonic()
        line = tqdm.format_meter(
            stage.done,
            stage.total,
            now - self._begun,
            ncols=0,
            prefix=stage.label,
            unit=f" {stage.unit}",
            postfix=status,
        )
        print(line.strip(), file=sys.stderr, flush=True)
        _Lines.last, self._written = now, stage.done


def _display_of(stage: Bar) -> _Display:
    if constants.HF_HUB_DISABLE_PROGRESS_BARS or os.environ.get("TQDM_DISABLE", "0").lower() not in ("", "0", "false"):
        return _Nothing()
    in_notebook = tqdm is not tqdm_asyncio
    return _Drawn(stage) if in_notebook or sys.stderr.isatty() else _Lines()
