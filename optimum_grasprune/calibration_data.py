"""The sequences that a recipe calibrates on: read, tokenized, drawn, and some of them held out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import GRASPConfig
from .corpora import FEW_HELD_OUT, TokenizedCorpus, corpus_in_memory, load_corpus, tokenize
from .errors import GraspruneError, GraspruneWarning
from .loading import calibration_length
from .methods import get_method
from .record import CalibrationRecord

NO_TOKENS_NS = torch.empty(0, 0, dtype=torch.int64, device="cpu")
"""The sequences of what looks at no data."""


@dataclass(frozen=True)
class Calibration:
    """A corpus and the sequences drawn from it.

    tokens_NS: what methods and compensations learn from, shape (N, S).  held_out_NS: what choices are judged on; none
    where nothing is to be chosen.
    """

    tokenized: TokenizedCorpus
    tokens_NS: Tensor
    held_out_NS: Tensor

    def describe(self) -> CalibrationRecord:
        """What a checkpoint records of it."""
        count, length = self.tokens_NS.shape
        return CalibrationRecord(
            **self.tokenized.corpus.describe(),
            first_tokens=tuple(self.tokenized.first),
            sequences=(count, length),
            held_out_sequences=len(self.held_out_NS),
        )


def calibration_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[Any] | TokenizedCorpus | None,
    config: GRASPConfig,
) -> Calibration | None:
    """What a recipe calibrates a model on; None where it looks at no data.

    texts: texts or conversations in place of the recipe's corpus, or a corpus that is tokenized already.
    Raises DataError, OptionError or, without a tokenizer, GraspruneError.
    """
    if not get_method(config.method).looks_at_data(config):
        return None
    length = calibration_length(model.config, config.seq_len)
    if isinstance(texts, TokenizedCorpus):
        return drawn(texts, config, length)
    if texts is None:
        corpus = load_corpus(config.dataset, config.dataset_split, config.text_column)
    else:
        corpus = corpus_in_memory(texts)
    if tokenizer is None:
        raise GraspruneError("a tokenizer is needed to calibrate")
    return drawn(tokenize(corpus, tokenizer, model.config.vocab_size, bos=config.bos), config, length)


def drawn(tokenized: TokenizedCorpus, config: GRASPConfig, length: int) -> Calibration:
    """The calibration sequences of a recipe, of `length` tokens, and what it holds out.

    Raises DataError or OptionError when the corpus is too short. Warns where little is held out, unless asked for.
    """
    method = get_method(config.method)
    rest, held_out_NS = tokenized.hold_out(method.held_out_for(config), length)
    sequences_NS = rest.sample(config, length, config.seed)
    if config.held_out is None and method.held_out and len(held_out_NS) < FEW_HELD_OUT:
        warnings.warn(
            f"the corpus {tokenized.corpus.source} is so short that only {len(held_out_NS)} of {method.held_out} "
            f"sequences of {length} tokens could be held out: between candidates, and between what makes up for the "
            "cut, they decide little better than chance; use more text",
            GraspruneWarning,
            stacklevel=2,
        )
    return Calibration(tokenized, sequences_NS, held_out_NS)
