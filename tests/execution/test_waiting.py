"""How often we ask a device for a number, which has to be waited for.

transformers does so by itself once a forward pass, to see whether several texts are packed into one sequence.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.gates import train_gates
from optimum_grasprune.statistics import MOMENTS, PER_TOKEN, TOKEN_WEIGHTS

TOKENS = torch.randint(258, (8, 20), generator=torch.Generator().manual_seed(0))


ROOMS = ("execution", "gates", "statistics")
"""What is done at every step or sequence; elsewhere masks are looked at that are on the CPU."""


class _Asked(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_stack(None)]
            asker = next(file for file in files if "torch" not in file.parts and file != Path(__file__))
            counts_steps = any("optim" in file.parts for file in files)  # AdamW, on the CPU
            self.times += asker.parent.name in ROOMS and not counts_steps
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_step_of_gate_training_asks_for_its_loss(
    model: LlamaForCausalLM, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunked:
        monkeypatch.setattr("optimum_grasprune.execution.chunks.MOST_LOGITS", 258 * 5)
    runner = WholeModel(model)
    budget = Budget(runner.inventory.total_cost // 2)
    times = []
    for steps in (2, 8):
        with _Asked() as asked:
            train_gates(runner, budget, TOKENS[:steps], GRASPConfig(snapshots=1))
        times.append(asked.times)
    assert times[1] - times[0] == 6


def test_statistics_are_asked_for_when_all_sequences_were_read(model: LlamaForCausalLM) -> None:
    times = []
    for sequences in (1, 8):
        with _Asked() as asked:
            WholeModel(model).gather([MOMENTS, PER_TOKEN, TOKEN_WEIGHTS], TOKENS[:sequences])
        times.append(asked.times)
    assert times[0] == times[1] < 20
