"""The sequences that a recipe calibrates on: read, tokenized, drawn, and some of them held out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import GRASPConfig
from .corpora import FEW_HELD_OUT, Corpus, TokenizedCorpus, corpus_in_memory, load_corpus, source_and_split, tokenize
from .corpora.corpus import Part
from .corpora.sources import BUILTIN, SAMPLED, UNREHEARSED, rehearsal_text
from .corpora.standard_library import SPLITS, split_of
from .errors import DataError, GraspruneError, GraspruneWarning, OptionError
from .loading import calibration_length
from .methods import get_method
from .problem import NO_TEXTS, NO_TOKENS_NS, RecoveryText, TrainingTexts
from .record import CalibrationRecord, CorpusRecord
from .recovery.base import Stage

_CHARACTERS_OF_A_TOKEN = 16
"""Of English, no tokenizer takes so many for one."""
WATCHED_SEQUENCES = 16
"""Sequences, at most, of each text that says when weights are trained enough: it is looked at again and again."""


@dataclass(frozen=True)
class Calibration:
    """A corpus and the sequences drawn from it.

    tokens_NS: what methods and compensations learn from, shape (N, S).  held_out_NS: what choices are judged on; none
    where nothing is to be chosen.  training_texts: what stages are trained on besides.
    """

    tokenized: TokenizedCorpus
    tokens_NS: Tensor
    held_out_NS: Tensor
    training_texts: TrainingTexts = NO_TEXTS

    @property
    def sequences(self) -> dict[str, Tensor]:
        """All of them by what they are for."""
        found, texts = {"calibrated on": self.tokens_NS, "held out": self.held_out_NS}, self.training_texts
        if len(texts.further_NS):
            found["trained on besides"] = texts.further_NS
        if len(texts.rehearsed_NS):
            found["rehearsed"] = texts.rehearsed_NS
        if (text := texts.recovery) is None:
            return found
        return {**found, "trained on": text.tokens_NS, "watched": text.watched_NS}

    def describe(self) -> CalibrationRecord:
        """What a checkpoint records of it."""
        count, length = self.tokens_NS.shape
        return CalibrationRecord(
            **self.tokenized.corpus.describe(),
            first_tokens=tuple(self.tokenized.first),
            sequences=(count, length),
            held_out_sequences=len(self.held_out_NS),
            rehearsed_sequences=len(self.training_texts.rehearsed_NS),
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
    if tokenizer is None and not (isinstance(texts, TokenizedCorpus) and config.recover == "none"):
        raise GraspruneError("a tokenizer is needed to calibrate")
    if tokenizer is None and rehearses(config):
        raise GraspruneError("a tokenizer is needed for the text that is rehearsed; rehearsal=0 leaves it out")

    def tokenized(corpus: Corpus) -> TokenizedCorpus:
        return tokenize(corpus, tokenizer, model.config.vocab_size, bos=config.bos)  # type: ignore[arg-type]

    if isinstance(texts, TokenizedCorpus):
        calibration = drawn(texts, config, length)
    elif texts is None:
        calibration = drawn(
            tokenized(load_corpus(config.dataset, config.dataset_split, config.text_column)), config, length
        )
    else:
        calibration = drawn(tokenized(corpus_in_memory(texts)), config, length)

    corpus = calibration.tokenized.corpus

    may_rehearse = SAMPLED not in corpus.parts

    def rehearsed(count: int) -> tuple[Tensor, Corpus | None]:
        if not count:
            return NO_TOKENS_NS, None
        pieces = rehearsal_text(count, _CHARACTERS_OF_A_TOKEN * length)
        return tokenized(pieces).windows(length, count), pieces

    besides = NO_TEXTS
    if any(stage.rehearses for stage in _stages(config)):
        calibrated = len(calibration.tokens_NS)
        asked = config.diagonal_sequences(calibrated, length)
        others = config.rehearsed_sequences(calibrated, length) if may_rehearse else 0
        further_NS = more(calibration, asked - others, config, "diagonal_samples")[calibrated:]
        rehearsed_NS, _ = rehearsed(others)
        besides = TrainingTexts(further_NS, rehearsed_NS)
    if config.recover != "none":
        own, others = config.recovery_sequences(length)
        if not may_rehearse:
            own, others = own + others, 0
        text_NS = more(calibration, own, config, "recover_tokens")
        rehearsed_NS, pieces = rehearsed(others)
        watched = tokenized(watched_corpus(corpus, config, pieces))
        besides = replace(besides, recovery=recovery_text(calibration, text_NS, rehearsed_NS, watched))
    return replace(calibration, training_texts=besides)


def rehearses(config: GRASPConfig) -> bool:
    """Whether any stage learns from other text than the calibration corpus, if that is not the same text."""
    return config.rehearsal > 0 and any(stage.rehearses for stage in _stages(config))


def _stages(config: GRASPConfig) -> tuple[Stage, ...]:
    return get_method(config.method).chain_for(config).stages


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


def watched_corpus(trained_on: Corpus, config: GRASPConfig, rehearsed: Corpus | None = None) -> Corpus:
    """The text of another kind than the one that weights are trained on; OptionError where it is the same.

    rehearsed: what is trained on besides.

    Of both texts that come without download, the one that is not trained on; where both are, the split of `builtin`
    that is not, which has no module in common with the other.
    """
    named = config.recover_watch
    if named is None:
        named = next((name for name in (SAMPLED, BUILTIN) if name not in trained_on.parts), None)
        if named == SAMPLED and (rehearses(config) or rehearsed is not None):
            named += UNREHEARSED
    if named is None:
        (untouched,) = {*SPLITS} - {split_of(trained_on.split)}
        named = f"{BUILTIN}[{untouched}]"
    try:
        corpus = load_corpus(*source_and_split(named), config.text_column)
    except OptionError as error:
        raise OptionError("recover_watch", named, error.reason) from None
    for other in corpus.parts.values():
        for name, part in trained_on.parts.items():
            if _overlap(part, other):
                raise OptionError("recover_watch", named, f"is the text that is trained on: {name}")
        if rehearsed is not None and any(_overlap(part, other) for part in rehearsed.parts.values()):
            reason = f"is the text that is rehearsed; {SAMPLED}{UNREHEARSED} is the rest of it"
            raise OptionError("recover_watch", named, reason)
    return corpus


def _overlap(one: Part, other: Part) -> bool:
    return one.content in other.content or other.content in one.content


def more(calibration: Calibration, count: int, config: GRASPConfig, option: str) -> Tensor:
    """So many sequences of the corpus, those that are calibrated on first, shape (count, S).

    Raises OptionError, of the option that asks for them, if the corpus is too short.
    """
    length = calibration.tokens_NS.shape[1]
    rest, _ = calibration.tokenized.hold_out(get_method(config.method).held_out_for(config), length)
    try:
        return rest.sample(config.model_copy(update={"num_samples": count}), length, config.seed)
    except OptionError as error:
        if error.option != "num_samples":
            raise
        raise OptionError(option, getattr(config, option) or count, error.reason) from None


def recovery_text(
    calibration: Calibration, tokens_NS: Tensor, rehearsed_NS: Tensor, watched: TokenizedCorpus
) -> RecoveryText:
    """What weights are trained on, of both kinds, and what is looked at meanwhile; OptionError if that is too short."""
    length = tokens_NS.shape[1]
    try:
        watched_NS = watched.windows(length)
    except DataError:
        reason = f"has less than one sequence of {length} tokens"
        raise OptionError("recover_watch", watched.corpus.source, reason) from None
    return RecoveryText(
        torch.cat([tokens_NS, rehearsed_NS]) if len(rehearsed_NS) else tokens_NS,
        calibration.held_out_NS[:WATCHED_SEQUENCES],
        spread(watched_NS),
        CorpusRecord(**watched.corpus.describe()),
        ((False,) * len(tokens_NS) + (True,) * len(rehearsed_NS)) if len(rehearsed_NS) else (),
    )


def spread(windows_WS: Tensor) -> Tensor:
    """At most WATCHED_SEQUENCES windows, evenly over all of a text."""
    count = min(WATCHED_SEQUENCES, len(windows_WS))
    return windows_WS[torch.arange(count, device="cpu") * len(windows_WS) // count]
