"""Whatever ends the owner, the command and all that it started end too. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_grasprune.serving.processes import run_to_end, supervised, terminated_cleanly

SECONDS = 60
# A command with a child of its own; both write their process ids, as a server's engine would have one.
FAMILY = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(os.getpid(), child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
# The same, which ignores being asked to end.
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
OWNER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from optimum_grasprune.serving.processes import supervised, terminated_cleanly\n"
    "with terminated_cleanly(), supervised([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2])):\n"
    "    time.sleep(600)\n"
)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started(log: Path) -> list[int]:
    """Process ids that the command wrote."""
    wait_for(lambda: log.is_file() and log.read_text().endswith("\n"))
    return [int(word) for word in log.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_owner_is_killed(tmp_path: Path, sign: int) -> None:
    log = tmp_path / "log"
    # Where the tests run in the background of a shell, an interrupt is ignored, and a child inherits that.
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, FAMILY, str(log)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pids = started(log)
    assert len(pids) == 2 and all(map(alive, pids))
    owner.send_signal(sign)
    owner.wait(SECONDS)
    wait_for(lambda: not any(map(alive, pids)))


@needs_proc
def test_the_owner_is_killed_at_once(tmp_path: Path) -> None:
    # At moments from before the supervisor is up to after the command has a child.
    marker = str(tmp_path / "log")
    for delay in (0.2, 0.4, 0.6, 0.8, 1.0):
        owner = subprocess.Popen([sys.executable, "-c", OWNER, f"{FAMILY}# {marker}", marker])
        time.sleep(delay)
        owner.kill()
        owner.wait(SECONDS)
    wait_for(lambda: not any(marker in line for line in command_lines()))


def command_lines() -> list[str]:
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid() and alive(int(folder.name)):
            try:
                lines.append((folder / "cmdline").read_text())
            except OSError:  # it has just ended
                continue
    return lines


@needs_proc
def test_the_block_ends_with_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError), supervised([sys.executable, "-c", FAMILY], log):
        pids = started(log)
        raise ZeroDivisionError
    assert not any(map(alive, pids))


@needs_proc
def test_a_command_that_will_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    with supervised([sys.executable, "-c", STUBBORN], log):
        pids = started(log)
    assert not any(map(alive, pids))


@needs_proc
def test_children_that_outlive_the_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = run_to_end([sys.executable, "-c", FAMILY.replace("time.sleep(600)\n", "sys.exit(3)\n")], log)
    assert code == 3
    assert not any(map(alive, started(log)))


def test_exit_codes_and_output(tmp_path: Path) -> None:
    command = "import os, sys; print('to stdout'); print(os.environ.get('COLOUR')); sys.exit(7)"
    os.environ["COLOUR"] = "red"
    try:
        assert run_to_end([sys.executable, "-c", command], tmp_path / "log", {"COLOUR": None}) == 7
    finally:
        del os.environ["COLOUR"]
    assert (tmp_path / "log").read_text() == "to stdout\nNone\n"
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_to_end([sys.executable, "-c", dies], tmp_path / "log") == 128 + signal.SIGKILL


def test_sigterm_runs_finally_clauses() -> None:
    ended = []
    with pytest.raises(SystemExit) as stop, terminated_cleanly():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS)
        finally:
            ended.append(True)
    assert stop.value.code == 143 and ended
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
