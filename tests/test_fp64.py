"""Devices that hold no fp64, as Apple's: what is worked out in it goes to the CPU, and only what is not comes back.

The meta device stands for one: it refuses fp64 here, and whatever is fetched from it are ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimum_grasprune import numerics
from optimum_grasprune.evaluation.needles import scored
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.methods.flap import unit_fluctuation
from optimum_grasprune.methods.statistical import element_scores
from optimum_grasprune.methods.wanda_sp import unit_metric
from optimum_grasprune.numerics import fp64_device, in_fp64
from optimum_grasprune.recovery.bias import missing_mean
from optimum_grasprune.recovery.energy import corrected
from optimum_grasprune.recovery.least_squares import _solve
from optimum_grasprune.statistics import MOMENTS, Moments
from tests.conftest import make_model

PACKAGE = Path(numerics.__file__).parent
KEPT = torch.tensor([0, 2])

OF_CPU_TENSORS = {
    "execution/several_processes.py": "losses that there are none of, where those that there are lie",
    "execution/trace.py": "the curves of a training that is done",
    "export/sharded.py": "names of data types in files",
    "methods/gradients.py": "scores, which are gathered on the CPU",
    "record/scores.py": "scores of a mask",
    "statistics/moments.py": "moments of no token",
    "stored_tensors.py": "names of data types in files",
    "units/inventory.py": "places of units",
    "units/masks.py": "a mask",
    "numerics.py": "the way there",
}
"""Files that name fp64 themselves, and of what."""


class _WithoutFp64(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            if kwargs.get("dtype") is torch.float64:
                raise TypeError("converted to fp64 where there is none")
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        result = func(*args, **kwargs)
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.is_meta and each.dtype is torch.float64:
                raise TypeError("fp64 where there is none")
        return result


@pytest.fixture
def without_fp64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(numerics, "_WITHOUT_FP64", {"meta"})
    with _WithoutFp64():
        yield


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_only_apples_devices_hold_none() -> None:
    assert fp64_device(torch.device("mps:0")) == torch.device("cpu")
    for name in ("cpu", "cuda:1", "xpu:0"):
        assert fp64_device(torch.device(name)) == torch.device(name)
    assert in_fp64(torch.tensor([0.5])).dtype is torch.float64


def test_the_device_stands_for_one(without_fp64: None) -> None:
    for convert in (lambda: empty(2).double(), lambda: empty(2).to("cpu", torch.float64)):
        with pytest.raises(TypeError, match="fp64"):
            convert()
    with pytest.raises(TypeError, match="fp64"):
        torch.ones(2, dtype=torch.float64).to("meta")


def test_moments(without_fp64: None) -> None:
    moments = Moments.empty(4).update(empty(5, 4)).update(empty(3, 4).bfloat16())
    assert moments.count == 8 and torch.equal(moments.mean_I, torch.ones(4, dtype=torch.float64))
    collector = MOMENTS.collector((), {"map": 4})
    collector.see("map", empty(5, 4))
    kept = collector.kept()
    assert kept is not None
    collector.take_up(kept, torch.device("meta"))
    collector.see("map", empty(5, 4))
    assert collector.result(10)["map"].count == 10


def test_scores_of_columns(without_fp64: None) -> None:
    moments, weight = Moments.empty(4).update(empty(5, 4)), empty(6, 4)
    assert element_scores(weight, moments.variance_I).is_meta
    assert unit_metric(weight, moments.norm_I, 2).shape == (2,)
    assert unit_fluctuation(weight, moments.variance_I, 2).shape == (2,)


def test_what_makes_up_for_a_cut(without_fp64: None) -> None:
    moments, weight = Moments.empty(4).update(empty(5, 4)), empty(6, 4)
    assert missing_mean(weight, moments.mean_I, KEPT).dtype is torch.float32
    scaled, _ = corrected(weight, weight[:, KEPT], moments, KEPT, has_bias=False)
    with_zeros, shift = corrected(weight, weight, moments, has_bias=True)
    assert scaled.is_meta and scaled.shape == (6, 2) and with_zeros.is_meta
    assert shift is not None and shift.dtype is torch.float32
    solved = _solve(empty(2, 2), 0.5, empty(6, 2), "a map")  # the first factorisation fails: it is asked and says True
    assert solved.is_meta and solved.shape == (6, 2)


def test_losses_and_log_likelihoods(without_fp64: None) -> None:
    (losses,) = WholeModel(make_model().to("meta")).losses(torch.arange(20).view(2, 10), 2)
    assert torch.equal(losses, torch.ones(2, 9, dtype=torch.float64))
    assert scored(empty(5, 7), torch.arange(5), 2) == (False, -2.0)


def test_whoever_writes_fp64_says_of_what() -> None:
    named = re.compile(r"\.double\(\)|\bfloat64\b|torch\.double\b")
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if named.search(file.read_text())}
    assert found == OF_CPU_TENSORS.keys()
