"""Models measured in all that was asked for: tasks of lm-evaluation-harness beside perplexity on several corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from transformers import PreTrainedModel

from ..config import BackendOptions, EvaluationOptions, TaskOptions
from ..corpora import Corpus, tokenize
from ..errors import OptionError
from ..loading import count_parameters, empty_model, load_config, load_model, load_tokenizer, resolve_device
from ..model_files import ReadAs
from ..record import OPTIONAL, CorpusRecord, Stored, check_format, installed_versions
from .harness import Scored, ask, ask_model, beside_dense
from .models import corpus_of, window_of
from .perplexity import Perplexity, perplexity
from .scores import AgainstDense, TaskScore
from .tasks import AskedTasks, TaskSuite, check_installed, read_tasks
from .texts import read_corpora
from .vllm_backend import check_vllm, engine

REPORT_FORMAT = 2
"""Format of the JSON of an evaluation with tasks or several corpora; 1 is that of one corpus alone."""


@dataclass(frozen=True)
class Asked:
    """All that is measured of every model. corpora: for perplexity, by name.  suite: the tasks; None for none."""

    corpora: Mapping[str, Corpus]
    options: EvaluationOptions
    suite: TaskSuite | None
    backend: BackendOptions


@dataclass(frozen=True, kw_only=True)
class ReportedModel(Stored):
    """What was measured of one model. model: its folder or Hub name.

    perplexity: by corpus.  tasks: scores by task or group, and their mean.  against_dense: the same names; None of the
    dense model.  harness: the results in lm-evaluation-harness's own form; None without tasks.
    """

    model: str
    parameters: int
    perplexity: Mapping[str, Perplexity]
    tasks: Mapping[str, TaskScore]
    against_dense: Mapping[str, AgainstDense] | None = field(default=None, metadata=OPTIONAL)
    harness: Mapping[str, JsonValue] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Stored):
    """Models that were asked the same. beside_first: whether the first is the dense one, that the others are held to.

    backend, dtype: of the tasks; perplexity is in fp32.
    """

    format: int = REPORT_FORMAT
    corpora: Mapping[str, CorpusRecord]
    tasks: AskedTasks | None
    backend: str
    dtype: str
    beside_first: bool
    models: tuple[ReportedModel, ...]
    versions: Mapping[str, str]

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values, of a format that this version knows."""
        if isinstance(values, Mapping):
            check_format(values.get("format"), REPORT_FORMAT)
        return values


def read_asked(
    options: EvaluationOptions, tasks: TaskOptions, backend: BackendOptions, entries: Sequence[str]
) -> Asked | None:
    """What is to be measured, read and checked; None where it is the perplexity on one corpus and nothing else.

    entries: corpora, each as NAME=SOURCE.  Raises GraspruneError.
    """
    if tasks.tasks is not None:
        check_installed(tasks.tasks)
    else:
        for name in sorted(backend.model_fields_set):
            raise OptionError(name, getattr(backend, name), "is of use only with --tasks")
    named = options.model_fields_set & {"dataset", "dataset_split"}
    if entries and named:
        raise OptionError("ppl", entries[0], "has no meaning beside --dataset and --dataset-split")
    if tasks.tasks is not None and not entries and not named:
        for name in sorted(options.model_fields_set - {"device"}):
            raise OptionError(name, getattr(options, name), "is of use only with a corpus: --ppl or --dataset")
    check_vllm(backend, options.device)
    resolve_device(options.device)
    suite = read_tasks(tasks)  # which refuses what is of no use without tasks, before a corpus is read
    if tasks.tasks is None and not entries:
        return None
    corpora = read_corpora(entries, options.text_column, "ppl")
    if named:
        corpus = corpus_of(options)
        corpora = {Path(corpus.source).name: corpus}
    return Asked(corpora, options, suite, backend)


def report(sources: Sequence[str], asked: Asked, read_as: ReadAs, *, beside_first: bool) -> EvaluationReport:
    """Measure each model; every configuration is read before one is loaded.

    sources: folders or Hub names.  read_as: as for `evaluate`.  beside_first: whether the first is the dense model.
    Raises GraspruneError.
    """
    window = window_of(sources, asked.options.seq_len, read_as)
    dense: Scored | None = None
    models = []
    for source in sources:
        perplexities, scored = _measured(source, asked, window, read_as)
        against = None
        if beside_first and scored and dense and asked.suite:
            against = beside_dense(scored, dense, asked.suite)
        dense = dense or scored
        models.append(
            ReportedModel(
                model=source,
                parameters=_parameters(source, read_as),
                perplexity=perplexities,
                tasks=scored.scores if scored else {},
                against_dense=against,
                harness=scored.results if scored else None,
            )
        )
    return EvaluationReport(
        corpora={name: CorpusRecord(**corpus.describe()) for name, corpus in asked.corpora.items()},
        tasks=asked.suite.asked if asked.suite else None,
        backend=asked.backend.backend,
        dtype=asked.backend.dtype,
        beside_first=beside_first,
        models=tuple(models),
        versions=installed_versions(),
    )


def _parameters(source: str, read_as: ReadAs) -> int:
    """Of a model that may not be in this process, by our own classes, whatever code it brings along."""
    return count_parameters(empty_model(load_config(source, revision=read_as.get("revision"))))


def _measured(source: str, asked: Asked, window: int, read_as: ReadAs) -> tuple[dict[str, Perplexity], Scored | None]:
    model = load_model(source, dtype="float32", device=asked.options.device, **read_as) if asked.corpora else None
    perplexities = {} if model is None else _perplexities(model, source, asked, window, read_as)
    if asked.suite is None:
        return perplexities, None
    if asked.backend.backend == "vllm":
        del model  # the engine takes all the memory that it finds
        with engine(source, asked.backend, asked.suite.options.task_batch_size, read_as) as running:
            return perplexities, ask(running, asked.suite, source, "vllm")
    if model is None or asked.backend.dtype != "float32":
        model = None  # two at once may be more than the device holds
        model = load_model(source, dtype=asked.backend.dtype, device=asked.options.device, **read_as)
    return perplexities, ask_model(model, load_tokenizer(source, **read_as), asked.suite, source)


def _perplexities(
    model: PreTrainedModel, source: str, asked: Asked, window: int, read_as: ReadAs
) -> dict[str, Perplexity]:
    tokenizer, options = load_tokenizer(source, **read_as), asked.options
    found = {}
    for name, corpus in asked.corpora.items():
        tokenized = tokenize(corpus, tokenizer, model.config.vocab_size, bos=options.bos)
        found[name] = perplexity(model, tokenized.windows(window, options.num_samples), options.batch_size)
    return found
