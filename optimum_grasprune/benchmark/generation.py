"""Timing transformers' own `generate`, for users without vLLM: prefill and decode apart.

Shape suffixes: B batch, S prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..loading import load_model
from .checkpoints import Checkpoint
from .serving import Announce, Result, place_of, run_record, seed_of
from .workload import Point


@dataclass(frozen=True)
class Generation:
    """How `generate` is timed. together: all models stay loaded; else each is loaded once in every repetition."""

    repetitions: int = 3
    together: bool = False
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    trust_remote_code: bool = False
    revision: str | None = None


def run_generation(
    options: Generation,
    checkpoints: Sequence[Checkpoint],
    points: Sequence[Point],
    announce: Announce = lambda line: None,
) -> Result:
    """Time every point on every checkpoint, A B A B …, each as one batch of its concurrency.

    Returns `starts`, the times of loading, and `runs`, as JSON types.
    """
    starts: list[Result] = []
    runs: list[Result] = []
    loaded: dict[str, PreTrainedModel] = {}
    for repetition in range(options.repetitions):
        for checkpoint in checkpoints:
            if checkpoint.name not in loaded:
                start = time.perf_counter()
                loaded[checkpoint.name] = load_model(
                    checkpoint.source,
                    dtype=options.dtype,
                    device=options.device,
                    trust_remote_code=options.trust_remote_code,
                    revision=options.revision,
                )
                seconds = round(time.perf_counter() - start, 2)
                starts.append({"checkpoint": checkpoint.name, "repetition": repetition, "load_seconds": seconds})
            model = loaded[checkpoint.name]
            for number, point in enumerate(points):
                seed = seed_of(options.seed, repetition, number)
                metrics = time_generation(model, point, seed)
                runs.append(run_record(checkpoint, repetition, point, seed, metrics))
                where = place_of(checkpoint, repetition, point)
                announce(f"{where}: {metrics['decode_throughput']:,.1f} tokens/s in decode")
            if not options.together:
                del model, loaded[checkpoint.name]
                with suppress(RuntimeError):  # there is no accelerator
                    torch.accelerator.empty_cache()
    return {"starts": starts, "runs": runs, "commands": []}


def time_generation(model: PreTrainedModel, point: Point, seed: int) -> dict[str, float]:
    """Times of one batch of random prompts, after a short warm-up.

    The prefill is what generating one token takes; the decode is what all the others take on top of it.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (point.concurrency, point.lengths.prompt)
    prompt_BS = torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)
    _generate(model, prompt_BS, 2)
    prefill = _timed(lambda: _generate(model, prompt_BS, 1), model.device)
    whole = _timed(lambda: _generate(model, prompt_BS, point.lengths.output), model.device)
    return {
        **rates(point, prefill, whole),
        "prompt_tokens": float(size[1]),
        "output_tokens": float(point.lengths.output),
    }


def rates(point: Point, prefill: float, whole: float) -> dict[str, float]:
    """Throughputs in tokens per second and times in ms, from the seconds of the first token and of all of them."""
    batch, lengths = point.concurrency, point.lengths
    decode = max(whole - prefill, 1e-9)  # a clock that is too coarse must not divide by zero
    return {
        "prefill_throughput": batch * lengths.prompt / prefill,
        "decode_throughput": batch * (lengths.output - 1) / decode,
        "output_throughput": batch * lengths.output / whole,
        "prefill_ms": 1000 * prefill,
        "decode_step_ms": 1000 * decode / (lengths.output - 1),
    }


def _generate(model: PreTrainedModel, prompt_BS: Tensor, tokens: int) -> None:
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens}  # an end token would end some sequences early
    mask_BS = torch.ones_like(prompt_BS)
    model.generate(prompt_BS, attention_mask=mask_BS, do_sample=False, pad_token_id=0, **length)  # type: ignore[operator]


def _timed(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
