from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from optimum_grasprune.config import NeedleOptions
from optimum_grasprune.corpora import Corpus
from optimum_grasprune.corpora.corpus import Text
from optimum_grasprune.errors import GraspruneError, OptionError
from optimum_grasprune.evaluation.haystacks import Haystack, Needle, haystacks, hidden, lengths_up_to
from optimum_grasprune.evaluation.needles import recalls, scored
from optimum_grasprune.execution import WholeModel
from tests.conftest import logits_of, make_model, make_tokenizer
from tests.tiny_models import OF_FAMILY, tiny_model

STORY = " ".join(f"Then came day {day}, and nobody knew why." for day in range(200))


def corpus(text: str = STORY) -> Corpus:
    return Corpus({"story": Text(text)}, "story", None)


def made(length: int = 500, text: str = STORY, **options: object) -> list[Haystack]:
    values = {"needles": "story", "needle_depths": (0, 50, 100), "needle_texts": 2, **options}
    return haystacks(corpus(text), [length], NeedleOptions(**values), make_tokenizer())


def needle(depth: float, key: str = "red hat") -> Needle:
    return Needle(depth, key, "1234567")


def test_what_is_said_and_asked() -> None:
    one = needle(50)
    assert one.planted == "The secret number of the red hat is 1234567."
    assert (one.question + one.answer).endswith("\nAnswer: The secret number of the red hat is 1234567")


def test_depth_is_a_place_among_the_sentences() -> None:
    needles = [needle(100, "last"), needle(0, "first"), needle(50, "middle"), needle(25, "second")]
    words = [part.removeprefix("The secret number of the ").split()[0] for part in _parts(hidden("abcd", needles))]
    assert words == ["first", "a", "second", "b", "middle", "c", "d", "last"]


def _parts(text: str) -> list[str]:
    return text.replace(" is 1234567.", "").replace("The secret number of the ", "").split()


@given(count=st.integers(0, 30), depths=st.lists(st.floats(0, 100), max_size=6))
def test_the_text_itself_stays_in_order(count: int, depths: list[float]) -> None:
    sentences = [str(place) for place in range(count)]
    text = hidden(sentences, [needle(depth, f"k{place}") for place, depth in enumerate(depths)])
    left = text
    for place in range(len(depths)):
        assert left.count(needle(0, f"k{place}").planted) == 1
        left = left.replace(needle(0, f"k{place}").planted, "")
    assert left.split() == sentences


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(8192, (1024, 2048, 4096, 8192)), (5000, (1024, 2048, 4096)), (1024, (1024,)), (512, (512,))],
)
def test_lengths_double_up_to_what_is_read(longest: int, lengths: tuple[int, ...]) -> None:
    assert lengths_up_to(longest) == lengths


@pytest.mark.parametrize("length", [450, 700, 1500])
def test_texts_fill_their_length_and_no_more(length: int) -> None:
    tokenizer = make_tokenizer()
    for text in made(length):
        question = max(len(tokenizer(each.question + each.answer)["input_ids"]) for each in text.needles)
        whole = len(tokenizer(text.text)["input_ids"]) + question
        assert length - 50 < whole <= length  # a sentence has 40 tokens, one for each byte
        assert [each.depth for each in text.needles] == [0, 50, 100]
        assert all(text.text.count(each.planted) == 1 for each in text.needles)
        assert len({each.key for each in text.needles}) == 3


def test_the_seed_says_all() -> None:
    assert made() == made() != made(seed=1)
    first, second = made()
    assert first.text != second.text and first.needles != second.needles
    # A length more changes nothing of the texts of another one.
    options = NeedleOptions(needles="story", needle_depths=(0, 50, 100), needle_texts=2)
    assert haystacks(corpus(), [500, 700], options, make_tokenizer())[:2] == made()


@pytest.mark.parametrize(
    ("length", "text", "line"),
    [
        (100, STORY, r"needle_lengths=100: 3 numbers and a question alone take \d+ tokens"),
        (5000, "Too short. Yes.", r"needles='story': has \d+ tokens, too few for a text of 5,000"),
        (500, "x" * 5000, r"needles='story': has no sentence at a place that was drawn that fits into 500 tokens"),
    ],
)
def test_what_cannot_be_hidden_in(length: int, text: str, line: str) -> None:
    with pytest.raises(OptionError, match=line):
        made(length, text)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"needle_depths": "0,101"}, "needle_depths"),
        ({"needle_depths": "-1"}, "needle_depths"),
        ({"needle_depths": "half"}, "needle_depths"),
        ({"needle_depths": ()}, "needle_depths"),
        ({"needle_lengths": "0"}, "needle_lengths"),
        ({"needle_lengths": "1024,long"}, "needle_lengths"),
        ({"needle_texts": 0}, "needle_texts"),
    ],
)
def test_options_out_of_range(values: dict[str, object], option: str) -> None:
    with pytest.raises(OptionError, match=f"^{option}="):
        NeedleOptions(**values)


def test_numbers_with_commas_between_them() -> None:
    options = NeedleOptions(needle_lengths="100,200", needle_depths="0,12.5")
    assert options.needle_lengths == (100, 200) and options.needle_depths == (0, 12.5)


def test_scoring_by_hand() -> None:
    # Three tokens in the vocabulary; the answer is the last two of four tokens.
    logits_TV = torch.tensor([[9.0, 0.0, 0.0], [0.0, math.log(2), 0.0], [0.0, 0.0, math.log(6)], [9.0, 0.0, 0.0]])
    ids_T = torch.tensor([0, 0, 1, 2])
    recalled, nats = scored(logits_TV, ids_T, answer=2)
    assert recalled and nats == pytest.approx(math.log(4 / 2) + math.log(8 / 6), rel=1e-6)
    recalled, nats = scored(logits_TV, torch.tensor([0, 0, 1, 0]), answer=2)  # one of two tokens is another
    assert not recalled and nats == pytest.approx(math.log(4 / 2) + math.log(8), rel=1e-6)
    assert scored(logits_TV, torch.tensor([0, 0, 0, 2]), answer=1)[0]
    logits_TV[1, 0] = torch.nan
    with pytest.raises(GraspruneError, match="the log-likelihood of a hidden number is not finite"):
        scored(logits_TV, ids_T, answer=2)


@pytest.mark.parametrize("family", OF_FAMILY)
def test_one_reading_serves_every_question(family: str) -> None:
    """Families with sliding windows among them, whose caches cannot be taken back."""
    model = tiny_model(family)
    tokens_S = torch.randint(2, 258, (60,), generator=torch.Generator().manual_seed(0))
    context_S, asked = tokens_S[:40], (tokens_S[40:47], tokens_S[47:60])
    for tokens_T, logits_TV in zip(asked, WholeModel(model).after(context_S, asked), strict=True):
        whole_TV = logits_of(model, torch.cat([context_S, tokens_T])[None])[0, 40:]
        torch.testing.assert_close(logits_TV, whole_TV, rtol=1e-4, atol=1e-4)


def test_it_is_the_likelihood_of_the_whole_sequence() -> None:
    model, tokenizer = make_model(max_position_embeddings=1024), make_tokenizer()
    texts = made(500)
    found = recalls(model, tokenizer, texts)
    assert [(cell.length, cell.depth, len(cell.nats)) for cell in found] == [(500, 0, 2), (500, 50, 2), (500, 100, 2)]
    for place, cell in enumerate(found):
        for text, recalled, nats in zip(texts, cell.recalled, cell.nats, strict=True):
            each = text.needles[place]
            assert not recalled and nats == pytest.approx(
                _alone(model, text.text + each.question, each.answer), rel=1e-4
            )


def _alone(model: PreTrainedModel, prompt: str, answer: str) -> float:
    ids = torch.tensor(make_tokenizer()(prompt + answer)["input_ids"])
    log_p = logits_of(model, ids[None])[0].log_softmax(-1)
    count = len(answer)  # a token for each byte
    return -sum(log_p[at, after].item() for at, after in pairwise_at(ids, count))


def pairwise_at(ids: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """(place, the token after it) of the last tokens."""
    places = range(len(ids) - count - 1, len(ids))
    return [(at, int(ids[after])) for at, after in pairwise(places)]
