"""Models measured in all that was asked for: tasks of lm-evaluation-harness beside perplexity on several corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue
from transformers import PreTrainedModel

from ..corpora import tokenize
from ..errors import OptionError
from ..loading import (
    check_length,
    count_parameters,
    empty_model,
    load_config,
    load_tokenizer,
)
from ..model_files import ReadAs
from ..record import OPTIONAL, CorpusRecord, Stored, check_format, installed_versions
from ..record.describe import dtype_name
from .asked import Asked, AskedNeedles
from .harness import Scored, ask, ask_model, beside_dense
from .haystacks import Haystack, haystacks, lengths_up_to
from .models import configs_of, loaded, shortest_context, window_of
from .needles import Recall, recalls
from .perplexity import Perplexity, perplexity
from .positions import RangeLoss, loss_by_position, mean_of
from .scores import AgainstDense, TaskScore
from .tasks import AskedTasks
from .vllm_backend import engine

REPORT_FORMAT = 2
"""Format of the JSON of an evaluation with tasks or several corpora; 1 is that of one corpus alone."""


@dataclass(frozen=True, kw_only=True)
class NeedleRecord(Stored):
    """The needles that all models were asked for. corpus: their haystack.  lengths: in tokens, at the most.

    depths: in percent.  texts: of each length.
    """

    corpus: CorpusRecord
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    texts: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class ReportedModel(Stored):
    """What was measured of one model. model: its folder or Hub name.

    perplexity: by corpus.  tasks: scores by task or group, and their mean.  against_dense: the same names; None of the
    dense model.  harness: the results in lm-evaluation-harness's own form; None without tasks.  by_position: by corpus,
    where it was asked for.  needles: by length and depth, likewise.  dtype: what it computed in; None where only an
    engine ran it, and of results that do not say.
    """

    model: str
    parameters: int
    perplexity: Mapping[str, Perplexity]
    tasks: Mapping[str, TaskScore]
    against_dense: Mapping[str, AgainstDense] | None = field(default=None, metadata=OPTIONAL)
    harness: Mapping[str, JsonValue] | None = field(default=None, metadata=OPTIONAL)
    by_position: Mapping[str, tuple[RangeLoss, ...]] | None = field(default=None, metadata=OPTIONAL)
    needles: tuple[Recall, ...] | None = field(default=None, metadata=OPTIONAL)
    dtype: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Stored):
    """Models that were asked the same. beside_first: whether the first is the dense one, that the others are held to.

    backend: of the tasks.  dtype: that was asked for.
    """

    format: int = REPORT_FORMAT
    corpora: Mapping[str, CorpusRecord]
    tasks: AskedTasks | None
    backend: str
    dtype: str
    beside_first: bool
    models: tuple[ReportedModel, ...]
    versions: Mapping[str, str]
    needles: NeedleRecord | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values, of a format that this version knows."""
        if isinstance(values, Mapping):
            check_format(values.get("format"), REPORT_FORMAT)
        return values


def report(sources: Sequence[str], asked: Asked, read_as: ReadAs, *, beside_first: bool) -> EvaluationReport:
    """Measure each model; every configuration is read before one is loaded.

    sources: folders or Hub names.  read_as: as for `evaluate`.  beside_first: whether the first is the dense model.
    Raises GraspruneError.
    """
    window = window_of(sources, asked.options, read_as)
    texts = _texts(sources, asked, read_as)
    dense: Scored | None = None
    models = []
    for source in sources:
        own = _measured(source, asked, window, texts, read_as)
        scored = own.scored
        against = None
        if beside_first and scored and dense and asked.suite:
            against = beside_dense(scored, dense, asked.suite)
        dense = dense or scored
        models.append(
            ReportedModel(
                model=source,
                parameters=_parameters(source, read_as),
                perplexity=own.perplexity,
                tasks=scored.scores if scored else {},
                against_dense=against,
                harness=scored.results if scored else None,
                by_position=own.by_position,
                needles=own.needles,
                dtype=own.dtype,
            )
        )
    return EvaluationReport(
        corpora={name: CorpusRecord(**corpus.describe()) for name, corpus in asked.corpora.items()},
        tasks=asked.suite.asked if asked.suite else None,
        backend=asked.backend.backend,
        dtype=asked.options.dtype,
        beside_first=beside_first,
        models=tuple(models),
        versions=installed_versions(),
        needles=_needle_record(asked.needles, texts),
    )


def _texts(sources: Sequence[str], asked: Asked, read_as: ReadAs) -> list[Haystack]:
    """The texts with needles, of lengths that all models read, in tokens of the first model."""
    if asked.needles is None:
        return []
    options, configs = asked.needles.options, configs_of(sources, read_as)
    lengths = options.needle_lengths
    if lengths is None:
        if (shortest := shortest_context(configs)) is None:
            raise OptionError("needles", options.needles, "no model says how much it reads: give --needle-lengths")
        lengths = lengths_up_to(shortest)
    for length in lengths:
        for name, config in configs.items():
            check_length(config, "needle_lengths", length, name)
    return haystacks(asked.needles.corpus, lengths, options, load_tokenizer(sources[0], **read_as))


def _needle_record(needles: AskedNeedles | None, texts: Sequence[Haystack]) -> NeedleRecord | None:
    if needles is None:
        return None
    return NeedleRecord(
        corpus=CorpusRecord(**needles.corpus.describe()),
        lengths=tuple(dict.fromkeys(text.length for text in texts)),
        depths=tuple(needle.depth for needle in texts[0].needles),
        texts=needles.options.needle_texts,
        seed=needles.options.seed,
    )


def _parameters(source: str, read_as: ReadAs) -> int:
    """Of a model that may not be in this process, by our own classes, whatever code it brings along."""
    return count_parameters(empty_model(load_config(source, revision=read_as.get("revision"))))


@dataclass
class _Measured:
    """What was measured of one model."""

    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    by_position: dict[str, tuple[RangeLoss, ...]] | None = None
    needles: tuple[Recall, ...] | None = None
    scored: Scored | None = None
    dtype: str | None = None


def _measured(source: str, asked: Asked, window: int, texts: Sequence[Haystack], read_as: ReadAs) -> _Measured:
    options, found = asked.options, _Measured()
    model = None
    if asked.corpora or texts:
        model = loaded(source, options, read_as)
        found.dtype = dtype_name(model)
        _measure_losses(model, source, asked, window, found, read_as)
        if texts:
            found.needles = recalls(model, load_tokenizer(source, **read_as), texts, bos=options.bos)
    if asked.suite is None:
        return found
    if asked.backend.backend == "vllm":
        del model  # the engine takes all the memory that it finds
        with engine(source, asked.backend, options.dtype, asked.suite.options.task_batch_size, read_as) as running:
            found.scored = ask(running, asked.suite, source, "vllm")
        return found
    if model is None:
        model = loaded(source, options, read_as)
        found.dtype = dtype_name(model)
    found.scored = ask_model(model, load_tokenizer(source, **read_as), asked.suite, source)
    return found


def _measure_losses(
    model: PreTrainedModel, source: str, asked: Asked, window: int, found: _Measured, read_as: ReadAs
) -> None:
    """Perplexity on every corpus, by position too where that is asked for."""
    tokenizer, options = load_tokenizer(source, **read_as), asked.options
    places = {}
    for name, corpus in asked.corpora.items():
        tokenized = tokenize(corpus, tokenizer, model.config.vocab_size, bos=options.bos)
        windows_WS = tokenized.windows(window, options.num_samples)
        if not options.by_position:
            found.perplexity[name] = perplexity(model, windows_WS, options.batch_size)
            continue
        places[name] = loss_by_position(model, windows_WS, options.batch_size)
        found.perplexity[name] = Perplexity.of(mean_of(places[name]), windows_WS, model)
    if options.by_position:
        found.by_position = places
