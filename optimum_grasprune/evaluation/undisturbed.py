"""lm-evaluation-harness at work without a trace: random states, log levels and bars are as they were afterwards.

What it logs, prints and draws would stand in the midst of our display; errors are raised, and are told by who asked.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
import tqdm


@contextmanager
def undisturbed() -> Iterator[None]:
    """While the block runs, the harness may seed what it likes, and neither says nor draws anything but errors."""
    with ExitStack() as stack:
        stack.enter_context(_own_randomness())
        stack.enter_context(_errors_alone(logging.getLogger("lm_eval")))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(_without_bars())
        stack.enter_context(_without_git())
        yield


@contextmanager
def _own_randomness() -> Iterator[None]:
    """What the block draws, or seeds, changes nothing of what is drawn after it."""
    states = random.getstate(), np.random.get_state()
    # Where nothing runs on a GPU yet, it stays so: an engine may want to start processes that share it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def _errors_alone(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bars of `datasets`, and none where the harness has no switch for them: making requests, bootstrapping."""
    import datasets
    from lm_eval.api import task

    drawn, bars = not datasets.are_progress_bars_disabled(), (task.tqdm, tqdm.tqdm)
    datasets.disable_progress_bars()
    task.tqdm = tqdm.tqdm = _NoBar
    try:
        yield
    finally:
        task.tqdm, tqdm.tqdm = bars
        if drawn:
            datasets.enable_progress_bars()


@contextmanager
def _without_git() -> Iterator[None]:
    """The harness asks git for the commit of the current folder: no part of a result, and git may complain."""
    from lm_eval import evaluator

    before = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = before


class _NoBar(tqdm.tqdm):
    """A bar that is not drawn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})
