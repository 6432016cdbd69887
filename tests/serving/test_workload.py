from __future__ import annotations

from pathlib import Path

import pytest

from optimum_grasprune.errors import OptionError
from optimum_grasprune.serving.checkpoints import named, share_of_multiples
from optimum_grasprune.serving.engines.base import ElementSizes
from optimum_grasprune.serving.engines.vllm.launch import flag_value, kv_bytes_by_default, launch_with, served_sizes
from optimum_grasprune.serving.fit import GIB
from optimum_grasprune.serving.processes import merged_environment
from optimum_grasprune.serving.workload import Lengths, check_prompts, parse_lengths, positive, sweep


def test_sweep_crosses_lengths_and_concurrencies() -> None:
    points = sweep([Lengths(128, 64), Lengths(512, 32)], [4, 1, 4])
    assert [point.name for point in points] == ["128:64 × 1", "128:64 × 4", "512:32 × 1", "512:32 × 4"]
    assert [point.requests for point in points] == [16, 32, 16, 32]
    assert {point.requests for point in sweep([Lengths(1, 2)], [1, 8], requests=5)} == {5}


def test_prompts_are_one_more_workload() -> None:
    *_, point = sweep([Lengths(8, 8)], [2], prompts=(Path("/data/chat.jsonl"), 32))
    assert point.name == "chat.jsonl:32 × 2"
    assert point.describe().prompt_tokens is None and point.describe().output_tokens == 32


@pytest.mark.parametrize("text", ["128", "128:", "0:5", "128:1", "a:b", "-1:4", "1:2:3"])
def test_bad_lengths(text: str) -> None:
    with pytest.raises(OptionError, match="lengths=.*should look like PROMPT:OUTPUT"):
        parse_lengths(text)


def test_good_lengths() -> None:
    assert parse_lengths("128:64") == Lengths(128, 64) and parse_lengths("128:64").total == 192


@pytest.mark.parametrize(("text", "reason"), [("x", "a whole number"), ("0", "at least 1"), ("1.5", "a whole number")])
def test_positive(text: str, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        positive("repetitions", text)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", '{"prompt": "x"}', "should be a .jsonl file"),
        ("p.jsonl", "", "is empty"),
        ("p.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', "line 2 should look like"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1 should look like"),
        ("p.jsonl", "prompt\n", "line 1 should look like"),
        ("p.jsonl", "[" * 99_999, "line 1 should look like"),
    ],
)
def test_bad_prompts(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=reason):
        check_prompts(tmp_path / name)


def test_missing_prompts(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file"):
        check_prompts(tmp_path / "none.jsonl")


def test_good_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Once"}\n{"prompt": "Twice", "output_tokens": 9}\n')
    check_prompts(tmp_path / "p.jsonl")


def test_launch_puts_the_users_flags_last_and_removes_what_would_override() -> None:
    launch = launch_with(["--dtype", "float32"], kv_bytes=3 * GIB, dtype="bfloat16")
    assert launch.flags[-2:] == ("--dtype", "float32") and flag_value(launch.flags, "--dtype") == "float32"
    assert flag_value(launch.flags, "--kv-cache-memory-bytes") == str(3 * GIB)
    assert launch.environment == {"VLLM_CPU_KVCACHE_SPACE": None}
    assert launch_with([], kv_bytes=None).environment == {}


def test_environment() -> None:
    assert merged_environment({"A": "1", "B": "2"}, {"A": None, "C": "3"}) == {"B": "2", "C": "3"}


@pytest.mark.parametrize(
    ("flags", "stored", "sizes"),
    [
        ([], "bfloat16", (2, 2)),
        ([], "float32", (2, 2)),
        (["--dtype", "float32"], "bfloat16", (4, 4)),
        (["--kv-cache-dtype=fp8"], "bfloat16", (2, 1)),
        (["--dtype=auto"], "float16", (2, 2)),
    ],
)
def test_served_sizes(flags: list[str], stored: str, sizes: tuple[int, int]) -> None:
    assert served_sizes(flags, stored) == ElementSizes(*sizes)


def test_memory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert kv_bytes_by_default(on_cpu=False) is None and kv_bytes_by_default(on_cpu=True) == GIB
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert kv_bytes_by_default(on_cpu=True) == 4 * GIB


@pytest.mark.parametrize(
    ("entry", "name", "source"),
    [
        ("./models/half", "half", "./models/half"),
        ("uniform=./models/half", "uniform", "./models/half"),
        ("./a=b/half", "half", "./a=b/half"),
        ("org/model", "model", "org/model"),
    ],
)
def test_names_of_checkpoints(entry: str, name: str, source: str) -> None:
    assert named(entry) == (name, source)


def test_share_of_multiples() -> None:
    assert share_of_multiples([64, 128, 100, 65], 64) == 0.5
