"""What is to be measured of models, read and checked before one is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import BackendOptions, EvaluationOptions, NeedleOptions, Options, TaskOptions
from ..corpora import Corpus
from ..errors import OptionError
from ..loading import resolve_device
from .models import corpus_of
from .tasks import TaskSuite, check_installed, read_tasks
from .texts import read_corpora, read_corpus
from .vllm_backend import check_vllm


@dataclass(frozen=True)
class AskedNeedles:
    """What numbers are hidden in, and how."""

    corpus: Corpus
    options: NeedleOptions


@dataclass(frozen=True)
class Asked:
    """All that is measured of every model. corpora: for perplexity, by name.  suite: the tasks; None for none.

    needles: None for none.
    """

    corpora: Mapping[str, Corpus]
    options: EvaluationOptions
    suite: TaskSuite | None
    backend: BackendOptions
    needles: AskedNeedles | None = None


def read_asked(
    options: EvaluationOptions,
    tasks: TaskOptions,
    backend: BackendOptions,
    needles: NeedleOptions,
    entries: Sequence[str],
    model: str | None = None,
) -> Asked | None:
    """What is to be measured, read and checked; None where it is the perplexity on one corpus and nothing else.

    entries: corpora, each as NAME=SOURCE.  model: as for `read_tasks`.  Raises GraspruneError.
    """
    if tasks.tasks is not None:
        check_installed(tasks.tasks)
    else:
        _refuse_without("--tasks", backend, backend.model_fields_set)
    if needles.needles is None:
        _refuse_without("--needles", needles, needles.model_fields_set)
    named = options.model_fields_set & {"dataset", "dataset_split"}
    if entries and named:
        raise OptionError("ppl", entries[0], "has no meaning beside --dataset and --dataset-split")
    one = bool(named) or (options.by_position and not entries)
    others = tasks.tasks is not None or needles.needles is not None
    if others and not entries and not one:
        used = {"device", "dtype"} | ({"bos", "text_column"} if needles.needles else set())
        _refuse_without("a corpus: --ppl or --dataset", options, options.model_fields_set - used)
    if options.runner == "streamed" and (needles.needles is not None or (tasks.tasks and backend.backend == "hf")):
        raise OptionError(
            "runner", options.runner, "measures perplexity alone, and what is asked here needs a whole model"
        )
    check_vllm(backend, options.device)
    resolve_device(options.device)
    suite = read_tasks(tasks, model)  # which refuses what is of no use without tasks, before a corpus is read
    if not others and not entries and not options.by_position:
        return None
    corpora = read_corpora(entries, options.text_column, "ppl")
    if one:
        corpus = corpus_of(options)
        corpora = {Path(corpus.source).name: corpus}
    hidden = None
    if needles.needles is not None:
        hidden = AskedNeedles(read_corpus(needles.needles, options.text_column, "needles"), needles)
    return Asked(corpora, options, suite, backend, hidden)


def _refuse_without(wanted: str, options: Options, names: Iterable[str]) -> None:
    for name in sorted(names):
        value = getattr(options, name)
        given = ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value
        raise OptionError(name, given, f"is of use only with {wanted}")
