"""How a model is to be run, by sizes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlamaConfig

from optimum_grasprune.config import RunnerOptions
from optimum_grasprune.errors import OptionError
from optimum_grasprune.execution import placed
from optimum_grasprune.execution.choice import Choice, chosen, limits_of, needed_for_whole
from optimum_grasprune.execution.free_memory import FreeMemory, free_host_memory, free_memory
from optimum_grasprune.execution.peers import Peers
from optimum_grasprune.loading import empty_model, load_config
from tests.conftest import make_model

GIB = 2**30


def run_on(weights: float, host: float, *gpus: float, accelerate: bool = True, share: float = 0.8) -> Choice:
    """Sizes in GiB."""
    free = FreeMemory({number: int(size * GIB) for number, size in enumerate(gpus)}, int(host * GIB))
    return chosen(int(weights * GIB), free, share, accelerate=accelerate)


@pytest.mark.parametrize(
    ("weights", "host", "gpus", "runner"),
    [
        (0.25, 4, (), "whole"),
        (10, 15, (), "whole"),
        (10, 14.9, (), "streamed"),
        (15, 64, (24,), "whole"),  # 8B in bf16
        (26, 64, (24,), "offloaded"),  # 13B
        (26, 5, (24,), "streamed"),  # 0.8 · 29 = 23.2
        (26, 64, (40,), "whole"),
        (131, 64, (80, 80), "offloaded"),  # 70B
        (131, 64, (80,), "streamed"),  # 0.8 · 144 = 115.2
        (131, 512, (24,), "offloaded"),
    ],
)
def test_by_size(weights: float, host: float, gpus: tuple[float, ...], runner: str) -> None:
    assert run_on(weights, host, *gpus).runner == runner


def test_the_table_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runners.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| GPUs, GB .*(?:\n\|.*)+", page, flags=re.MULTILINE)
    header, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len(rows) == 5
    for gpus, host, *runners in rows:
        sizes = () if gpus == "none" else [float(size) for size in gpus.split(",")]
        for column, runner in zip(header[2:], runners, strict=True):
            weights = float(column.partition(": ")[2].removesuffix(" GB"))
            assert run_on(weights, float(host), *sizes).runner == runner, (gpus, host, column)


def test_what_is_told() -> None:
    assert run_on(1, 64, 24) == Choice("whole")  # nothing
    one = run_on(26, 64, 24)
    sizes = "26.0 GiB of weights need 39.0 GiB in one place, cuda:0 has 24.0 GiB free"
    assert one.why == f"{sizes}; it and CPU memory hold them together"
    assert one.limits == {0: int(19.2 * GIB), "cpu": int(51.2 * GIB)}
    assert run_on(60, 64, 40, 40).why.endswith("cuda:0 has 40.0 GiB free; 2 GPUs hold them together")
    assert run_on(70, 64, 40, 40).why.endswith("; 2 GPUs and CPU memory hold them together")
    assert run_on(70, 8, 24).why.endswith("cuda:0 has 24.0 GiB free, and nothing else here holds them")
    assert run_on(70, 8).why.endswith("the CPU has 8.0 GiB free, and nothing else here holds them")
    without = run_on(26, 64, 24, accelerate=False)
    assert without.runner == "streamed" and "accelerate is not installed, which would spread them" in without.why


def test_several_processes_share_what_none_of_them_holds() -> None:
    def by_four(weights: int, host: int, *gpus: int) -> Choice:
        free = FreeMemory({number: size * GIB for number, size in enumerate(gpus)}, host * GIB)
        return chosen(weights * GIB, free, processes=4)

    assert by_four(15, 64, 24) == Choice("whole")
    shared = by_four(70, 64, 24)
    assert (shared.runner, by_four(70, 64).runner, by_four(77, 0, 24).runner) == ("sharded", "sharded", "streamed")
    sizes = "70.0 GiB of weights need 105.0 GiB in one place, cuda:0 has 24.0 GiB free for a process"
    assert shared.why == f"{sizes}; 4 of them hold them together"
    assert by_four(77, 0, 24).why.endswith("for a process, and 4 of them do not hold them together")


def test_all_processes_go_by_what_each_of_them_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the others have less: of two machines, one with two processes, the smaller GPU and the smaller memory."""

    class Others(Peers):
        count, local_count = 3, 2

        def of_all(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
            return [tensors, {"free": torch.tensor([20, 90])}, {"free": torch.tensor([30, 8])}]

    assert placed._least(FreeMemory({1: 24}, 20), Others()) == FreeMemory({1: 20}, 8)
    assert placed._least(FreeMemory({}, 20), Peers()) == FreeMemory({}, 20)


def test_shares_are_for_several_processes(model_folder: Path) -> None:
    empty = empty_model(load_config(str(model_folder)))
    with pytest.raises(OptionError, match="runner='sharded': is for several processes, as torchrun starts them"):
        placed.choice_for(empty, RunnerOptions(runner="sharded"), dtype="auto", device="cpu")


def test_what_a_user_allows_is_allowed_in_full() -> None:
    assert run_on(26, 10, 17, share=1.0).limits == {0: 17 * GIB, "cpu": 10 * GIB}
    assert run_on(26, 10, 15, share=1.0).runner == "streamed"
    assert limits_of(FreeMemory({1: 10}, 5), 0.5) == {1: 5, "cpu": 2}
    assert needed_for_whole(10) == 15


def test_free_memory_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  4096 kB\nMemFree:   512 kB\nMemAvailable:   2048 kB\n")
    nowhere = tmp_path / "none"
    assert free_host_memory(tmp_path / "meminfo", nowhere) == 2 * 2**20
    assert free_host_memory(nowhere, nowhere) > 2**20
    assert free_memory("cpu").gpus == {} and free_memory("cpu").host > 2**20


def test_gpus_are_asked_as_far_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def info(number: int) -> tuple[int, int]:
        asked.append(number)
        return (10 + number) * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    monkeypatch.setattr("optimum_grasprune.execution.free_memory.free_host_memory", lambda: GIB)
    monkeypatch.setattr(placed, "find_spec", lambda name: name)
    assert placed._chosen(6 * GIB, RunnerOptions(), "auto", Peers()).runner == "whole" and asked == [0]
    spread = placed._chosen(7 * GIB, RunnerOptions(), "auto", Peers())
    assert spread.runner == "offloaded" and list(spread.limits) == [0, 1, 2, "cpu"]
    asked.clear()
    assert placed._chosen(7 * GIB, RunnerOptions(), "cuda:2", Peers()).runner == "whole" and asked == [2]
    assert placed._chosen(7 * GIB, RunnerOptions(), "cpu", Peers()).runner == "streamed" and asked == [2]
    allowed = RunnerOptions(max_memory={1: 5 * GIB, "cpu": 4 * GIB})
    assert placed._chosen(7 * GIB, allowed, "auto", Peers()).limits == {1: 5 * GIB, "cpu": 4 * GIB} and asked == [2]


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


def test_bytes_of_weights() -> None:
    model = make_model(tie_word_embeddings=True)
    count = sum(part.numel() for part in model.parameters())
    config: LlamaConfig = AutoConfig.for_model(**model.config.to_dict())
    config.dtype = torch.bfloat16
    assert placed.weight_bytes_of(empty_model(config), "auto") == 2 * count
    assert placed.weight_bytes_of(empty_model(config), "float32") == 4 * count


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
