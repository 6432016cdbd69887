"""What the files of a comparison hold: dense.json, one file a cell, and comparison.json with all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import JsonValue

from ..evaluation.scores import AgainstDense, TaskScore
from ..evaluation.tasks import AskedTasks
from ..record import OPTIONAL, CorpusRecord, Judgement, ModelIdentity, SharedRun, SharesKept, Stored, check_format
from ..record.describe import precision_of

RESULT_FORMAT = 1
"""Format of comparison.json. Version 0.1 wrote the same one, without losses."""


@dataclass(frozen=True, kw_only=True)
class BaseModel(Stored):
    """What makes a base model another one: its shapes and its weights, wherever they lie.

    weights: SHA-256 of the files of a folder, else the repository and its commit.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    head_dim: int
    vocab_size: int
    weights: str

    @classmethod
    def of(cls, model: ModelIdentity, weights: str) -> BaseModel:
        """The shapes of a model, and its weights."""
        return cls(**{name: getattr(model, name) for name in _names(cls) if name != "weights"}, weights=weights)


@dataclass(frozen=True, kw_only=True)
class ComparedModel(BaseModel):
    """The model of the whole comparison. source: its folder or Hub name."""

    source: str

    def to_dict(self) -> dict[str, JsonValue]:
        """The content as JSON types, where it is from first."""
        return {"source": self.source, **super().to_dict()}


@dataclass(frozen=True, kw_only=True)
class EvaluatedText(CorpusRecord):
    """The tokens that perplexity is measured on: where they are from, and the number and length of their windows."""

    windows: int
    window: int
    tokens_sha256: str


@dataclass(frozen=True, kw_only=True)
class Inputs(Stored):
    """All that the dense model's result depends on. evaluation: texts by name.  tasks: None where none are asked.

    dtype: that the dense model is measured in, as in `RunOptions`; version 0.1 measured everything in fp32.
    """

    base_model: BaseModel
    evaluation: Mapping[str, EvaluatedText]
    versions: Mapping[str, str]
    tasks: AskedTasks | None = field(default=None, metadata=OPTIONAL)
    dtype: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class CellInputs(Inputs):
    """All that a cell's result depends on. calibration: hash of the corpus; None where none is looked at.

    watched: hash of the text that a training of weights must not make worse; None where none are trained.
    shared: the ratios of the run that its gates are of; None for a run of its own.
    """

    recipe: Mapping[str, JsonValue]
    calibration: str | None
    watched: str | None = field(default=None, metadata=OPTIONAL)
    shared: SharedRun | None = field(default=None, metadata=OPTIONAL)


class Losses:
    """What was measured of a model, by corpus; a base of what holds it.

    perplexity: None where no float holds it.  loss: the mean, in nats; version 0.1 did not write it.
    dtype: what the model computed in; None of results that do not say.
    """

    perplexity: Mapping[str, float | None]
    loss: Mapping[str, float] | None
    dtype: str | None

    def loss_on(self, corpus: str) -> float:
        """The mean loss on a corpus, in nats."""
        if self.loss is not None:
            return self.loss[corpus]
        return math.log(self.perplexity[corpus] or math.inf)


@dataclass(frozen=True, kw_only=True)
class DenseTasks(Stored):
    """The dense model in tasks. scores: by task or group, and the mean.  answers: as in `Scored`."""

    scores: Mapping[str, TaskScore]
    answers: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class PrunedTasks(Stored):
    """A pruned model in tasks. scores: as the dense model's.  against_dense: what they are beside those."""

    scores: Mapping[str, TaskScore]
    against_dense: Mapping[str, AgainstDense]


@dataclass(frozen=True, kw_only=True)
class DenseResult(Losses, Stored):
    """The dense model, measured."""

    parameters: int
    perplexity: Mapping[str, float | None]
    loss: Mapping[str, float] | None = field(default=None, metadata=OPTIONAL)
    tasks: DenseTasks | None = field(default=None, metadata=OPTIONAL)
    dtype: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class WeightBytes(Stored):
    """Bytes of all weights in the precision that a model was pruned in, tied ones once, as its checkpoint has them."""

    dense: int
    pruned: int


@dataclass(frozen=True, kw_only=True)
class Widths(Stored):
    """Of every layer. ffn: FFN channels.  kv_heads: KV heads."""

    ffn: tuple[int, ...]
    kv_heads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PrunedResult(Losses, Stored):
    """A cell that was run to its end.

    kept: shares of the dense model; None where they are not known.  compensation: names of the stages in force.
    weight_bytes, widths: version 0.1 did not write them.
    choice: all that was measured to choose.  seconds: of pruning.
    scores_reused, choice_reused: whether an earlier cell's scores, or its candidates, served this one.
    """

    kept: SharesKept | None = field(default=None, metadata=OPTIONAL)
    weight_bytes: WeightBytes | None = field(default=None, metadata=OPTIONAL)
    widths: Widths | None = field(default=None, metadata=OPTIONAL)
    compensation: tuple[str, ...]
    choice: tuple[Judgement, ...]
    seconds: float
    scores_reused: bool
    choice_reused: bool | None = field(default=None, metadata=OPTIONAL)
    perplexity: Mapping[str, float | None]
    loss: Mapping[str, float] | None = field(default=None, metadata=OPTIONAL)
    tasks: PrunedTasks | None = field(default=None, metadata=OPTIONAL)
    dtype: str | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them."""
        if isinstance(values, Mapping) and not values.get("kept"):
            values = {name: value for name, value in values.items() if name != "kept"}
        return super().arranged(values)


@dataclass(frozen=True, kw_only=True)
class FailedCell(Stored):
    """A cell that an error ended."""

    error: str


@dataclass(frozen=True, kw_only=True)
class _WithInputs(Stored):
    """A result in a file of its own, beside what it depends on: its fields stand in the file's object."""

    def to_dict(self) -> dict[str, JsonValue]:
        """The content as JSON types."""
        values = super().to_dict()
        return {"inputs": values.pop("inputs"), **values.pop("result"), **values}

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them."""
        if not isinstance(values, Mapping) or "result" in values:
            return values
        return {**values, "result": values}


@dataclass(frozen=True, kw_only=True)
class DenseFile(_WithInputs):
    """What dense.json holds."""

    inputs: Inputs
    result: DenseResult


@dataclass(frozen=True, kw_only=True)
class CellFile(_WithInputs):
    """What the file of a cell holds."""

    inputs: CellInputs
    result: PrunedResult | FailedCell


@dataclass(frozen=True, kw_only=True)
class ServedDense(Stored):
    """Output tokens a second of the dense model, where a benchmark was given, and how that measured them.

    mode, point, device: as in its results.  repetitions: of which it is the median.
    """

    mode: str
    point: str
    device: str
    repetitions: int
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Served(Stored):
    """Output tokens a second of a checkpoint with a cell's widths. ratio: pruned ÷ dense, paired by repetition."""

    tokens_per_second: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class CellResult(Stored):
    """A cell of the whole comparison, whose model and corpora need no copy in every cell.

    served: None where no checkpoint like it was measured.
    """

    entry: str
    keep_ratio: float
    result: PrunedResult | FailedCell
    recipe: Mapping[str, JsonValue]
    calibration: str | None = None
    shared: SharedRun | None = field(default=None, metadata=OPTIONAL)
    served: Served | None = field(default=None, metadata=OPTIONAL)

    def to_dict(self) -> dict[str, JsonValue]:
        """The content as JSON types: the fields of the result stand between those of the cell."""
        values = super().to_dict()
        front = {name: values.pop(name) for name in ("entry", "keep_ratio")}
        return {**front, **values.pop("result"), **values}

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them."""
        if not isinstance(values, Mapping) or "result" in values:
            return values
        return {**values, "result": values}

    @property
    def name(self) -> str:
        """Names the cell in messages."""
        return f"{self.entry} at {self.keep_ratio:g}"

    @property
    def pruned(self) -> PrunedResult | None:
        """What was measured; None for a cell that failed."""
        return self.result if isinstance(self.result, PrunedResult) else None

    @property
    def error(self) -> str | None:
        """Why it failed; None for a cell that did not."""
        return self.result.error if isinstance(self.result, FailedCell) else None


@dataclass(frozen=True, kw_only=True)
class SharedOptions(Stored):
    """The options that are the same for all cells."""

    dataset: str
    dataset_split: str | None
    text_column: str
    bos: bool | None = None
    seed: int


@dataclass(frozen=True, kw_only=True)
class ComparisonResult(Stored):
    """What comparison.json holds. corpora: that perplexity was measured on, by name.  tasks: None without any.

    served: None where no benchmark was given.
    """

    format: int = RESULT_FORMAT
    model: ComparedModel
    options: SharedOptions
    corpora: Mapping[str, EvaluatedText]
    tasks: AskedTasks | None = field(default=None, metadata=OPTIONAL)
    dense: DenseResult
    served: ServedDense | None = field(default=None, metadata=OPTIONAL)
    cells: tuple[CellResult, ...]
    versions: Mapping[str, str]

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them."""
        if isinstance(values, Mapping):
            check_format(values.get("format"), RESULT_FORMAT)
        return super().arranged(values)

    def failed(self) -> list[CellResult]:
        """The cells that ended in an error."""
        return [cell for cell in self.cells if cell.error is not None]

    @property
    def precision(self) -> str:
        """What models were measured in, in words."""
        pruned = (cell.pruned for cell in self.cells)
        return precision_of(each.dtype for each in (self.dense, *filter(None, pruned)))

    @property
    def dense_bytes(self) -> int | None:
        """Bytes of the dense model's weights, in the widest precision that a cell was pruned in; None if not known."""
        pruned = (cell.pruned for cell in self.cells)
        return max((each.weight_bytes.dense for each in pruned if each and each.weight_bytes), default=None)

    def by_ratio(self) -> dict[float, list[CellResult]]:
        """The cells grouped by keep ratio, highest first."""
        ratios = sorted({cell.keep_ratio for cell in self.cells}, reverse=True)
        return {ratio: [cell for cell in self.cells if cell.keep_ratio == ratio] for ratio in ratios}

    def excess_loss(self, measured: Losses, corpus: str) -> float:
        """ln(perplexity / dense perplexity): by how many nats a token the mean loss rose."""
        return measured.loss_on(corpus) - self.dense.loss_on(corpus)


def _names(cls: type[Any]) -> list[str]:
    return [entry.name for entry in fields(cls)]
