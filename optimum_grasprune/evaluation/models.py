"""Perplexity of several models on one corpus, in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import EvaluationOptions
from ..corpora import Corpus, load_corpus, tokenize
from ..families import family_of
from ..loading import common_window, count_parameters, load_config, load_model, load_tokenizer
from .perplexity import EVALUATION_WINDOW, Perplexity, perplexity, perplexity_of


@dataclass(frozen=True)
class Measured:
    """One model's perplexity. source: its folder or hub name.  first_tokens: what each window starts with."""

    source: str
    parameters: int
    first_tokens: tuple[int, ...]
    perplexity: Perplexity

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {
            "model": self.source,
            "parameters": self.parameters,
            "first_tokens": list(self.first_tokens),
            **self.perplexity.to_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Models measured on one corpus."""

    corpus: Corpus
    models: tuple[Measured, ...]

    def rows(self, *, beside_first: bool) -> list[tuple[str, str, str, str]]:
        """Rows (model, parameters, perplexity, the same ÷ that of the first model, if asked for)."""
        first = self.models[0].perplexity.loss
        return [
            (
                model.source,
                f"{model.parameters:,}",
                _shown(perplexity_of(model.perplexity.loss)),
                _shown(perplexity_of(model.perplexity.loss - first)) if beside_first else "",
            )
            for model in self.models
        ]

    def footer(self) -> str:
        """What was measured on."""
        first = self.models[0].perplexity
        windows = f"{first.windows} windows of {first.window} tokens"
        return f"{self.corpus.source} {self.corpus.split or ''}: {windows}, {first.tokens:,} predictions, fp32"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {"corpus": self.corpus.describe(), "models": [model.to_dict() for model in self.models]}


def evaluate(sources: Sequence[str], options: EvaluationOptions, read_as: Mapping[str, Any]) -> Evaluation:
    """Measure each model on the same text.

    sources: folders or hub names.  read_as: options of `load_config`, `load_model` and `load_tokenizer`.
    Raises GraspruneError; what all models must have in common is checked before one is measured.
    """
    corpus = load_corpus(*_corpus_of(options), options.text_column)
    window = _window(sources, options.seq_len, read_as)
    return Evaluation(corpus, tuple(_measure(source, corpus, options, window, read_as) for source in sources))


def _corpus_of(options: EvaluationOptions) -> tuple[str, str | None]:
    held_out = options.dataset is None and options.dataset_split is None
    return options.dataset or "builtin", "test" if held_out else options.dataset_split


def _window(sources: Sequence[str], asked: int | None, read_as: Mapping[str, Any]) -> int:
    """Tokens in a window, the same for all models."""
    configs = {f"the model {source}": load_config(source, **read_as) for source in sources}
    for config in configs.values():
        family_of(config)
    return common_window(configs, asked, EVALUATION_WINDOW, "seq_len")


def _measure(
    source: str, corpus: Corpus, options: EvaluationOptions, window: int, read_as: Mapping[str, Any]
) -> Measured:
    model = load_model(source, dtype="float32", device=options.device, **read_as)
    tokenizer = load_tokenizer(source, **read_as)
    tokenized = tokenize(corpus, tokenizer, model.config.vocab_size, bos=options.bos)
    result = perplexity(model, tokenized.windows(window, options.num_samples), options.batch_size)
    return Measured(source, count_parameters(model), tuple(tokenized.first), result)


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 1e9 else f"{value:.3e}"
