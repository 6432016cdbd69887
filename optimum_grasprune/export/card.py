"""The model card of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..record import Record
from ..report import budget_rows
from ..writing import write_file
from .account import GITHUB_NAME, how_it_was_made, what_it_is
from .base_card import CARD_NAME, BaseCard
from .checkpoint import needs_code
from .command import command_of
from .results import MeasuredText, dataset_names, eval_results, results_table
from .widths import widths_section

_RELATION = "finetune"
"""The Hub knows adapters, merges, quantised and fine-tuned models: of these, what has other weights is the last."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says that no record holds.

    base: of the model that was pruned.  tensor_parallel_sizes: that split every layer of the pruned one.
    repository: of the Hub that the checkpoint is sent to.
    """

    base: BaseCard = field(default_factory=BaseCard)
    tensor_parallel_sizes: tuple[int, ...] = ()
    repository: str | None = None


def model_card(record: Record, facts: CardFacts | None = None, measured: Sequence[MeasuredText] = ()) -> str:
    """The README.md of a checkpoint: what it is, how it was made, how good it is, how to load and serve it."""
    facts = facts or CardFacts()
    name = record.base_model.name or record.base_model.model_type
    rows = "\n".join(f"| {' | '.join(row)} |" for row in budget_rows(record))
    in_units = record.plan is not None and not record.plan.whole_layers
    sections = (
        f"---\n{_metadata(record, facts.base, measured).to_yaml()}\n---\n\n# {name}, pruned\n\n"
        f"{what_it_is(record)}\n\n| | dense | pruned | kept |\n|---|---:|---:|---:|\n{rows}\n\n",
        _results(measured),
        _use(record, facts),
        widths_section(record.plan) if record.plan is not None and in_units else "",
        _making(record, facts.base),
        _limits(record),
    )
    return str(ModelCard("".join(sections)))


def write_card(
    folder: str | Path, record: Record, facts: CardFacts | None = None, measured: Sequence[MeasuredText] = ()
) -> None:
    """Put a card in the place of the one in a checkpoint; CheckpointError when it cannot be written."""
    write_file(Path(folder) / CARD_NAME, model_card(record, facts, measured).encode())


def _metadata(record: Record, base: BaseCard, measured: Sequence[MeasuredText]) -> ModelCardData:
    """What the Hub reads. The base model is named where it is known to be there: it refuses other names."""
    results, name = eval_results(measured), record.base_model.name or record.base_model.model_type
    datasets = dataset_names(record.calibration.source) if record.calibration else []
    language = list(base.language) if isinstance(base.language, tuple) else base.language
    return ModelCardData(
        language=language,
        license=base.license,
        license_name=base.license_name,
        license_link=base.license_link,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base.hub_name,
        base_model_relation=_RELATION if base.hub_name else None,
        datasets=datasets or None,
        tags=[GITHUB_NAME, "pruned", str(record.option("method"))],
        model_name=f"{name.rpartition('/')[2]}, pruned" if results else None,
        eval_results=results or None,
    )


def _results(measured: Sequence[MeasuredText]) -> str:
    if not measured:
        return ""
    how = f"Measured in {measured[0].precision} on windows that do not overlap."
    return f"## Results\n\n{results_table(measured)}\n{how}\n\n"


def _use(record: Record, facts: CardFacts) -> str:
    of_own_class = record.plan is None or record.plan.whole_layers
    stock = of_own_class and not needs_code(record.base_model.model_type)
    sizes = facts.tensor_parallel_sizes
    split = f"Tensor-parallel sizes that split every layer: {', '.join(map(str, sizes))}.\n\n" if sizes else ""
    use = _USE_STOCK if stock else _USE
    return f"{use.replace(_PLACE, facts.repository or _PLACE)}\n{split}"


_PLACE = "path/to/this/folder"


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


def _making(record: Record, base: BaseCard) -> str:
    model = base.hub_name or record.base_model.name or "MODEL"
    command = command_of(record, model)
    shown = f"```bash\n{command}\n```\n\n" if command else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    contents = ", the calibration corpus's hash and the plan" if record.plan else " and the calibration corpus's hash"
    return (
        f"## How it was made\n\n{how_it_was_made(record)}\n\n{shown}Versions: {versions}. "
        f"The whole recipe{contents} are in `grasp_config.json`.\n\n"
    )


def _limits(record: Record) -> str:
    lines = [
        "What holds for the dense model (its licence, its biases, what it must not be used for) holds for this one.",
        "A cut costs quality, and more on text unlike the one that it was calibrated on: measure it on your own task "
        "before you rely on it.",
    ]
    if record.plan is not None and not record.plan.whole_layers:
        lines.append("A tool that takes all layers for equally wide cannot read it, or takes it for larger than it is.")
    if record.recovery is None or not record.recovery.kept_step:
        lines.append("Its weights were not fine-tuned after the cut; doing so may win some of the quality back.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)
