"""Write the `sampled` corpus: English text sampled by SmolLM2-135M-Instruct (Apache-2.0) itself.

Usage: python examples/make_corpus.py MODEL OUTPUT [--documents N] [--seed S]

MODEL is a local checkpoint folder, OUTPUT the gzip file to write. Every prompt is a different pairing of a kind of
writing with a topic. The gzip header holds no time, so equal text gives equal bytes.
Sampled tokens also depend on floating-point rounding: another CPU or vLLM version may sample other text.
"""

import argparse
import gzip
import hashlib
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: the engine spins on a core otherwise
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB

from vllm import LLM, SamplingParams  # imported late: vLLM reads the settings above

KINDS = (
    "Write a short encyclopedia article about {}.",
    "Write a short story for young children about {}.",
    "Write a friendly letter to a cousin about {}.",
    "Write a dialogue between two old friends who talk about {}.",
    "Explain step by step, for a beginner, something useful to know about {}.",
    "Write a diary entry by somebody whose day was all about {}.",
    "Write five questions and answers for a school quiz about {}.",
    "Write a newspaper report about {}.",
    "Write the short biography of an imaginary person whose life was devoted to {}.",
    "Give a short talk to a class of pupils about {}.",
    "Write a clear paragraph on the history of {}, and one on what it is like today.",
    "Describe, in plain words and with many details, a scene that has to do with {}.",
)

TOPICS = (
    "France and its capital Paris", "Japan and its capital Tokyo", "Egypt and its capital Cairo",
    "Brazil and its largest cities", "Kenya and its national parks", "Canada and its provinces",
    "India and its languages", "Italy and the city of Rome", "Norway and its fjords", "Australia and its deserts",
    "the river Nile", "the Amazon river", "the Danube and the towns along it", "the Himalayas", "volcanoes",
    "the oceans and their tides", "islands", "the forest in autumn", "the desert at night", "glaciers and ice ages",
    "elephants", "wolves", "honeybees", "whales and dolphins", "owls", "cats", "dogs that work on farms",
    "butterflies", "horses", "penguins", "dinosaurs", "oak trees", "garden vegetables", "wild flowers",
    "the Roman Empire", "ancient Greece", "the Middle Ages", "the voyages of the great explorers",
    "the invention of printing", "the Industrial Revolution", "the first railways", "the building of the pyramids",
    "gravity", "electricity", "light and colour", "sound", "magnets", "atoms", "heat and temperature", "the Moon",
    "the planets of the solar system", "stars and galaxies", "space travel", "the weather", "the water cycle",
    "the human heart", "sleep and dreams", "healthy food", "medicine and doctors", "how plants grow",
    "numbers and counting", "geometry", "chess", "computers", "robots", "the telephone", "bridges", "clocks and time",
    "bread", "vegetable soup", "chocolate cake", "tea and coffee", "cheese", "rice dishes", "pasta", "honey",
    "the violin", "the piano", "singing in a choir", "jazz", "drums and rhythm", "painting", "theatre", "poetry",
    "football", "swimming", "tennis", "running a marathon", "cycling", "the Olympic Games", "skiing", "sailing",
    "a rainy day at home", "a birthday party", "the market on Saturday", "moving to a new house",
    "the first school day", "a lost key", "a train journey", "camping in the mountains", "a visit to grandparents",
    "a small village shop",
    "the public library", "the fire brigade", "the post office", "farming", "fishing", "building a boat", "knitting",
    "repairing a bicycle", "planting a tree", "saving money", "learning a language", "friendship", "courage",
    "honesty", "kindness to strangers", "a brave little mouse", "a dragon who is afraid of the dark",
    "a lighthouse keeper", "a clever fox", "a snowman who wants to see the summer", "an old wooden toy",
)  # fmt: skip

REFUSAL = re.compile(
    r"\b(I'?m sorry|I apologi[sz]e|as an AI|language model|AI assistant|I can(?:'|no)t (?:help|assist))", re.I
)
PREAMBLE = re.compile(r"(Sure|Certainly|Of course|Here(?:'s| is| are))\b.*:$")
ACCENTS = re.compile("[\u0300-\u036f]")  # combining marks
TO_ASCII = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - ",
                          "\u2026": "...", "\u00a0": " "})  # fmt: skip


def make_prompts(count: int, seed: int) -> list[str]:
    """Return `count` different prompts in an order shuffled by `seed`, so that any prefix covers all topics."""
    prompts = [kind.format(topic) for kind in KINDS for topic in TOPICS]
    if count > len(prompts):
        raise ValueError(f"at most {len(prompts)} different prompts exist, {count} asked for")
    random.Random(seed).shuffle(prompts)
    return prompts[:count]


def sample(model: Path, prompts: list[str], seed: int) -> list[str]:
    """Return one sampled answer of at most 400 tokens per prompt, in the order of `prompts`.

    min_p rather than top_p cuts the tail of the distribution: it needs no sort of the vocabulary, which on a
    CPU costs as much as the model itself. The seed is the engine's: seeds per request make vLLM 0.32 stop on a CPU as
    soon as a prompt is prefilled in pieces.
    """
    llm = LLM(
        str(model), dtype="bfloat16", max_model_len=512, max_num_seqs=160, enforce_eager=True, seed=seed,
        enable_prefix_caching=False,
    )  # fmt: skip
    settings = SamplingParams(temperature=0.9, min_p=0.05, max_tokens=400)
    answers = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], settings)
    return [answer.outputs[0].text for answer in answers]


def normalise(text: str) -> str:
    """Return `text` as one block of plain lines: no accents, no Markdown marks, no blank or padded lines.

    A first line such as "Sure, here is a story:" goes; an answer that ran into the token limit is cut after its last
    complete sentence.
    """
    text = ACCENTS.sub("", unicodedata.normalize("NFKD", text)).translate(TO_ASCII)
    lines = [" ".join(line.split()) for line in re.sub(r"[*_#`]+", "", text).splitlines()]
    lines = [line for line in lines if re.search(r"[A-Za-z0-9]", line)]
    text = "\n".join(lines[1:] if lines and PREAMBLE.match(lines[0]) else lines)
    end = max((match.end() for match in re.finditer(r"[.!?][\"')]?(?=\s|$)", text)), default=0)
    return text[:end]


def four_grams(text: str) -> list[tuple[str, ...]]:
    """Return the runs of four neighbouring lower-case words of `text`."""
    words = re.findall(r"[a-z']+", text.lower())
    return list(zip(words, words[1:], words[2:], words[3:], strict=False))


def rejection(text: str, seen: set[tuple[str, ...]]) -> str | None:
    """Return why the normalised `text` must be dropped, or None; `seen` holds the 4-grams of the documents kept."""
    grams = four_grams(text)
    if len(grams) < 40:
        return "short"
    if not text.isascii():
        return "not ASCII"
    if REFUSAL.search(text):
        return "refusal"
    if len(set(grams)) < 0.65 * len(grams):
        return "repetitive"
    if sum(gram in seen for gram in grams) > 0.5 * len(grams):
        return "near-duplicate"
    return None


def select(answers: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """Return the documents kept and how many were dropped for each reason."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    for text in map(normalise, answers):
        reason = rejection(text, seen)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(text)
            seen.update(four_grams(text))
    return kept, dropped


def main() -> None:
    """Sample, select and write the corpus; print its size and SHA-256."""
    parser = argparse.ArgumentParser(description="Write the `sampled` corpus.")
    parser.add_argument("model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("output", type=Path, help="gzip file to write")
    parser.add_argument("--documents", type=int, default=720, help="answers to sample, before any is dropped")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kept, dropped = select(sample(options.model, make_prompts(options.documents, options.seed), options.seed))
    text = "\n\n".join(kept) + "\n"
    packed = gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(packed)
    print(f"{len(kept)} documents, {len(text)} characters, {len(packed)} bytes packed; dropped {dict(dropped)}")
    print(f"sha256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
