"""How vLLM is started: the flags and variables that all checkpoints of a benchmark share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from .metrics import element_bytes

GIB = 2**30
KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's CPU backend takes whole GiB of KV cache from it, and prefers it to the flag."""


@dataclass(frozen=True)
class Engine:
    """One way of starting vLLM for all checkpoints.

    flags: for `vllm serve` and the offline benchmarks.  kv_bytes: memory of the KV cache; None for what vLLM finds.
    """

    flags: tuple[str, ...] = ()
    kv_bytes: int | None = None
    environment: dict[str, str | None] = field(default_factory=dict)


def engine_of(
    flags: Sequence[str],
    *,
    kv_bytes: int | None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Engine:
    """The engine with the given flags, after ours, so that they win.

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
    return Engine((*ours, *flags), kv_bytes, {KV_VARIABLE: None} if kv_bytes is not None else {})


def kv_bytes_by_default(on_cpu: bool) -> int | None:
    """Memory of the KV cache where none was asked for.

    On a GPU what vLLM leaves after the weights. On a CPU vLLM would take nearly all memory for itself: instead what its
    variable says, or 1 GiB.
    """
    if not on_cpu:
        return None
    given = os.environ.get(KV_VARIABLE, "")
    return int(given) * GIB if given.isdigit() and int(given) > 0 else GIB


def served_bytes(flags: Sequence[str], stored: str) -> tuple[int, int]:
    """Bytes of one weight and of one KV-cache element, by the flags and the element type on disk.

    Without `--dtype` vLLM serves fp32 checkpoints in half precision.
    """
    asked = flag_value(flags, "--dtype") or "auto"
    weight = element_bytes(("float16" if stored == "float32" else stored) if asked == "auto" else asked)
    cache = flag_value(flags, "--kv-cache-dtype") or "auto"
    return weight, weight if cache == "auto" else element_bytes(cache)


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, as `--name value` or `--name=value`; the last one counts."""
    value = None
    for place, flag in enumerate(flags):
        if flag.startswith(f"{name}="):
            value = flag.partition("=")[2]
        elif flag == name and place + 1 < len(flags):
            value = flags[place + 1]
    return value
