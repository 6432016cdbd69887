"""Where a model may be: what is free, what a user allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimum_grasprune.config import RunnerOptions
from optimum_grasprune.errors import OptionError
from optimum_grasprune.execution import placed
from optimum_grasprune.execution.free_memory import FreeMemory, free_host_memory, free_memory
from optimum_grasprune.execution.peers import Peers

GIB = 2**30


def test_shares_are_for_several_processes() -> None:
    with pytest.raises(OptionError, match="runner='sharded': is for several processes, as torchrun starts them"):
        placed.check_runner(RunnerOptions(runner="sharded"), "cpu", Peers())


def test_limits_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user allows in full, a share of what is free otherwise."""
    assert placed.limits_of(FreeMemory({1: 10}, 5), 0.5) == {1: 5, "cpu": 2}
    monkeypatch.setattr(placed, "free_memory", lambda device: FreeMemory({0: 100}, 50))
    assert placed.limits_for(RunnerOptions(), "auto") == {0: 80, "cpu": 40}
    allowed = RunnerOptions(max_memory={2: 7 * GIB, 1: 5 * GIB})
    assert placed.limits_for(allowed, "auto") == {1: 5 * GIB, 2: 7 * GIB, "cpu": 0}
    assert placed.computing_device(allowed, "auto") == "cuda:1" and placed.computing_device(RunnerOptions(), "x") == "x"
    assert placed.computing_device(RunnerOptions(max_memory={"cpu": GIB}), "auto") == "cpu"


def test_free_memory_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  4096 kB\nMemFree:   512 kB\nMemAvailable:   2048 kB\n")
    nowhere = tmp_path / "none"
    assert free_host_memory(tmp_path / "meminfo", nowhere) == 2 * 2**20
    assert free_host_memory(nowhere, nowhere) > 2**20
    assert free_memory("cpu").gpus == {} and free_memory("cpu").host > 2**20


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_free_memory_of_a_container(tmp_path: Path, folder: str, limit: str, used: str) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 2048 kB\n")
    group = tmp_path / "groups" / folder
    group.mkdir(parents=True)
    (group / used).write_text("700000\n")
    (group / "memory.stat").write_text("anon 400000\ninactive_file 100000\n")
    (group / limit).write_text("1000000\n")
    assert free_host_memory(tmp_path / "meminfo", tmp_path / "groups") == 400_000
    (group / limit).write_text("9000000\n")
    assert free_host_memory(tmp_path / "meminfo", tmp_path / "groups") == 2 * 2**20
    (group / limit).write_text("max\n")
    assert free_host_memory(tmp_path / "meminfo", tmp_path / "groups") == 2 * 2**20


@pytest.mark.parametrize("given", ["0=20GiB,1=512MiB,cpu=60GB", " cuda:0=20GiB, 1=512MiB ,cpu=60GB"])
def test_most_memory_by_device(given: str) -> None:
    options = RunnerOptions(max_memory=given)  # type: ignore[arg-type]
    assert options.max_memory == {0: 20 * GIB, 1: GIB // 2, "cpu": 60 * 10**9}
    assert RunnerOptions.from_dict(options.to_dict()) == options


@pytest.mark.parametrize(
    "given", ["", "20GiB", "0=", "0=20", "gpu=1GiB", "0=1GiB,0=2GiB", "-1=1GiB", "disk=1GiB", "0=1GiB,,1=1GiB", [1], {}]
)
def test_memory_that_cannot_be_told(given: object) -> None:
    with pytest.raises(OptionError, match="max_memory=.*should be each device with a size, as in 0=20GiB"):
        RunnerOptions(max_memory=given)  # type: ignore[arg-type]
