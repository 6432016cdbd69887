"""Tables and the model card."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table

from .checkpoint import needs_code
from .methods import get_method
from .recovery.chain import sentence

GITHUB_NAME = "optimum-grasprune"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], footer: str = "") -> None:
    """A table on standard output: the first column left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left", caption=footer or None, caption_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def budget_rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (quantity, dense, pruned, share kept) of a record's budget; single weights that were cut are not counted."""
    budget = record["budget"]
    dense, pruned, kept = budget["dense"], budget["pruned"], budget["kept"]
    names = (
        ("prunable parameters", "prunable", "prunable"),
        ("all parameters", "parameters", "parameters"),
        ("KV cache, elements per token", "kv_elements_per_token", "kv_cache"),
    )
    return [(label, f"{dense[total]:,}", f"{pruned[total]:,}", f"{kept[share]:.2%}") for label, total, share in names]


def print_summary(record: dict[str, Any], title: str) -> None:
    """The budget of a pruned model, asked and met."""
    asked = record["budget"]["asked"]
    footer = "" if asked is None else f"asked: at most {asked['cost']:,} prunable parameters"
    if asked is not None and asked["kv_width"] is not None:
        footer += f", at most {asked['kv_width']:,} KV elements per token"
    if record.get("plan", {}) is None:
        footer += "; the weights that were cut are stored as zeros, the model has its dense size"
    print_table(title, ("", "dense", "pruned", "kept"), budget_rows(record), footer)


def public_name(source: str) -> str:
    """What a model or corpus is called elsewhere: its name on a hub, or the last part of its path on this machine."""
    cached = re.findall(r"models--([^/]+?)--([^/]+)/snapshots/", source)
    if cached:
        return "/".join(cached[-1])
    of_a_machine = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    if source and (of_a_machine or os.path.exists(source)):
        # Windows' rules know both slashes.
        return PureWindowsPath(os.path.abspath(source) if source.startswith(".") else source).name
    return source


def model_card(record: dict[str, Any]) -> str:
    """The README.md of a checkpoint: what it is, how it was made, how to load and serve it."""
    recipe, base = record["recipe"], record["base_model"]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[GITHUB_NAME, "pruned", recipe["method"]],
    )
    rows = "\n".join(f"| {' | '.join(row)} |" for row in budget_rows(record))
    in_units = record["plan"] is not None
    what = _what_units(recipe, record["compensation"]) if in_units else _what_elements(recipe)
    contents = ", the calibration corpus's hash and the plan" if in_units else " and the calibration corpus's hash"
    stock = not in_units and not needs_code(base["model_type"])
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# {base['name'] or base['model_type']}, pruned\n\n"
            f"{what}\n\n"
            f"| | dense | pruned | kept |\n|---|---:|---:|---:|\n{rows}\n\n"
            f"{_calibration_line(record)}\n\n"
            f"{_USE_STOCK if stock else _USE}\n"
            f"{_widths(record) if in_units else ''}"
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


def _what_units(recipe: dict[str, Any], stages: list[str]) -> str:
    source = get_method(recipe["method"]).source
    return (
        f"A smaller dense model, made by {GITHUB_NAME} with the method `{recipe['method']}`"
        f"{f' ({source})' if source else ''}. FFN channels and KV head groups were cut under one budget, so every "
        f"layer has its own widths. {sentence(stages)}"
    )


def _what_elements(recipe: dict[str, Any]) -> str:
    return (
        f"A model of the dense model's size with zeros in it, made by {GITHUB_NAME} with the method "
        f"`{recipe['method']}`, pattern `{recipe['pattern']}`: single weights of the linear maps in the decoder layers "
        "were set to zero. Below, a zero put for a weight is not counted, but it is stored: the files are no smaller, "
        "and only an engine that knows sparse matrices runs it faster. No weight was retrained."
    )


def _widths(record: dict[str, Any]) -> str:
    return f"## Widths\n\n| layer | FFN channels | KV heads |\n|---:|---:|---:|\n{_width_rows(record)}\n\n"


def _calibration_line(record: dict[str, Any]) -> str:
    calibration = record["calibration"]
    if calibration is None:
        return "Made without calibration data."
    count, length = calibration["sequences"]
    source = ", ".join(public_name(part.strip()) for part in calibration["source"].split(","))
    return (
        f"Calibrated on {count} sequences of {length} tokens of `{source}` "
        f"(sha256 `{calibration['sha256'][:16]}…`), seed {record['recipe']['seed']}."
    )


def _width_rows(record: dict[str, Any]) -> str:
    layers: dict[int, dict[str, str]] = {}
    for group in record["plan"]["groups"]:
        layers.setdefault(group["layer"], {})[group["kind"]] = f"{len(group['kept'])} of {group['count']}"
    return "\n".join(f"| {layer} | {widths['ffn']} | {widths['kv']} |" for layer, widths in layers.items())
