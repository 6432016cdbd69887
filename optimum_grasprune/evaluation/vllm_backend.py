"""A vLLM engine as lm-evaluation-harness wants it. Needs lm-eval and vLLM, the extras `eval` and `vllm`."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from ..config import BackendOptions
from ..errors import GraspruneError, OptionError, first_line
from ..model_files import ReadAs

KV_VARIABLE, KV_GIB = "VLLM_CPU_KVCACHE_SPACE", "1"
"""Where vLLM's CPU backend reads its KV cache from, in GiB, and what tasks need of it: their requests are short."""

_OURS = ("pretrained", "dtype", "trust_remote_code", "revision", "batch_size")


def check_vllm(options: BackendOptions, device: str) -> None:
    """Raise OptionError where vLLM is not installed, or is given what it does not take. device: that was asked for."""
    if options.backend == "vllm":
        if find_spec("vllm") is None:
            reason = 'vLLM is not installed: pip install "optimum-grasprune[vllm]", or give --backend hf'
            raise OptionError("backend", "vllm", reason)
        if device != "auto":
            raise OptionError("device", device, "vLLM takes the device that it is built for")
        parsed_args(options.model_args)
    elif options.model_args is not None:
        raise OptionError("model_args", options.model_args, "is of use only with --backend vllm")


def parsed_args(text: str | None) -> dict[str, Any]:
    """Arguments of the engine from KEY=VALUE,KEY=VALUE, as the harness reads them; OptionError where they are none."""
    from lm_eval.utils import simple_parse_args_string

    parts = [part for part in (text or "").split(",") if part.strip()]
    if any("=" not in part for part in parts):
        raise OptionError("model_args", text, "should look like KEY=VALUE,KEY=VALUE")
    values: dict[str, Any] = simple_parse_args_string(text or "")
    for name in _OURS:
        if name in values:
            raise OptionError("model_args", text, f"{name} has an option of its own, or is the model")
    return values


@contextmanager
def engine(source: str, options: BackendOptions, dtype: str, batch_size: int | None, read_as: ReadAs) -> Iterator[Any]:
    """An engine on a checkpoint until the block ends, which gives its memory back.

    dtype: as in `EvaluationOptions`.  batch_size: None for what it takes.
    Raises GraspruneError where it does not start.
    """
    from lm_eval.models.vllm_causallms import VLLM

    try:
        with kv_cache_on_a_cpu():
            model = VLLM(
                pretrained=source,
                dtype=dtype,
                batch_size=batch_size or "auto",
                **read_as,
                **parsed_args(options.model_args),
            )
    except Exception as error:  # vLLM's engine has as many types as it has parts
        raise GraspruneError(f"vLLM does not start with {source}: {first_line(error)}") from None
    try:
        yield model
    finally:
        model.model.llm_engine.engine_core.shutdown()  # the next model needs the memory
        del model
        gc.collect()


@contextmanager
def kv_cache_on_a_cpu() -> Iterator[None]:
    """A modest KV cache for vLLM's CPU backend, unless the user set one; GPUs do not look at it.

    Left to itself it asks for nearly all of the machine's memory, and starts nowhere where anything else runs.
    """
    given = KV_VARIABLE in os.environ
    os.environ.setdefault(KV_VARIABLE, KV_GIB)
    try:
        yield
    finally:
        if not given:
            del os.environ[KV_VARIABLE]
