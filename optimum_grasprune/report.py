"""Tables and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table

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
    """Rows (quantity, dense, pruned, share kept) of a record's budget."""
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
    print_table(title, ("", "dense", "pruned", "kept"), budget_rows(record), footer)


def model_card(record: dict[str, Any]) -> str:
    """The README.md of a checkpoint: what it is, how it was made, how to load and serve it."""
    recipe, base = record["recipe"], record["base_model"]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[GITHUB_NAME, "pruned", recipe["method"]],
    )
    rows = "\n".join(f"| {' | '.join(row)} |" for row in budget_rows(record))
    widths = _width_rows(record)
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# {base['name'] or base['model_type']}, pruned\n\n"
            f"A smaller dense model, made by {GITHUB_NAME} with the method `{recipe['method']}` "
            f"(GRASPrune, arXiv 2604.19398). FFN channels and KV head groups were cut under one budget, so every layer "
            f"has its own widths; no weight was retrained.\n\n"
            f"| | dense | pruned | kept |\n|---|---:|---:|---:|\n{rows}\n\n"
            f"{_calibration_line(record)}\n\n"
            "## Use\n\n"
            "```python\n"
            "import optimum_grasprune  # or trust_remote_code=True below\n"
            "from transformers import AutoModelForCausalLM\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
            "```\n\n"
            "```bash\n"
            "vllm serve path/to/this/folder   # with optimum-grasprune installed\n"
            "```\n\n"
            "## Widths\n\n"
            f"| layer | FFN channels | KV heads |\n|---:|---:|---:|\n{widths}\n\n"
            "The whole recipe, the calibration corpus's hash and the plan are in `grasp_config.json`.\n"
        )
    )


def _calibration_line(record: dict[str, Any]) -> str:
    calibration = record["calibration"]
    if calibration is None:
        return "Made without calibration data."
    count, length = calibration["sequences"]
    return (
        f"Calibrated on {count} sequences of {length} tokens of `{calibration['source']}` "
        f"(sha256 `{calibration['sha256'][:16]}…`), seed {record['recipe']['seed']}."
    )


def _width_rows(record: dict[str, Any]) -> str:
    layers: dict[int, dict[str, str]] = {}
    for group in record["plan"]["groups"]:
        layers.setdefault(group["layer"], {})[group["kind"]] = f"{len(group['kept'])} of {group['count']}"
    return "\n".join(f"| {layer} | {widths['ffn']} | {widths['kv']} |" for layer, widths in layers.items())
