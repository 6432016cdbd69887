"""What fits on machines made by hand, and what is said of what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig
from optimum_grasprune.dummy import shape_config
from optimum_grasprune.errors import ResourceError
from optimum_grasprune.estimate import Estimate, Job, Machine, estimated, require_fit
from optimum_grasprune.estimate.machine import free_host_memory
from optimum_grasprune.estimate.verdict import alternatives, in_gib

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
    assert line.startswith("needed at most, whole: 15.6 GiB of 80.0 GiB free on cuda:0, 0.8 GiB of 500.0 GiB free on ")
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
    assert line.startswith("the run needs 22.8 GiB on cuda:0 for gates (weights 12.6 GiB, activations 9.4 GiB, logits ")
    assert "and 19.0 GiB are free: --gradient-checkpointing needs" in line
    assert line.endswith(" GiB there; --ignore-estimate starts it all the same")


def test_a_runner_is_named_where_the_weights_are_too_large() -> None:
    small = replace(ROOMY, device=12 * GIB, devices=12 * GIB)
    assert "12.0 GiB are free: --runner offloaded needs" in refusal(Estimate.of(job(), small))
    no_memory = replace(small, host=3 * GIB)
    assert "--runner streamed needs" in refusal(Estimate.of(job(batch_size=1), no_memory))


def test_several_gpus_hold_what_the_host_need_not() -> None:
    offloaded = replace(job(), runner="offloaded")
    one = replace(ROOMY, device=10 * GIB, devices=10 * GIB, host=4 * GIB)
    assert [shortage.place for shortage in Estimate.of(offloaded, one).shortages] == ["host"]
    assert Estimate.of(offloaded, replace(one, devices=40 * GIB)).shortages == []


def test_where_nothing_is_enough_the_best_is_named() -> None:
    line = refusal(Estimate.of(job(), replace(ROOMY, device=GIB // 4, devices=GIB // 4)))
    assert "are free: no option is enough; --runner streamed needs" in line
    tight = job("tiny", device="cpu", gradient_checkpointing=True, seq_len=32, method="magnitude", dtype="bfloat16")
    assert "no option needs less" in refusal(Estimate.of(replace(tight, runner="streamed"), replace(ROOMY, host=1)))


def test_disks() -> None:
    line = refusal(Estimate.of(job(), replace(ROOMY, output=GIB)))
    assert "on the disk of OUTPUT for writing (checkpoint 6.5 GiB, state of the run 0.8 GiB)" in line
    assert "give OUTPUT on another disk" in line
    line = refusal(Estimate.of(job(), replace(ROOMY, temporary=GIB, folder="/scratch")))
    assert "the disk of /scratch" in line and "the environment variable TMPDIR names another folder" in line
    both = replace(ROOMY, output=10 * GIB, temporary=10 * GIB)
    require_fit(Estimate.of(job(), both))
    assert [each.place for each in Estimate.of(job(), replace(both, one_disk=True)).shortages] == ["output"]


def test_the_first_runner_that_fits() -> None:
    def chosen(gib: int, host: int = 100) -> str:
        machine = replace(ROOMY, device=gib * GIB, devices=gib * GIB, host=host * GIB)
        return estimated(job(), machine).needs.runner

    assert (chosen(24), chosen(10), chosen(10, host=6)) == ("whole", "offloaded", "streamed")
    assert estimated(job(), ROOMY, "streamed").needs.runner == "streamed"
    nothing = estimated(job(), replace(ROOMY, host=0, device=0, devices=0))
    assert nothing.needs.runner == "whole" and nothing.shortages


def test_alternatives_come_in_order_and_change_only_what_they_say() -> None:
    asked = job(batch_size=2, dtype="float32", seq_len=256)
    found = dict(alternatives(asked))
    assert [*found] == [
        *("--gradient-checkpointing", "--runner offloaded", "--runner streamed", "--dtype bfloat16"),
        *("--batch-size 1", "--seq-len 128", "--seq-len 64"),
    ]
    assert found["--dtype bfloat16"].element == 2 and found["--seq-len 64"].length == 64
    assert "--runner offloaded" not in dict(alternatives(job(device="cpu")))


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


def test_this_machine(tmp_path: Path) -> None:
    import torch

    machine = Machine.here(torch.device("cpu"), str(tmp_path / "not" / "there" / "yet"))
    assert machine.device is None and machine.host > 0 and machine.output > 0 and machine.temporary > 0
