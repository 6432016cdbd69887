"""The model card of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from ..methods import get_method
from ..record import HeldOutLosses, Record, SharedRun
from ..record.describe import public_name
from ..recovery.chain import sentence
from ..report import budget_rows
from ..units import KINDS, PruningPlan, UnitKind
from .checkpoint import needs_code

GITHUB_NAME = "optimum-grasprune"


def model_card(record: Record) -> str:
    """The README.md of a checkpoint: what it is, how it was made, how to load and serve it."""
    method, base = str(record.recipe["method"]), record.base_model
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[GITHUB_NAME, "pruned", method],
    )
    rows = "\n".join(f"| {' | '.join(row)} |" for row in budget_rows(record))
    in_units = record.plan is not None
    what = _what(record)
    contents = ", the calibration corpus's hash and the plan" if in_units else " and the calibration corpus's hash"
    of_own_class = record.plan is None or record.plan.whole_layers
    stock = of_own_class and not needs_code(base.model_type)
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# {base.name or base.model_type}, pruned\n\n"
            f"{what}\n\n"
            f"| | dense | pruned | kept |\n|---|---:|---:|---:|\n{rows}\n\n"
            f"{_calibration_line(record)}{_shared_line(record.shared)}{_recovery_line(record)}\n\n"
            f"{_USE_STOCK if stock else _USE}\n"
            f"{'' if record.plan is None or record.plan.whole_layers else _widths(record.plan)}"
            f"The whole recipe{contents} are in `grasp_config.json`.\n"
        )
    )


_USE = """## Use

```python
import optimum_grasprune  # or trust_remote_code=True below
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

```bash
vllm serve path/to/this/folder   # with optimum-grasprune installed
```
"""
_USE_STOCK = """## Use

It is an ordinary checkpoint of the dense model's class; nothing but transformers is needed.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

```bash
vllm serve path/to/this/folder
```
"""


def _what(record: Record) -> str:
    method = str(record.recipe["method"])
    if record.plan is None:
        return _what_elements(method, record.recipe["pattern"])
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


def _calibration_line(record: Record) -> str:
    calibration = record.calibration
    if calibration is None:
        return "Made without calibration data."
    count, length = calibration.sequences
    source = ", ".join(public_name(part.strip()) for part in calibration.source.split(","))
    return (
        f"Calibrated on {count} sequences of {length} tokens of `{source}` "
        f"(sha256 `{calibration.sha256[:16]}…`), seed {record.recipe['seed']}."
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


def _widths(plan: PruningPlan) -> str:
    kinds = [kind for kind in KINDS.values() if any(group.kind == kind for group in plan.groups)]
    heading = " | ".join(["layer", *(kind.heading for kind in kinds)])
    rows = (
        f"| {layer} | {' | '.join(_width(plan, layer, kind) for kind in kinds)} |" for layer in range(plan.num_layers)
    )
    return f"## Widths\n\n| {heading} |\n|{'---:|' * (len(kinds) + 1)}\n" + "\n".join(rows) + "\n\n"


def _width(plan: PruningPlan, layer: int, kind: UnitKind) -> str:
    """What a layer keeps of a kind, all its blocks together; nothing where it has none."""
    groups = [group for group in plan.groups if (group.layer, group.kind) == (layer, kind)]
    if not groups:
        return ""
    return f"{sum(len(group.kept) for group in groups)} of {sum(group.count for group in groups)}"
