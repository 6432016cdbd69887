"""What was measured of a checkpoint beside the model that it was made from, for its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from huggingface_hub import EvalResult

from ..corpora.tables import HUB_ALIASES
from ..record import OPTIONAL, Stored
from ..record.describe import precision_of, public_name
from ..writing import slug


@dataclass(frozen=True, kw_only=True)
class MeasuredText(Stored):
    """Perplexities on one text.

    name: that the user gave it.  source, split: where it is from.  windows, window: their number, and tokens in each.
    dense, pruned: mean next-token losses of the two models, in nats.  dtypes: what they computed in; None of
    results that do not say.
    """

    name: str
    source: str
    split: str | None
    windows: int
    window: int
    dense: float
    pruned: float
    dtypes: tuple[str | None, str | None] | None = field(default=None, metadata=OPTIONAL)

    @property
    def precision(self) -> str:
        """What they were measured in, in words."""
        return precision_of(self.dtypes or (None,))

    def row(self) -> tuple[str, str, str, str, str]:
        """(name, dense perplexity, pruned one, the same ÷ dense, windows × tokens in each)."""
        losses = (self.dense, self.pruned, self.pruned - self.dense)
        dense, pruned, ratio = map(_shown, losses)
        return self.name, dense, pruned, ratio, f"{self.windows:,} × {self.window:,}"


def results_table(measured: Sequence[MeasuredText]) -> str:
    """The results in Markdown, the dense model beside the pruned one."""
    rows = (f"| {' | '.join(text.row())} |\n" for text in measured)
    heading = "| perplexity on | dense | pruned | pruned ÷ dense | windows × tokens |\n|---|---:|---:|---:|---:|\n"
    return f"{heading}{''.join(rows)}"


def eval_results(measured: Sequence[MeasuredText]) -> list[EvalResult]:
    """The results of the pruned model as the Hub shows them; not those that no float holds."""
    return [_result(text) for text in measured if text.pruned < math.log(1e300)]


def dataset_names(source: str) -> list[str]:
    """Those of the parts of a corpus that are datasets of the Hub, by their names there."""
    parts = (part.strip() for part in source.split(","))
    return list(dict.fromkeys(name for part in parts if (name := _hub_dataset(part)[0]) is not None))


def _result(text: MeasuredText) -> EvalResult:
    name, config = _hub_dataset(text.source)
    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=name or slug(text.name),
        dataset_name=text.name,
        dataset_config=config,
        dataset_split=text.split if name else None,
        metric_type="perplexity",
        metric_name=f"perplexity per token, windows of {text.window}",
        metric_value=float(f"{math.exp(text.pruned):.5g}"),
    )


def _hub_dataset(source: str) -> tuple[str | None, str | None]:
    """(name, configuration) of a dataset of the Hub; of what is none, or may be a file of a machine, nothing."""
    if (known := HUB_ALIASES.get(source)) is not None:
        return known["path"], known.get("name")
    name, _, config = source.partition(":")
    if name.count("/") == 1 and public_name(source) == source and "." not in name.rpartition("/")[2]:
        return name, config or None
    return None, None


def _shown(loss: float) -> str:
    return f"{math.exp(loss):.3f}" if loss < math.log(1e9) else f"e^{loss:.1f}"
