"""How torch computes while we work: what the caller has set is put aside, and put back afterwards."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import RunOptions
from .errors import GraspruneWarning, OptionError
from .progress import tidy

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")

_HALF = (torch.float16, torch.bfloat16)

_WITHOUT_HALF = frozenset(["AVX2"])
"""What torch calls CPUs whose instructions know no half precision."""

_LITTLE = 2e9
"""Parameters × tokens that take some seconds in half precision on such a CPU, and no time in fp32."""

_WITHOUT_FP64 = frozenset(["mps"])
"""Types of devices that hold no number in fp64."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Configured(Protocol):
    @property
    def config(self) -> RunOptions: ...


Owner = TypeVar("Owner", bound=_Configured)
Pruning = Callable[Concatenate[Owner, PreTrainedModel, Arguments], Result]


def on_plain_torch(method: Pruning[Owner, Arguments, Result]) -> Pruning[Owner, Arguments, Result]:
    """Decorator of a pruner's method that takes a model: it gives the same whatever torch is set to around the call.

    It follows the configuration's `deterministic`, and leaves no display open.
    """

    @wraps(method)
    def run(self: Owner, model: PreTrainedModel, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with plain_work(self.config):
            return method(self, model, *args, **kwargs)

    return run


@contextmanager
def plain_work(config: RunOptions) -> Iterator[None]:
    """What `on_plain_torch` does, for a block."""
    with tidy(), plain_torch(), deterministic_algorithms(config.deterministic):
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """What torch is when nothing was set: gradients on, fp32 and the CPU by default, no autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Algorithms of torch's that give the same bits every time; as they were set without `wanted`, and afterwards.

    Raises OptionError where torch has none for an operation.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(CUBLAS_VARIABLE)
    try:
        if workspace not in _DETERMINISTIC_WORKSPACES:  # torch refuses to multiply matrices on a GPU without
            os.environ[CUBLAS_VARIABLE] = _DETERMINISTIC_WORKSPACES[0]
        cudnn.deterministic, cudnn.benchmark = True, False
        torch.use_deterministic_algorithms(True)
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise OptionError("deterministic", True, str(error).splitlines()[0]) from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(CUBLAS_VARIABLE, None)
        else:
            os.environ[CUBLAS_VARIABLE] = workspace


def fp64_device(device: torch.device) -> torch.device:
    """Where numbers in fp64 are that belong to a device: there, or on the CPU where it has none, as Apple's."""
    return torch.device("cpu") if device.type in _WITHOUT_FP64 else device


def in_fp64(x: Tensor) -> Tensor:
    """The tensor in fp64, on its `fp64_device`."""
    # One after the other: a device without fp64 cannot convert before it hands over.
    return x.to(fp64_device(x.device)).to(torch.float64)


def tell_when_slow(dtype: torch.dtype, device: torch.device, work: float) -> None:
    """Warn, once a process, where more than a little runs in a precision that this CPU has no instructions for.

    work: parameters × tokens that have gone through a model so far.
    """
    if dtype not in _HALF or device.type != "cpu" or work <= _LITTLE:
        return
    if torch.backends.cpu.get_cpu_capability() in _WITHOUT_HALF:
        _tell_once(str(dtype).removeprefix("torch."))


@cache
def _tell_once(dtype: str) -> None:
    line = (
        f"this CPU computes {dtype} in software, many times slower than float32: give --dtype float32, or model.float()"
    )
    warnings.warn(line, GraspruneWarning, stacklevel=2)


def precision_advice(dtype: torch.dtype) -> str:
    """What may help where numbers of this precision were not finite any more; to end a message with."""
    if dtype in _HALF:
        return "try --dtype float32"
    return "it is computed in float32 already, so look at the weights of the model"


def even_shares(number: int, parts: int) -> tuple[int, ...]:
    """A number split evenly, the first parts taking one more where it does not divide."""
    return tuple(number // parts + (place < number % parts) for place in range(parts))
