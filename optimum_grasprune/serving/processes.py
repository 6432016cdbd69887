"""Commands that never outlive this process, whatever ends it: each runs under `supervisor.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@contextmanager
def supervised(
    command: Sequence[str], log: Path, environment: Mapping[str, str | None] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, however it ends; yields the process that watches over it.

    log: file for its output.  environment: variables on top of this process's; None removes one.
    The yielded process ends with the command and has its exit code, 128 + N when signal N ended it.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SUPERVISOR), *command],
            stdin=subprocess.PIPE,  # its end here is closed by the kernel when this process ends
            stdout=output,
            stderr=subprocess.STDOUT,
            env=merged_environment(os.environ, environment or {}),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None  # it was asked for above
        process.stdin.close()
        process.wait()


def run_to_end(command: Sequence[str], log: Path, environment: Mapping[str, str | None] | None = None) -> int:
    """Run a command and wait for it; its exit code."""
    with supervised(command, log, environment) as process:
        return process.wait()


def merged_environment(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """An environment with some variables set and, where the value is None, removed."""
    merged: dict[str, str | None] = {**base, **changes}
    return {name: value for name, value in merged.items() if value is not None}


@contextmanager
def terminated_cleanly() -> Iterator[None]:
    """Inside the block SIGTERM ends this process through its `finally` clauses, with exit code 143."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
