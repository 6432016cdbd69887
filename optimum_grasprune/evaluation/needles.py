"""Numbers hidden in a long text and asked for after it: what a model can still recall of its context.

All questions of a text are asked after one reading of it.

Shape suffixes: S sequence, T tokens of a question and its answer, A tokens of the answer, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..corpora import first_tokens
from ..errors import GraspruneError
from ..execution import WholeModel
from ..numerics import in_fp64
from ..progress import bar
from ..record import Stored
from .haystacks import Haystack, ids_of


@dataclass(frozen=True)
class Recall(Stored):
    """What a model made of the needles at one depth of texts of one length, text by text.

    recalled: whether it would have written the number by greedy decoding.  nats: minus the number's log-likelihood.
    """

    length: int
    depth: float
    recalled: tuple[bool, ...]
    nats: tuple[float, ...]


def recalls(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Haystack],
    *,
    bos: bool | None = None,
) -> tuple[Recall, ...]:
    """Ask a model for every needle, by length and then by depth. GraspruneError where a log-likelihood is not finite.

    bos: as in `first_tokens`.
    """
    runner = WholeModel(model)
    found: dict[tuple[int, float], list[tuple[bool, float]]] = {}
    with bar(len(texts), "needles", "text") as stage:
        for haystack in texts:
            for needle, answer in zip(haystack.needles, _answers(runner, tokenizer, haystack, bos), strict=True):
                found.setdefault((haystack.length, needle.depth), []).append(answer)
            stage.update(1)
    return tuple(
        Recall(length, depth, *map(tuple, zip(*answers, strict=True))) for (length, depth), answers in found.items()
    )


def _answers(
    runner: WholeModel, tokenizer: PreTrainedTokenizerBase, haystack: Haystack, bos: bool | None
) -> Iterator[tuple[bool, float]]:
    context_S = torch.tensor([*first_tokens(tokenizer, bos), *ids_of(haystack.text, tokenizer)])
    questions = [ids_of(needle.question, tokenizer) for needle in haystack.needles]
    wholes = [ids_of(needle.question + needle.answer, tokenizer) for needle in haystack.needles]
    read = runner.after(context_S, map(torch.tensor, wholes))
    for question, whole, logits_TV in zip(questions, wholes, read, strict=True):
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(question, whole, strict=False))
        asked = sum(1 for _ in same)  # not all of the question where a token reaches over its end
        yield scored(logits_TV, torch.tensor(whole), len(whole) - asked)


def scored(logits_TV: Tensor, ids_T: Tensor, answer: int) -> tuple[bool, float]:
    """(whether each of the last tokens is the likeliest one, minus their log-likelihood in nats).

    logits_TV: those at place t predict the token at t + 1.  answer: how many tokens it has, fewer than there are.
    Raises GraspruneError where that is not finite.
    """
    log_p_AV = in_fp64(logits_TV[-answer - 1 : -1].log_softmax(dim=-1))
    answer_A = ids_T[-answer:].to(log_p_AV.device)
    nats = -log_p_AV.gather(-1, answer_A[:, None]).sum()
    if not nats.isfinite():
        raise GraspruneError("the log-likelihood of a hidden number is not finite")
    return bool((log_p_AV.argmax(dim=-1) == answer_A).all()), nats.item()
