"""Timing transformers' own `generate`, for users without vLLM: prefill and decode apart.

Shape suffixes: B batch, S prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...loading import load_model
from ..checkpoints import Checkpoint
from ..fit import element_bytes
from ..plan import Turn
from ..results import Run, RunOptions, Start
from ..workload import Point
from .base import ElementSizes, Engine, Mode, Session
from .registry import register


class GenerateSession(Session[PreTrainedModel]):
    """Loads models into this process, and times a batch of a point's concurrency."""

    @contextmanager
    def running(self, checkpoint: Checkpoint, repetition: int, place: int) -> Iterator[PreTrainedModel]:
        """A checkpoint's model."""
        plan = self.plan
        start = time.perf_counter()
        model = load_model(
            checkpoint.source,
            dtype=plan.options.dtype or "auto",
            device=plan.device or "auto",
            trust_remote_code=plan.trust_remote_code,
            revision=plan.revision,
        )
        seconds = round(time.perf_counter() - start, 2)
        self.starts.append(Start(checkpoint.name, repetition, load_seconds=seconds))
        yield model
        del model
        with suppress(RuntimeError):  # there is no accelerator
            torch.accelerator.empty_cache()

    def measure(self, running: PreTrainedModel, turn: Turn) -> Run:
        """Time one batch."""
        metrics = time_generation(running, turn.point, turn.seed)
        self.announce(f"{turn}: {metrics['decode_throughput']:,.1f} tokens/s in decode")
        return turn.measured(metrics)


@register("transformers")
class TransformersEngine(Engine):
    """transformers in this process, a cache and nothing else."""

    modes: ClassVar[Mapping[str, Mode]] = {
        "generate": Mode(
            GenerateSession,
            runs="transformers' `generate`",
            headline=("output_throughput", "prefill_ms", "decode_step_ms"),
            without=(
                *("kv_cache_memory", "serve_flags", "num_prompts"),
                *("port", "start_timeout", "prompts", "output_len"),
            ),
            at_once="sequences in a batch",
            inner="points",
        )
    }

    @classmethod
    def element_sizes(cls, options: RunOptions, stored: str) -> ElementSizes:
        """The model's own element type unless another was asked for; the cache has the same."""
        asked = options.dtype or "auto"
        size = element_bytes(stored if asked == "auto" else asked)
        return ElementSizes(size, size)


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
