from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from optimum_grasprune.surgery.paging import let_pages_go


def of_files() -> int:
    """Bytes of files that are resident in this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssFile"].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux alone")
def test_pages_of_a_file_go_and_come_again_with_what_they_held(tmp_path: Path) -> None:
    file, size = tmp_path / "weights.safetensors", 32 * 2**20
    numbers = torch.arange(size // 4, dtype=torch.float32)
    save_file({"first": numbers, "second": numbers + 1}, file)
    with safe_open(file, "pt") as stored:
        first, second = stored.get_tensor("first"), stored.get_tensor("second")
    assert first.sum() < second.sum()
    before = of_files()
    let_pages_go(first)
    assert before - of_files() > 0.9 * size
    assert torch.equal(first, numbers) and torch.equal(second, numbers + 1)


def test_memory_of_other_kinds_stays_as_it_is() -> None:
    for tensor in (torch.ones(3), torch.arange(2**20), torch.ones(2**10, 2**10).T, torch.empty(4, device="meta")):
        before = tensor.clone()
        let_pages_go(tensor)
        assert tensor.is_meta or torch.equal(tensor, before)
