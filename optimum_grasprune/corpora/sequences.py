"""From a corpus to sequences of tokens: for calibration, held out, and windows to evaluate on.

Shape suffixes: T tokens of one part of a corpus, N sequences, W windows, S tokens of a sequence, F first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import CalibrationOptions
from ..errors import DataError, OptionError
from ..numerics import even_shares
from ..progress import bar
from .corpus import Corpus

CALIBRATION_TOKENS = 2**17
"""Tokens in all calibration sequences together, unless their number is given."""

FEW_HELD_OUT = 8
"""Held-out sequences below which a choice between outcomes is more chance than measurement."""


@dataclass(frozen=True)
class TokenizedCorpus:
    """The tokens of a corpus, part by part, and what each sequence that is drawn from them starts with.

    parts: for each source, its tokens in one run, shape (T,), int64.  first: tokens that a model wants to see first.
    """

    corpus: Corpus
    parts: tuple[Tensor, ...]
    first: tuple[int, ...]

    def hold_out(self, count: int, length: int) -> tuple[TokenizedCorpus, Tensor]:
        """(what stays for calibration, what is held out): sequences from the end of every part, in turns.

        Returns at most `count` sequences, shape (N, S); at most an eighth of each part, so that of a short corpus there
        are fewer, or none.
        """
        own, shares = self._own(length), even_shares(count, len(self.parts))
        split = [hold_out(tokens_T, share, own) for tokens_T, share in zip(self.parts, shares, strict=True)]
        rest = TokenizedCorpus(self.corpus, tuple(tokens_T for tokens_T, _ in split), self.first)
        return rest, self._begun(in_turns([held_NS for _, held_NS in split]))

    def sample(self, options: CalibrationOptions, length: int, seed: int) -> Tensor:
        """Calibration sequences, shape (N, S), int64: the same number from every part, in turns.

        N is `num_samples`, or what CALIBRATION_TOKENS make. Raises DataError or OptionError, see `sample_sequences`.
        """
        count = options.num_samples or max(1, CALIBRATION_TOKENS // length)
        own, shares = self._own(length), even_shares(count, len(self.parts))
        drawn = [
            sample_sequences(tokens_T, options.model_copy(update={"num_samples": share, "dataset": name}), own, seed)
            for name, tokens_T, share in zip(self.corpus.parts, self.parts, shares, strict=True)
            if share
        ]
        return self._begun(in_turns(drawn))

    def windows(self, window: int, limit: int | None = None) -> Tensor:
        """The first non-overlapping windows, shape (W, S), as many from every part, in turns; at most `limit`."""
        own = [windows_of(tokens_T, self._own(window)) for tokens_T in self.parts]
        fewest = min(len(windows_WS) for windows_WS in own)
        return self._begun(in_turns([windows_WS[:fewest] for windows_WS in own])[:limit])

    def _own(self, length: int) -> int:
        """Tokens of the corpus in a sequence of this length."""
        if length <= len(self.first):
            raise OptionError("seq_len", length, f"the tokenizer's first tokens alone are {len(self.first)}")
        return length - len(self.first)

    def _begun(self, own_NS: Tensor) -> Tensor:
        first_F = torch.tensor(self.first, dtype=torch.int64)
        return torch.cat([first_F.expand(len(own_NS), -1), own_NS], dim=1)


def first_tokens(tokenizer: PreTrainedTokenizerBase, bos: bool | None = None) -> tuple[int, ...]:
    """The tokens that a sequence starts with: those that the tokenizer puts before any text by itself, maybe none.

    Models that were trained so need them: without, the first real token takes the place that attention rests on.
    bos: False for none; True for the BOS token where the tokenizer adds nothing by itself, OptionError if it has none.
    """
    if bos is False:
        return ()
    own = _added_by_itself(tokenizer)
    if own or bos is None:
        return own
    if tokenizer.bos_token_id is None:
        raise OptionError("bos", bos, "the tokenizer has no BOS token")
    return (tokenizer.bos_token_id,)


def _added_by_itself(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    whole = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    return next((tuple(whole[:start]) for start in starts if whole[start : start + len(bare)] == bare), ())


def tokenize(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None = None, *, bos: bool | None = None
) -> TokenizedCorpus:
    """The tokens of a corpus. Text that spells a special token stays text; conversations have their template's.

    vocabulary: tokens that the model knows; DataError when the tokenizer gives another. None leaves that unchecked.
    bos: see `first_tokens`.
    """
    first = first_tokens(tokenizer, bos)
    parts = []
    # One call for all of a part, since no place in it is sure to be a border between tokens: the bar jumps.
    with bar(sum(part.characters for part in corpus.parts.values()), "tokenizing", "character") as stage:
        for part in corpus.parts.values():
            text = part.rendered(tokenizer)
            plain = not part.has_special_tokens
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]
            parts.append(torch.tensor(ids, dtype=torch.int64))
            stage.update(part.characters)
    if vocabulary is not None:
        _require_known((torch.tensor(first, dtype=torch.int64), *parts), tokenizer, vocabulary)
    return TokenizedCorpus(corpus, tuple(parts), first)


def _require_known(runs: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    largest = max((int(tokens_T.max()) for tokens_T in runs if len(tokens_T)), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer gives the token {tokenizer.convert_ids_to_tokens(largest)!r} the id {largest}, and the "
            f"model's vocabulary has {vocabulary:,} entries: it is another model's tokenizer, or the model must be "
            "resized to it (resize_token_embeddings)"
        )


def in_turns(several: Sequence[Tensor]) -> Tensor:
    """Sequences of several parts, one of each in turn as long as there are any, shape (N, S)."""
    if len(several) == 1:
        return several[0]
    longest = max(len(part_NS) for part_NS in several)
    turns = [part_NS[turn : turn + 1] for turn in range(longest) for part_NS in several]
    return torch.cat([several[0][:0], *turns])


def sample_sequences(tokens_T: Tensor, options: CalibrationOptions, length: int, seed: int) -> Tensor:
    """Sequences drawn at random from one run of tokens, shape (num_samples, length), int64.

    The run is cut into blocks from a random offset and the blocks are shuffled; once they are used up it is cut anew
    from another offset. So every part of it is seen about equally often, and no sequence twice.
    Raises DataError when it is shorter than one sequence, OptionError when it holds fewer different ones.
    """
    count = options.num_samples or max(1, CALIBRATION_TOKENS // length)
    if len(tokens_T) < length:
        raise DataError(
            f"the calibration corpus {options.dataset} has {len(tokens_T)} tokens, less than one sequence of {length}"
        )
    if (different := len(tokens_T) - length + 1) < count:
        raise OptionError(
            "num_samples",
            count,
            f"the calibration corpus {options.dataset} has {len(tokens_T)} tokens, "
            f"which hold only {different} different sequences of {length}",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    used: set[int] = set()
    while sum(len(blocks) for blocks in drawn) < count:
        slack = min(length, len(tokens_T) - length + 1)
        offset = int(torch.randint(slack, (1,), generator=generator))
        if offset in used:
            continue
        used.add(offset)
        blocks_NS = tokens_T[offset : offset + (len(tokens_T) - offset) // length * length].view(-1, length)
        drawn.append(blocks_NS[torch.randperm(len(blocks_NS), generator=generator)])
    return torch.cat(drawn)[:count]


def hold_out(tokens_T: Tensor, count: int, length: int) -> tuple[Tensor, Tensor]:
    """(what stays for calibration, what is held out of it): a run of tokens without its end, and its end in sequences.

    Returns shapes (T',) and (count, length). At most an eighth of the run is held out, so that from a short one there
    are fewer sequences than asked, or none.
    """
    count = min(count, len(tokens_T) // (8 * length))
    rest = len(tokens_T) - count * length
    return tokens_T[:rest], tokens_T[rest:].view(count, length)


def windows_of(tokens_T: Tensor, window: int, limit: int | None = None) -> Tensor:
    """The first non-overlapping windows of a run of tokens, shape (W, S); what does not fill a window is left out."""
    count = len(tokens_T) // window
    if count == 0:
        raise DataError(f"the evaluation corpus has {len(tokens_T)} tokens, less than one window of {window}")
    count = count if limit is None else min(count, limit)
    return tokens_T[: count * window].view(count, window)
