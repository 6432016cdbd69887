"""A checkpoint in words: what it is, and what it was made with."""

from __future__ import annotations

from collections.abc import Sequence

from ..methods import get_method
from ..record import HeldOutLosses, Record, SharedRun
from ..record.describe import public_name, public_sources
from ..recovery.chain import sentence
from ..units import PruningPlan

GITHUB_NAME = "optimum-grasprune"


def what_it_is(record: Record) -> str:
    """The paragraph that a card begins with."""
    method = str(record.option("method"))
    if record.plan is None:
        return _what_elements(method, record.option("pattern"))
    if record.plan.whole_layers:
        return _what_layers(method, record.plan, record.compensation)
    return _what_units(method, sentence(record.compensation, multiplied=record.plan.multiplied))


def _what_layers(method: str, plan: PruningPlan, compensation: Sequence[str]) -> str:
    dropped = sorted({group.layer for group in plan.groups} - {group.layer for group in plan.groups if group.kept})
    which = (
        f"Of its {plan.num_layers} layers, number {', '.join(map(str, dropped))} went" if dropped else "No layer went"
    )
    others = f". {sentence(compensation)}" if compensation else "; the others are as they were."
    return (
        f"A model of fewer layers, made by {GITHUB_NAME} with the method `{method}` ({get_method(method).source}). "
        f"{which} (counted from 0){others}"
    )


def _what_units(method: str, made_up: str) -> str:
    source = get_method(method).source
    return (
        f"A smaller dense model, made by {GITHUB_NAME} with the method `{method}`"
        f"{f' ({source})' if source else ''}. FFN channels and KV head groups were cut under one budget, so every "
        f"layer has its own widths. {made_up}"
    )


def _what_elements(method: str, pattern: object) -> str:
    return (
        f"A model of the dense model's size with zeros in it, made by {GITHUB_NAME} with the method "
        f"`{method}`, pattern `{pattern}`: single weights of the linear maps in the decoder layers "
        "were set to zero. Below, a zero put for a weight is not counted, but it is stored: the files are no smaller, "
        "and only an engine that knows sparse matrices runs it faster. No weight was retrained."
    )


def how_it_was_made(record: Record) -> str:
    """The text that was looked at, the run, and the training of weights, where there was one."""
    return f"{_calibration_line(record)}{_shared_line(record.shared)}{_recovery_line(record)}"


def _calibration_line(record: Record) -> str:
    calibration = record.calibration
    if calibration is None:
        return "Made without calibration data."
    count, length = calibration.sequences
    source = ", ".join(public_sources(calibration.source))
    return (
        f"Calibrated on {count} sequences of {length} tokens of `{source}` "
        f"(sha256 `{calibration.sha256[:16]}…`), seed {record.option('seed')}."
    )


def _shared_line(shared: SharedRun | None) -> str:
    if shared is None:
        return ""
    *others, last = map(str, shared.keep_ratios)
    nested = "; its units are among those of the larger ones" if shared.nested else ""
    return f" It was made in one run for the keep ratios {', '.join(others)} and {last}{nested}."


def _recovery_line(record: Record) -> str:
    """What the weights were trained on, and what it came to; empty where they were not."""
    recovery = record.recovery
    if recovery is None or not recovery.kept_step:
        return ""
    before, after = recovery.before or HeldOutLosses(), recovery.after or HeldOutLosses()
    watched = public_name(recovery.watched.source) if recovery.watched else ""
    texts = [(before.held_out, after.held_out, "of its end"), (before.watched, after.watched, f"of `{watched}`")]
    losses = " and ".join(
        f"{first:.3f} to {last:.3f} on text {where}"
        for first, last, where in texts
        if first is not None and last is not None
    )
    line = f" The weights were trained on {recovery.tokens:,} tokens of the same text"
    return f"{line}; the loss fell from {losses}, in nats a token." if losses else f"{line}."
