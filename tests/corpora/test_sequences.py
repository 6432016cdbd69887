from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig
from optimum_grasprune.calibration_data import drawn
from optimum_grasprune.config import CalibrationOptions
from optimum_grasprune.corpora import (
    Corpus,
    Text,
    TokenizedCorpus,
    first_tokens,
    hold_out,
    load_corpus,
    sample_sequences,
    tokenize,
)
from optimum_grasprune.errors import DataError, GraspruneWarning, OptionError
from tests.conftest import make_tokenizer


def sequences(corpus: int, *, num_samples: int | None, seq_len: int, seed: int = 0) -> torch.Tensor:
    return sample_sequences(torch.arange(corpus), CalibrationOptions(num_samples=num_samples), seq_len, seed)


def test_sequences_are_seeded_random_and_contiguous() -> None:
    drawn = sequences(1000, num_samples=20, seq_len=10)
    assert drawn.shape == (20, 10)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(10).expand(20, 10))
    assert torch.equal(drawn, sequences(1000, num_samples=20, seq_len=10))
    assert not torch.equal(drawn, sequences(1000, seed=1, num_samples=20, seq_len=10))
    assert drawn[:, 0].tolist() != sorted(drawn[:, 0].tolist())


def test_one_pass_covers_the_corpus_before_anything_repeats() -> None:
    drawn = sequences(1000, num_samples=99, seq_len=10)
    assert len(set(drawn[:, 0].tolist())) == 99
    assert drawn.unique().numel() == 990


def test_more_sequences_than_blocks_are_cut_anew() -> None:
    drawn = sequences(105, num_samples=25, seq_len=10)
    assert drawn.shape == (25, 10)
    assert len({start % 10 for start in drawn[:, 0].tolist()}) > 1


@pytest.mark.parametrize(("seq_len", "number"), [(512, 256), (256, 512), (1000, 131), (200_000, 1)])
def test_as_many_sequences_as_the_tokens_make(seq_len: int, number: int) -> None:
    assert sequences(300_000, num_samples=None, seq_len=seq_len).shape == (number, seq_len)


def test_corpus_of_exactly_one_sequence() -> None:
    assert sequences(10, num_samples=1, seq_len=10).tolist() == [list(range(10))]


def test_too_short_corpus_is_an_error() -> None:
    with pytest.raises(DataError, match="has 9 tokens, less than one sequence of 10"):
        sequences(9, num_samples=1, seq_len=10)


def test_held_out_sequences_are_the_end_and_at_most_an_eighth() -> None:
    tokens = torch.arange(100)
    rest, held_out = hold_out(tokens, 2, 5)
    assert rest.tolist() == list(range(90)) and held_out.tolist() == [list(range(90, 95)), list(range(95, 100))]
    rest, held_out = hold_out(tokens, 16, 5)
    assert held_out.shape == (2, 5)
    rest, held_out = hold_out(tokens, 16, 20)
    assert torch.equal(rest, tokens) and held_out.shape == (0, 20)


def test_no_sequence_twice_even_where_the_corpus_holds_just_enough() -> None:
    drawn = sequences(20, num_samples=16, seq_len=5)
    assert len({tuple(row) for row in drawn.tolist()}) == 16
    with pytest.raises(OptionError, match="has 20 tokens, which hold only 16 different sequences of 5"):
        sequences(20, num_samples=17, seq_len=5)


def tokenized(*lengths: int, first: tuple[int, ...] = ()) -> TokenizedCorpus:
    """A corpus with a part of each length; the tokens of part k start at 1000 · k."""
    parts = tuple(torch.arange(length) + 1000 * number for number, length in enumerate(lengths, start=1))
    return TokenizedCorpus(Corpus({str(n): Text("x") for n in range(len(lengths))}, "several", None), parts, first)


def part_of(sequences_NS: torch.Tensor) -> list[int]:
    return (sequences_NS[:, -1] // 1000).tolist()


def test_each_part_is_held_out_from_and_drawn_from() -> None:
    rest, held_NS = tokenized(100, 900).hold_out(5, 4)
    assert part_of(held_NS) == [1, 2, 1, 2, 1]
    assert held_NS[0].tolist() == [1088, 1089, 1090, 1091] and held_NS[-1].tolist() == [1096, 1097, 1098, 1099]
    assert [len(tokens) for tokens in rest.parts] == [88, 892]
    drawn_NS = rest.sample(CalibrationOptions(num_samples=6), 4, seed=0)
    assert part_of(drawn_NS) == [1, 2, 1, 2, 1, 2]
    assert not set(drawn_NS.flatten().tolist()) & set(held_NS.flatten().tolist())


def test_windows_are_taken_from_each_part_in_turn() -> None:
    assert part_of(tokenized(12, 20).windows(4)) == [1, 2, 1, 2, 1, 2]
    assert part_of(tokenized(12, 20).windows(4, limit=3)) == [1, 2, 1]


def test_a_short_part_is_named() -> None:
    with pytest.raises(OptionError, match="num_samples=8: the calibration corpus 0 has 10 tokens, which hold only 7"):
        tokenized(10, 900).sample(CalibrationOptions(num_samples=16), 4, seed=0)


def test_one_part_is_drawn_from_as_before() -> None:
    whole = tokenized(1000)
    options = CalibrationOptions(num_samples=20)
    assert torch.equal(whole.sample(options, 10, 3), sample_sequences(whole.parts[0], options, 10, 3))


def test_every_sequence_starts_with_the_first_tokens() -> None:
    corpus = tokenized(100, first=(7, 8))
    rest, held_NS = corpus.hold_out(2, 5)
    for sequences_NS in (held_NS, rest.sample(CalibrationOptions(num_samples=4), 5, 0), corpus.windows(5)):
        assert sequences_NS.shape[1] == 5 and len(sequences_NS) > 1
        assert sequences_NS[:, :2].tolist() == [[7, 8]] * len(sequences_NS)
        assert torch.equal(sequences_NS[:, 2:] - sequences_NS[:, 2:3], torch.arange(3).expand(len(sequences_NS), 3))
    assert corpus.windows(5)[1, 2:].tolist() == [1003, 1004, 1005]  # the corpus itself is not skipped
    with pytest.raises(OptionError, match="seq_len=2: the tokenizer's first tokens alone are 2"):
        corpus.windows(2)


def with_template(single: str, **tokens: int) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(tokens.items()))
    return tokenizer


@pytest.mark.parametrize(
    ("single", "expected"),
    [("$A", ()), ("<s> $A", (0,)), ("<s> $A </s>", (0,)), ("$A </s>", ()), ("</s> <s> $A", (1, 0))],
)
def test_first_tokens_are_those_that_the_tokenizer_adds(single: str, expected: tuple[int, ...]) -> None:
    tokenizer = with_template(single, **{"<s>": 0, "</s>": 1})
    assert first_tokens(tokenizer) == expected
    corpus = Corpus({"a": Text("some text")}, "a", None)
    assert tokenize(corpus, tokenizer).first == expected
    assert tokenize(corpus, tokenizer, bos=False).first == ()
    assert tokenize(corpus, tokenizer, bos=True).first == (expected or (0,))
    assert torch.equal(tokenize(corpus, tokenizer).parts[0], tokenize(corpus, make_tokenizer()).parts[0])


def test_a_tokenizer_without_bos_has_none_to_give() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    assert first_tokens(tokenizer) == ()
    with pytest.raises(OptionError, match="bos=True: the tokenizer has no BOS token"):
        first_tokens(tokenizer, bos=True)


def test_text_that_spells_a_special_token_stays_text() -> None:
    tokenizer = make_tokenizer()
    corpus = Corpus({"a": Text("one</s>two<s>")}, "a", None)
    assert tokenizer.decode(tokenize(corpus, tokenizer).parts[0]) == "one</s>two<s>"
    assert not {0, 1} & set(tokenize(corpus, tokenizer).parts[0].tolist())
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [1]  # for others it is what it was


@pytest.mark.parametrize("vocabulary", [256, 100])
def test_tokens_beyond_the_vocabulary(vocabulary: int) -> None:
    tokenizer = make_tokenizer()
    corpus = Corpus({"a": Text("zebra é")}, "a", None)
    largest = int(tokenize(corpus, tokenizer).parts[0].max())
    assert tokenize(corpus, tokenizer, largest + 1).parts[0].max() == largest
    with pytest.raises(DataError, match=rf"the id {largest}, and the model's vocabulary has {largest:,} entries"):
        tokenize(corpus, tokenizer, largest)
    with pytest.raises(DataError, match="the token '<s>' the id 0"):
        tokenize(Corpus({"a": Text("")}, "a", None), with_template("<s> $A", **{"<s>": 0}), 0)


@pytest.mark.parametrize(("tokens", "held"), [(8 * 24 * 3, 3), (8 * 24 * 8, 8), (100, 0)])
def test_few_held_out_sequences_are_told(tokens: int, held: int) -> None:
    corpus, options = tokenized(tokens), {"num_samples": 2, "seq_len": 24}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(drawn(corpus, GRASPConfig(**options), 24).held_out_NS) == held
        drawn(corpus, GRASPConfig(held_out=3, **options), 24)  # what was asked for needs no warning
        drawn(corpus, GRASPConfig(method="fasp", **options), 24)  # nothing is chosen
    lines = [str(warning.message) for warning in caught if issubclass(warning.category, GraspruneWarning)]
    if held == 8:
        assert lines == []
    else:
        (line,) = lines
        assert f"only {held} of 32 sequences of 24 tokens could be held out" in line


def test_several_corpora_are_parts_of_one(tmp_path: Path) -> None:
    for name, letter, length in (("a.txt", "a", 6400), ("b.txt", "b", 90_000)):
        (tmp_path / name).write_text(letter * length)
    source = f"{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}"
    corpus = load_corpus(source)
    assert list(corpus.parts) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")] and corpus.source == source
    tokenizer: Any = make_tokenizer()
    rest, held_NS = tokenize(corpus, tokenizer).hold_out(16, 10)
    letters = [tokenizer.decode(held_S)[0] for held_S in held_NS]
    assert letters == ["a", "b"] * 8
    drawn_NS = rest.sample(CalibrationOptions(num_samples=50), 10, 0)
    assert [tokenizer.decode(drawn_S) for drawn_S in drawn_NS] == ["a" * 10, "b" * 10] * 25
    with pytest.raises(OptionError, match="names a corpus twice"):
        load_corpus(f"{tmp_path / 'a.txt'},{tmp_path / 'a.txt'}")
