from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.serving.page import (
    burst_lines,
    first_commands,
    markdown,
    mebibytes,
    memory_table,
    overflow_lines,
    short_memory_table,
    short_table,
    write_page,
)
from optimum_grasprune.serving.results import Result, check_folder, write_results


def test_served_dtype_goes_before_the_flags(result: Result) -> None:
    # The flags alone would say 4 bytes; the servers' logs say bfloat16.
    assert [item.weight_bytes for item in result.checkpoints] == [2400, 1400]
    assert [item.kv_bytes_per_token for item in result.checkpoints] == [16, 8]


def test_short_table(result: Result) -> None:
    columns, rows = short_table(result)
    assert columns[-2:] == ["pruned ÷ dense", "limit"]
    first = rows[0]
    assert first[:3] == ["10:20 × 1", "half", "output tokens, 1/s"]
    assert first[3:6] == ["80", "100", "1.50 (1.25–2.00)"]
    assert first[6].startswith("≤ 1.")
    assert rows[1][2:6] == ["TTFT, p50, ms", "8", "4", "0.50 (0.50–0.50)"] and rows[1][6].startswith("≥ 0.")


def test_memory_tables(result: Result) -> None:
    columns, (dense, half) = memory_table(result)
    cells = dict(zip(columns, half, strict=True))
    assert cells["KV tokens"] == "2,560" and cells["÷ dense"] == cells["computed"] == "2.000"
    assert cells["FFN widths ×64"] == "50%" and dense[3] == "100%"
    assert cells["ready after s"] == "11.0 (10.0–12.0)"
    assert set(short_memory_table(result)[0]) < set(columns)


def test_markdown(result: Result) -> None:
    page = markdown(result)
    assert page.startswith("# Dense beside pruned: half\n")
    assert "## 10:20 × 4\n\n32 requests, 4 at once:" in page
    assert "| half | output tokens, 1/s | 80 | 100 | 1.50 (1.25–2.00) | ≤" in page
    assert "vllm serve /m/dense\nvllm bench serve --x" in page
    assert "overflow" not in page and "front end" not in page


def test_bursts_are_told(result: Result) -> None:
    result.runs[0].metrics["in_bursts"] = 0.9
    (line,) = burst_lines(result)
    assert line.startswith("At 10:20 × 1 most tokens reached the client together") and line in markdown(result)


def test_overflow_is_told(result: Result, overflow: Result) -> None:
    first = tuple(row for row in overflow.comparisons if row.point == "10:20 × 1")
    overflow = replace(overflow, points=overflow.points[:1], comparisons=first)
    (line,) = overflow_lines(overflow)
    assert "1 sequences of 30 tokens at once in 0.0 MiB of KV cache" in line
    assert "the dense model has room for 1,280 tokens" in line and "half has room for 2,560" in line
    assert line.endswith("1.50 (1.25–2.00) times the dense model's.")
    assert line in markdown(overflow) and overflow_lines(result) == []
    assert {row.limit for row in overflow.comparisons} == {None}


def test_first_commands() -> None:
    given = ["vllm serve a", "vllm bench serve a1", "vllm bench serve a2", "vllm bench serve a3", "vllm serve b"]
    assert first_commands(given, 2) == ["vllm serve a", "vllm bench serve a1", "vllm bench serve a2", "vllm serve b"]


def test_mebibytes() -> None:
    assert (mebibytes(3 * 2**19), mebibytes(3 * 2**29)) == ("1.5 MiB", "1.50 GiB")


def test_files(result: Result, tmp_path: Path) -> None:
    check_folder(tmp_path / "out")
    write_results(result, tmp_path / "out")
    write_page(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == result.to_dict()
    assert (tmp_path / "out" / "benchmark.md").read_text() == markdown(result)
    check_folder(tmp_path / "out")  # again into the same folder


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder, reason in ((tmp_path, "something other than a benchmark"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(CheckpointError, match=reason):
            check_folder(folder)
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_folder(Path("/proc/nowhere"))


def test_figures(result: Result, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    from optimum_grasprune.serving.figures import write_plots

    names = {path.name for path in write_plots(result, tmp_path)}
    stems = ("kv-tokens", "throughput-10-20", "latency-10-20")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for stem in stems:
        height, width, _ = image.imread(tmp_path / f"{stem}.png").shape
        assert width > 1200 and height > 700


def test_figures_show_the_numbers(result: Result) -> None:
    pytest.importorskip("matplotlib")
    from optimum_grasprune.serving.figures import throughput_figure, tokens_figure
    from optimum_grasprune.serving.summary import spread

    lines = {"dense": [(1, spread([80.0, 100.0, 50.0])), (4, spread([300.0]))], "half": [(1, spread([100.0]))]}
    (axes,) = throughput_figure(lines, title="Throughput").axes
    (dense, half) = (container.lines[0] for container in axes.containers)
    assert list(dense.get_xdata()) == [1, 4] and list(dense.get_ydata()) == [80.0, 300.0]
    assert list(half.get_ydata()) == [100.0] and dense.get_color() != half.get_color()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4"]
    (axes,) = tokens_figure({"dense": 1280, "half": 2560}, title="Tokens").axes
    assert [text.get_text() for text in axes.texts] == ["1,280\n×1.00", "2,560\n×2.00"]
    assert [bar.get_height() for bar in axes.patches] == [1280, 2560]


def test_figures_of_a_mode_without_servers(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from optimum_grasprune.serving.figures import write_plots

    result = replace(
        result,
        memory=tuple(replace(row, kv_cache_tokens=None) for row in result.memory),
        runs=tuple(replace(run, percentiles=None) for run in result.runs),
    )
    assert {path.name for path in write_plots(result, tmp_path)} == {
        f"throughput-10-20.{kind}" for kind in ("png", "svg")
    }
