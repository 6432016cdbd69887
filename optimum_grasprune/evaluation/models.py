"""Perplexity of several models on one corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from transformers import PreTrainedConfig, PreTrainedModel

from ..config import EvaluationOptions
from ..corpora import Corpus, load_corpus, tokenize
from ..errors import ModelError
from ..families import family_of
from ..loading import (
    common_window,
    count_parameters,
    load_config,
    load_model,
    load_tokenizer,
    longest_context,
)
from ..model_files import ReadAs
from ..record import CorpusRecord, Stored, check_format
from ..record.describe import precision_of
from ..streamed_loading import streamed_model
from .perplexity import EVALUATION_WINDOW, Perplexity, perplexity, perplexity_of, shown

EVALUATION_FORMAT = 1
"""Format of the JSON of an evaluation; what version 0.1 wrote is the same, without the number."""


@dataclass(frozen=True)
class MeasuredModel(Stored):
    """One model's perplexity. model: its folder or hub name.  first_tokens: what each window starts with."""

    model: str
    parameters: int
    first_tokens: tuple[int, ...]
    perplexity: Perplexity

    def to_dict(self) -> dict[str, JsonValue]:
        """The result as JSON types: the fields of the perplexity stand beside the others."""
        values = super().to_dict()
        return {**values, **values["perplexity"]}

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them."""
        return {"first_tokens": (), **values, "perplexity": values} if isinstance(values, Mapping) else values


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Stored):
    """Models measured on one corpus."""

    format: int = EVALUATION_FORMAT
    corpus: CorpusRecord
    models: tuple[MeasuredModel, ...]

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values, of a format that this version knows."""
        if isinstance(values, Mapping):
            check_format(values.get("format"), EVALUATION_FORMAT)
        return values

    def rows(self, *, beside_first: bool) -> list[tuple[str, str, str, str]]:
        """Rows (model, parameters, perplexity, the same ÷ that of the first model, if asked for)."""
        first = self.models[0].perplexity.loss
        return [
            (
                model.model,
                f"{model.parameters:,}",
                shown(perplexity_of(model.perplexity.loss)),
                shown(perplexity_of(model.perplexity.loss - first)) if beside_first else "",
            )
            for model in self.models
        ]

    def footer(self) -> str:
        """What was measured on."""
        first = self.models[0].perplexity
        windows = f"{first.windows} windows of {first.window} tokens"
        precision = precision_of(model.perplexity.dtype for model in self.models)
        return f"{self.corpus.source} {self.corpus.split or ''}: {windows}, {first.tokens:,} predictions, {precision}"


def evaluate(sources: Sequence[str], options: EvaluationOptions, read_as: ReadAs) -> EvaluationResult:
    """Measure each model on the same text.

    sources: folders or hub names.  read_as: options of `load_config`, `load_model` and `load_tokenizer`.
    Raises GraspruneError; what all models must have in common is checked before one is measured.
    """
    corpus = corpus_of(options)
    window = window_of(sources, options, read_as)
    measured = (_measure(source, corpus, options, window, read_as) for source in sources)
    return EvaluationResult(corpus=CorpusRecord(**corpus.describe()), models=tuple(measured))


def corpus_of(options: EvaluationOptions) -> Corpus:
    """The corpus that the options name; by default the held-out part of builtin."""
    held_out = options.dataset is None and options.dataset_split is None
    split = "test" if held_out else options.dataset_split
    return load_corpus(options.dataset or "builtin", split, options.text_column)


def window_of(sources: Sequence[str], options: EvaluationOptions, read_as: ReadAs) -> int:
    """Tokens in a window, the same for all models; whatever is no model of a supported family is refused here."""
    configs = configs_of(sources, read_as)
    default = EVALUATION_WINDOW
    if options.by_position and options.seq_len is None:
        if (shortest := shortest_context(configs)) is None:
            raise ModelError("no model says how many tokens it reads: --by-position needs --seq-len")
        default = shortest
    return common_window(configs, options.seq_len, default, "seq_len")


def configs_of(sources: Sequence[str], read_as: ReadAs) -> dict[str, PreTrainedConfig]:
    """The models' configurations by what messages call them; whatever is of no supported family is refused."""
    configs = {f"the model {source}": load_config(source, **read_as) for source in sources}
    for config in configs.values():
        family_of(config)
    return configs


def shortest_context(configs: Mapping[str, PreTrainedConfig]) -> int | None:
    """Tokens that all models read; None where none says how many it reads."""
    longest = [length for config in configs.values() if (length := longest_context(config)) is not None]
    return min(longest, default=None)


def loaded(source: str, options: EvaluationOptions, read_as: ReadAs) -> PreTrainedModel:
    """A model as it is to be measured: in memory, or to be read layer by layer. Errors as of `load_model`."""
    load = streamed_model if options.runner == "streamed" else load_model
    return load(source, dtype=options.dtype, device=options.device, **read_as)


def _measure(source: str, corpus: Corpus, options: EvaluationOptions, window: int, read_as: ReadAs) -> MeasuredModel:
    model = loaded(source, options, read_as)
    tokenizer = load_tokenizer(source, **read_as)
    tokenized = tokenize(corpus, tokenizer, model.config.vocab_size, bos=options.bos)
    result = perplexity(model, tokenized.windows(window, options.num_samples), options.batch_size)
    return MeasuredModel(source, count_parameters(model), tuple(tokenized.first), result)
