"""How vLLM is started: its command, and the flags and variables that all checkpoints of a benchmark share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...fit import GIB, element_bytes
from ...plan import Plan
from ..base import ElementSizes

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
"""The `vllm` command of this Python, wherever its scripts lie."""
KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's CPU backend takes whole GiB of KV cache from it, and prefers it to the flag."""


@dataclass(frozen=True)
class Launch:
    """One way of starting vLLM for all checkpoints.

    flags: for `vllm serve` and the offline benchmarks.  environment: variables set on top; None removes one.
    """

    flags: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)


def launch_of(plan: Plan, flags: Sequence[str] = ()) -> Launch:
    """How a plan's checkpoints are started. flags: before those that the plan has."""
    return launch_with(
        [*flags, *plan.options.serve_flags],
        kv_bytes=plan.options.kv_cache_bytes,
        trust_remote_code=plan.trust_remote_code,
        revision=plan.revision,
    )


def launch_with(
    flags: Sequence[str],
    *,
    kv_bytes: int | None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Launch:
    """The given flags after ours, so that they win. kv_bytes: memory of the KV cache; None for what vLLM finds.

    Prefix caching is off: requests that come twice would be measured without their prefill.
    The variable of the CPU backend is removed, since it would override the flag for the KV cache's memory.
    """
    ours = ["--no-enable-prefix-caching"]
    if kv_bytes is not None:
        ours += ["--kv-cache-memory-bytes", str(kv_bytes)]
    if dtype is not None:
        ours += ["--dtype", dtype]
    if trust_remote_code:
        ours.append("--trust-remote-code")
    if revision is not None:
        ours += ["--revision", revision, "--tokenizer-revision", revision]
    return Launch((*ours, *flags), {KV_VARIABLE: None} if kv_bytes is not None else {})


def kv_bytes_by_default(on_cpu: bool) -> int | None:
    """Memory of the KV cache where none was asked for.

    On a GPU what vLLM leaves after the weights. On a CPU vLLM would take nearly all memory for itself: instead what its
    variable says, or 1 GiB.
    """
    if not on_cpu:
        return None
    given = os.environ.get(KV_VARIABLE, "")
    return int(given) * GIB if given.isdigit() and int(given) > 0 else GIB


def served_sizes(flags: Sequence[str], stored: str) -> ElementSizes:
    """Bytes of one weight and of one KV-cache element, by the flags and the element type on disk.

    Without `--dtype` vLLM serves fp32 checkpoints in half precision.
    """
    asked = flag_value(flags, "--dtype") or "auto"
    weight = element_bytes(("float16" if stored == "float32" else stored) if asked == "auto" else asked)
    cache = flag_value(flags, "--kv-cache-dtype") or "auto"
    return ElementSizes(weight, weight if cache == "auto" else element_bytes(cache))


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, as `--name value` or `--name=value`; the last one counts."""
    value = None
    for place, flag in enumerate(flags):
        if flag.startswith(f"{name}="):
            value = flag.partition("=")[2]
        elif flag == name and place + 1 < len(flags):
            value = flags[place + 1]
    return value
