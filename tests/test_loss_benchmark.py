"""`benchmarks/loss.py`, on a small vocabulary."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from optimum_grasprune.execution import loss
from tests.conftest import script


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_ways_are_measured_and_compared(
    dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss, "IN_CACHE", 300)
    command = ["loss.py", "--tokens", "12", "--vocabulary", "50", "--dtype", dtype, "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", command)
    with torch.random.fork_rng():
        script("benchmarks/loss.py").main()
        assert loss.IN_CACHE == 300
        rows = capsys.readouterr().out.splitlines()
        assert [row.split(" | ")[0] for row in rows[2:]] == ["| next token", "| with a teacher"]
        by_rows = loss._by_rows

        def wrong(logits_BSV: torch.Tensor, of_rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
            found, gradient_BSV = by_rows(logits_BSV, of_rows)
            return found, 2 * gradient_BSV

        monkeypatch.setattr(loss, "_by_rows", wrong)
        with pytest.raises(SystemExit, match="the gradients differ"):
            script("benchmarks/loss.py").main()
