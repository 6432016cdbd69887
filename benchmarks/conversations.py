"""Conversations that a chat model has with itself, as a calibration text: JSON lines, each `text` a list of turns.

    python benchmarks/conversations.py MODEL conversations.jsonl --count 256

A question is put together from a topic and a kind of request, and the model's answer is drawn token by token. Where no
chats are at hand, a model's own answers are the cheapest text of the kind that it is used for (self-calibration,
arXiv 2410.17170).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

REQUESTS = (
    "Explain {} to a child of ten.",
    "What should a beginner know about {}?",
    "Write a short letter to a friend about {}.",
    "Give me five tips on {}.",
    "What are common mistakes with {}, and how does one avoid them?",
    "Summarise the history of {} in one paragraph.",
    "Compare two opinions on {}.",
    "Write a dialogue between a teacher and a pupil about {}.",
)
TOPICS = (
    "baking bread", "the water cycle", "learning a language", "bicycles", "black holes", "saving money", "gardening",
    "job interviews", "vaccines", "chess", "sleep", "renewable energy", "writing tests for software", "fractions",
    "the French Revolution", "moving to another city", "teamwork", "photography", "bees", "maps", "jazz", "recycling",
    "first aid", "public speaking", "volcanoes", "cooking for guests", "elections", "running", "poetry", "spreadsheets",
    "the human heart", "travelling by train",
)  # fmt: skip


def questions(count: int, seed: int) -> list[str]:
    """Different questions in random order; ValueError where there are not so many."""
    every = [request.format(topic) for request, topic in itertools.product(REQUESTS, TOPICS)]
    if not 1 <= count <= len(every):
        raise ValueError(f"--count {count}: should be between 1 and {len(every)}")
    return random.Random(seed).sample(every, count)


@torch.no_grad()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[str], length: int) -> list[str]:
    """The model's answer to each question. length: tokens of an answer, at most."""
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": question}] for question in asked],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    found = model.generate(
        **inputs, do_sample=True, temperature=0.8, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id
    )
    return tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Write a line for each conversation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("output", type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=256, help="conversations")
    parser.add_argument("--length", type=int, default=192, help="most tokens of an answer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        asked = questions(args.count, args.seed)
    except ValueError as error:
        parser.error(str(error))
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    if tokenizer.chat_template is None:
        parser.error(f"MODEL {args.model}: has no chat template")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    batches = [asked[start : start + args.batch_size] for start in range(0, len(asked), args.batch_size)]
    with args.output.open("w", encoding="utf-8") as file:
        for batch in tqdm(batches):
            for question, answer in zip(batch, answers(model, tokenizer, batch, args.length), strict=True):
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                print(json.dumps({"text": turns}, ensure_ascii=False), file=file)


if __name__ == "__main__":
    main()
