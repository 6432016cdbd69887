"""What fits on machines made by hand, and what is said of what does not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optimum_grasprune import GRASPConfig
from optimum_grasprune.dummy import shape_config
from optimum_grasprune.errors import ResourceError
from optimum_grasprune.estimate import Estimate, Job, Machine, estimated, known_runners, needs_of, require_fit
from optimum_grasprune.estimate.machine import free_host_memory
from optimum_grasprune.estimate.verdict import alternatives, in_gib
from optimum_grasprune.execution import Peers

GIB = 2**30
ROOMY = Machine(host=500 * GIB, output=500 * GIB, temporary=500 * GIB, device=80 * GIB, devices=80 * GIB, name="cuda:0")


def job(shape: str = "llama-2-7b", device: str = "cuda", **options: Any) -> Job:
    return Job.of(GRASPConfig(**options), shape_config(shape), device=device)


def refusal(estimate: Estimate) -> str:
    with pytest.raises(ResourceError) as error:
        require_fit(estimate)
    return str(error.value)


def test_what_fits_is_not_refused() -> None:
    estimate = Estimate.of(job(), ROOMY)
    assert estimate.shortages == []
    require_fit(estimate)
    line = estimate.line
    assert line.startswith("needed at most, whole: 15.8 GiB of 80.0 GiB free on cuda:0, 2.9 GiB of 500.0 GiB free on ")
    assert estimate.to_dict()["fits"] is True


def test_only_what_a_run_cannot_go_on_without_is_refused() -> None:
    needs = Estimate.of(job(), ROOMY).needs
    at_the_limit = replace(ROOMY, device=needs.hard("device"))
    assert needs.hard("device") < needs.size("device")
    require_fit(Estimate.of(job(), at_the_limit))
    below = replace(ROOMY, device=needs.hard("device") - 1)
    assert "the run needs" in refusal(Estimate.of(job(), below))


def test_the_option_that_costs_least_is_named_first() -> None:
    line = refusal(Estimate.of(job(batch_size=4), replace(ROOMY, device=19 * GIB, devices=19 * GIB)))
    assert line.startswith("the run needs 23.4 GiB on cuda:0 for gates (weights 12.6 GiB, activations 9.4 GiB, logits ")
    assert "and 19.0 GiB are free: --gradient-checkpointing needs" in line
    assert line.endswith(" GiB there; --ignore-estimate starts it all the same")


def test_a_runner_is_named_where_the_weights_are_too_large() -> None:
    small = replace(ROOMY, device=12 * GIB, devices=12 * GIB)
    assert "12.0 GiB are free: --runner offloaded needs" in refusal(Estimate.of(job(), small))
    no_memory = replace(small, host=3 * GIB)
    assert "--runner streamed needs" in refusal(Estimate.of(job(batch_size=1), no_memory))


def test_several_gpus_hold_what_the_host_need_not() -> None:
    offloaded = replace(job(), runner="offloaded")
    one = replace(ROOMY, device=10 * GIB, devices=10 * GIB, host=12 * GIB)  # where the pruned model is, of 6 GiB
    assert [shortage.place for shortage in Estimate.of(offloaded, one).shortages] == ["host"]
    assert Estimate.of(offloaded, replace(one, devices=40 * GIB)).shortages == []


def test_where_nothing_is_enough_the_best_is_named() -> None:
    line = refusal(Estimate.of(job(), replace(ROOMY, device=GIB // 4, devices=GIB // 4)))
    assert "are free: no option is enough; --runner streamed needs" in line
    tight = job("tiny", device="cpu", gradient_checkpointing=True, seq_len=32, method="magnitude", dtype="bfloat16")
    assert "no option needs less" in refusal(Estimate.of(replace(tight, runner="streamed"), replace(ROOMY, host=1)))


def test_disks() -> None:
    line = refusal(Estimate.of(job(), replace(ROOMY, output=GIB)))
    assert "on the disk of OUTPUT for writing (checkpoint 6.5 GiB, state of the run 2.0 GiB)" in line
    assert "give OUTPUT on another disk" in line
    line = refusal(Estimate.of(job(), replace(ROOMY, temporary=GIB, folder="/scratch")))
    assert "the disk of /scratch" in line and "the environment variable TMPDIR names another folder" in line
    both = replace(ROOMY, output=10 * GIB, temporary=10 * GIB)
    require_fit(Estimate.of(job(), both))
    assert [each.place for each in Estimate.of(job(), replace(both, one_disk=True)).shortages] == ["output"]


def test_the_first_runner_that_fits() -> None:
    def chosen(gib: int, host: int = 100) -> str:
        machine = replace(ROOMY, device=gib * GIB, devices=gib * GIB, host=host * GIB)
        return estimated(job(), machine)[0].needs.runner

    assert (chosen(24), chosen(10), chosen(10, host=6)) == ("whole", "offloaded", "streamed")
    asked, why = estimated(job(), ROOMY, "streamed")
    assert asked.needs.runner == "streamed" and not why
    nothing, why = estimated(job(), replace(ROOMY, host=0, device=0, devices=0))
    assert nothing.needs.runner == "whole" and nothing.shortages and not why


@pytest.mark.parametrize(
    ("options", "can"),
    [
        ({}, ["whole", "offloaded", "streamed"]),
        ({"recover": "distill"}, ["whole", "offloaded"]),
        ({"method": "block_influence"}, ["whole", "offloaded"]),
        ({"method": "statistical", "pattern": "2:4"}, ["whole"]),
    ],
)
def test_no_runner_is_chosen_or_named_that_would_refuse(options: dict[str, Any], can: list[str]) -> None:
    assert known_runners(job(**options), ROOMY) == can
    nothing = replace(ROOMY, host=0, device=0, devices=0)
    named = {words for words, _ in alternatives(job(**options), nothing) if words.startswith("--runner")}
    assert named == {f"--runner {runner}" for runner in can[1:]}
    several = replace(job(**options), processes=2)
    assert known_runners(several, ROOMY) == ["whole", *(["sharded", "streamed"] if can[2:] else [])]


def test_one_with_all_that_it_needs_comes_before_one_that_can_just_run() -> None:
    needs = needs_of(job())
    tight = replace(ROOMY, device=needs.hard("device"), devices=needs.hard("device"))
    assert not Estimate.of(job(), tight).shortages
    found, why = estimated(job(), tight)
    assert found.needs.runner == "offloaded" and why == "whole needs 15.8 GiB on cuda:0, and 15.3 GiB are free"
    alone = replace(tight, accelerate=False, host=0)
    assert estimated(job(batch_size=1), alone)[0].needs.runner != "offloaded"


def test_several_processes_share_what_none_of_them_holds() -> None:
    def runner(shape: str, gib: int) -> str:
        each = replace(ROOMY, device=gib * GIB, devices=gib * GIB)
        return estimated(replace(job(shape, batch_size=4), processes=4), each)[0].needs.runner

    assert [runner("llama-2-7b", 24), runner("llama-2-13b", 24)] == ["whole", "sharded"]
    assert [runner("llama-3.1-70b", 80), runner("llama-3.1-70b", 24)] == ["sharded", "streamed"]


def test_all_processes_go_by_what_each_of_them_has() -> None:
    """Here the others have less: of two machines, one with two processes, a smaller GPU, less memory, a full disk."""

    class Others(Peers):
        count, local_count = 3, 2

        def of_all(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
            others = torch.tensor([[20, 90, 9, 7], [30, 8, 9, 7]])
            return [tensors, *({"free": each} for each in others)]

    own = Machine(host=20, output=8, temporary=12, device=24, devices=24)
    assert own.of_each(Others()) == replace(own, host=8, output=7, temporary=6, device=20, devices=20)
    assert own.of_each(Peers()) == own
    assert replace(own, device=None, devices=0).of_each(Others()).device == 20


def test_what_a_user_allows() -> None:
    own = Machine(host=20, output=8, temporary=12, device=24, devices=48)
    assert own.allowing(None) == own
    assert own.allowing({2: 7, 1: 5, "cpu": 3}) == replace(own, host=3, device=5, devices=12)
    assert own.allowing({"cpu": 3}) == replace(own, host=3, device=None, devices=0)
    assert own.allowing({1: 5}) == replace(own, host=0, device=5, devices=5)


def test_gpus_are_asked_as_far_as_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def info(device: Any) -> tuple[int, int]:
        asked.append(str(device))
        return 10 * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", info)
    assert Machine.here(torch.device("cuda"), str(tmp_path), first=True).devices == 10 * GIB and asked == ["cuda"]
    assert Machine.here(torch.device("cuda:2"), str(tmp_path)).devices == 10 * GIB and asked == ["cuda", "cuda:2"]
    assert Machine.here(torch.device("cuda"), str(tmp_path)).devices == 30 * GIB and asked[2:] == ["cuda", "1", "2"]
    assert Machine.here(torch.device("cpu"), str(tmp_path)).devices == 0 and len(asked) == 5


def test_the_table_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runners.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| GPUs, GB .*(?:\n\|.*)+", page, flags=re.MULTILINE)
    header, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len(rows) == 5 and header[2:] == ["llama-2-7b", "llama-3.1-8b", "llama-2-13b", "llama-3.1-70b"]
    for gpus, host, *runners in rows:
        sizes = [] if gpus == "none" else [int(size) * 10**9 for size in gpus.split(",")]
        device = {"device": sizes[0], "devices": sum(sizes)} if sizes else {"device": None, "devices": 0}
        machine = replace(ROOMY, host=int(host) * 10**9, **device)
        for shape, runner in zip(header[2:], runners, strict=True):
            found, _ = estimated(job(shape, "cuda" if sizes else "cpu"), machine)
            assert found.needs.runner == runner, (gpus, host, shape)


def test_alternatives_come_in_order_and_change_only_what_they_say() -> None:
    asked = job(batch_size=2, dtype="float32", seq_len=256)
    found = dict(alternatives(asked, ROOMY))
    assert [*found] == [
        *("--gradient-checkpointing", "--runner offloaded", "--runner streamed", "--dtype bfloat16"),
        *("--batch-size 1", "--seq-len 128", "--seq-len 64"),
    ]
    own = job(recover="lora", recover_batch_size=2)
    assert dict(alternatives(own, ROOMY))["--recover-batch-size 1"].config.recovery_batch_size == 1
    assert "--recover-batch-size 1" not in dict(alternatives(job(recover_batch_size=2), ROOMY))
    assert found["--dtype bfloat16"].element == 2 and found["--seq-len 64"].length == 64
    assert "--runner offloaded" not in dict(alternatives(job(device="cpu"), ROOMY))


def test_a_device_that_tells_nothing_is_not_refused() -> None:
    assert Estimate.of(job(device="xpu"), replace(ROOMY, device=None)).shortages == []


def test_sizes_in_words() -> None:
    assert [in_gib(size) for size in (0, 5 * 2**20, GIB // 8, 1500 * GIB)] == [
        "0 MiB",
        "5 MiB",
        "0.1 GiB",
        "1,500.0 GiB",
    ]


def test_memory_within_a_containers_limit(tmp_path: Path) -> None:
    system, groups, own = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own"
    system.write_text("MemTotal: 100 kB\nMemAvailable:    9000 kB\n")
    inner = groups / "slice" / "job"
    inner.mkdir(parents=True)
    own.write_text("0::/slice/job\n")
    assert free_host_memory(system, groups, own) == 9000 * 1024
    for folder, limit, used in ((groups / "slice", "max", 10), (inner, "5000000", 3000000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 600000\nactive_file 400000\n")
    assert free_host_memory(system, groups, own) == 5000000 - 3000000 + 1000000
    (groups / "slice" / "memory.max").write_text("2000000")
    assert free_host_memory(system, groups, own) == 2000000 - 10 + 1000000
    (inner / "memory.current").write_text("9000000")
    assert free_host_memory(system, groups, own) == 0


def test_memory_within_a_limit_of_the_older_kind(tmp_path: Path) -> None:
    system, groups, own = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own"
    system.write_text("MemAvailable: 9000 kB\n")
    own.write_text("4:memory:/docker/1\n3:cpu:/\n")
    (groups / "memory" / "docker" / "1").mkdir(parents=True)
    for name, value in (("limit_in_bytes", 4096), ("usage_in_bytes", 1024)):
        (groups / "memory" / "docker" / "1" / f"memory.{name}").write_text(str(value))
    (groups / "memory" / "docker" / "1" / "memory.stat").write_text("inactive_file 24\n")
    assert free_host_memory(system, groups, own) == 4096 - 1024 + 24
    assert free_host_memory(tmp_path / "none", groups, tmp_path / "none") > 2**27


@pytest.mark.parametrize("when", ["before it is asked", "after"])
def test_a_folder_that_goes_while_its_disk_is_asked(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the first of several processes tries whether the output can be written."""
    (output := tmp_path / "out").mkdir()
    asked = shutil.disk_usage

    def disk_usage(folder: Path) -> object:
        if folder == output and when != "after":
            output.rmdir()
        found = asked(folder)
        if folder == output:
            output.rmdir()
        return found

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert Machine.here(torch.device("cpu"), str(output)).output > 0 and not output.exists()


def test_this_machine(tmp_path: Path) -> None:
    import torch

    machine = Machine.here(torch.device("cpu"), str(tmp_path / "not" / "there" / "yet"))
    assert machine.device is None and machine.host > 0 and machine.output > 0 and machine.temporary > 0
