"""The code that the authors of GRASPrune published, beside ours: seconds of a processor to its final held-out loss.

    git clone https://github.com/ZiY-Wang/GRASPrune published
    python benchmarks/published.py MODEL --code published --output FOLDER --keep-ratio 0.8 --ours quick paper \
        --dataset corpus.txt --dataset-split '[:90%]' --evaluate 'held out=corpus.txt[90%:]'

Theirs runs as they wrote it and with their settings, in a process of its own and on one thread; three things are given
to it from outside: the text, in place of a dataset of the hub; the precision, which is the same for both; and what is
done with the finished model, which is measured with its masks and scales in place of cut and saved: that is the same
function, and tied embeddings can't be saved by it. Each entry of --ours, as of `compare`, runs likewise. All are
measured by the same windows, in fp32; the first text decides what is reached. What is in FOLDER/published.json is not
run again; FOLDER/published.md is its table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from optimum_grasprune import GRASPPruner
from optimum_grasprune.comparison import cells_of, evaluation_texts, evaluation_windows, read_corpora
from optimum_grasprune.corpora import load_corpus
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.evaluation import perplexity, perplexity_of
from optimum_grasprune.evaluation.texts import public_entry
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.record.describe import public_name
from optimum_grasprune.record.stored import Stored
from optimum_grasprune.writing import write_file, write_json

THEIRS = "published"
"""Names the published code's own run among the others."""

Windows = Mapping[str, Tensor]
"""Tokens of each text, shape (windows, window)."""


@dataclass(frozen=True)
class Run(Stored):
    """What one came to. seconds: of one processor, reading and measuring left out.  losses: nats a token, by text."""

    seconds: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Runs(Stored):
    """All runs on one model at one ratio, by name."""

    model: str
    keep_ratio: float
    dtype: str
    runs: Mapping[str, Run] = field(default_factory=dict)


def losses_of(model: PreTrainedModel, windows: Windows) -> dict[str, float]:
    """Mean next-token loss on each text, in nats, in fp32."""
    model = model.float().eval()
    return {name: perplexity(model, windows_WS).loss for name, windows_WS in windows.items()}


def run_theirs(args: argparse.Namespace, windows: Windows) -> Run:
    """Their pipeline on our text. Their modules have common names, hence the process of its own."""
    sys.path.insert(0, str(args.code.resolve()))
    import pipeline  # type: ignore[import-not-found]
    from config import PruningConfig  # type: ignore[import-not-found]

    text = load_corpus(args.dataset, args.dataset_split).text
    config = PruningConfig(
        model_id=args.model,
        dtype=getattr(torch, args.dtype),
        device="cpu",
        keep_ratio=args.keep_ratio,
        run_acc_eval=False,
        output_dir=str(args.output / THEIRS),
    )
    finished: list[Run] = []
    loaded: list[float] = []

    def load(given: Any) -> Any:
        result = original(given)
        loaded.append(time.process_time())
        return result

    def measure(model: PreTrainedModel) -> None:
        seconds = time.process_time() - loaded[0]
        finished.append(Run(seconds, losses_of(model, windows)))

    original = pipeline.load_model_and_tokenizer
    with (
        patch.object(pipeline, "load_text_dataset", lambda *_: Dataset.from_dict({"text": [text]})),
        patch.object(pipeline, "load_model_and_tokenizer", load),
        patch.object(pipeline, "materialize_all_pruning", measure),
        patch.object(pipeline, "export_pruned_state_dict_safetensors"),
    ):
        pipeline.run_pruning_pipeline(config)
    return finished[0]


def run_ours(args: argparse.Namespace, windows: Windows, entry: str) -> Run:
    """One entry of --ours at the same ratio, on the same text."""
    [cell] = cells_of([entry], [args.keep_ratio], options_of(args))
    model = load_model(args.model, dtype=args.dtype, device="cpu")
    tokenizer = load_tokenizer(args.model)
    begun = time.process_time()
    pruned = GRASPPruner(cell.config).prune(model, tokenizer, inplace=True)
    seconds = time.process_time() - begun
    return Run(seconds, losses_of(pruned.model, windows))


def options_of(args: argparse.Namespace) -> dict[str, object]:
    """The text that is calibrated on, as options of a recipe."""
    split = {"dataset_split": args.dataset_split} if args.dataset_split else {}
    return {"dataset": args.dataset, **split}


def _child(args: argparse.Namespace, windows: Windows, name: str, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(run_theirs(args, windows) if name == THEIRS else run_ours(args, windows, name))


def in_own_process(args: argparse.Namespace, windows: Windows, name: str) -> Run:
    """Run one by its name. RuntimeError where its process fails, which has then said why."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(args, windows, name, queue))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name} ended with code {process.exitcode}")
    run: Run = queue.get()
    return run


def table(runs: Mapping[str, Run]) -> str:
    """Seconds, which part of theirs that is, perplexities, and whether the first text's loss is at most theirs."""
    texts = list(next(iter(runs.values())).losses)
    theirs = runs.get(THEIRS)
    lines = [f"| | seconds | ÷ theirs | {' | '.join(texts)} | reached |", f"|---|---:|---:|{'---:|' * len(texts)}---|"]
    for name, run in runs.items():
        shown = " | ".join(f"{perplexity_of(loss):.4g}" for loss in run.losses.values())
        part, reached = "", ""
        if theirs is not None and run is not theirs:
            part = f"1/{theirs.seconds / run.seconds:.1f}" if run.seconds < theirs.seconds else "≥ 1"
            reached = "yes" if run.losses[texts[0]] <= theirs.losses[texts[0]] else "no"
        lines.append(f"| {name} | {run.seconds:,.0f} | {part} | {shown} | {reached} |")
    return "\n".join(lines) + "\n"


def listing(args: argparse.Namespace) -> str:
    """What was calibrated on and measured on, without paths of this machine."""
    lines = [f"calibrated on `{public_name(args.dataset)}`" + (f", `{args.dataset_split}`" * bool(args.dataset_split))]
    return "".join(f"- {line}\n" for line in [*lines, *map(public_entry, args.evaluate)])


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, and what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder")
    parser.add_argument("--code", type=Path, required=True, metavar="FOLDER", help="a clone of the published code")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--ours", nargs="+", default=["quick"], metavar="ENTRY", help="of compare's --methods")
    parser.add_argument("--keep-ratio", type=float, default=0.8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--dataset", required=True, metavar="PATH|NAME")
    parser.add_argument("--dataset-split")
    parser.add_argument("--evaluate", nargs="+", required=True, metavar="NAME=PATH[SLICE]")
    parser.add_argument("--eval-seq-len", default="512")
    parser.add_argument("--eval-samples")
    args = parser.parse_args()
    if not (args.code / "pipeline.py").is_file():
        parser.error(f"--code {args.code}: is no clone of the published code, it has no pipeline.py")
    return parser, args


def main() -> None:
    """Run what is not finished, write the table anew after each, and print it."""
    parser, args = parsed()
    file = args.output / "published.json"
    runs = Runs(Path(args.model).name, args.keep_ratio, args.dtype)
    try:
        if file.exists():
            runs = Runs.read(file)
        if (runs.model, runs.keep_ratio, runs.dtype) != (Path(args.model).name, args.keep_ratio, args.dtype):
            parser.error(f"--output {args.output}: holds runs of {runs.model} at {runs.keep_ratio} in {runs.dtype}")
        cells_of(args.ours, [args.keep_ratio], options_of(args))
        corpora = read_corpora(args.evaluate, "text")
        window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(corpora))
        tokenizer = load_tokenizer(args.model)
        texts = evaluation_texts(corpora, tokenizer, len(tokenizer), window or 512, limits)
    except GraspruneError as error:
        parser.error(str(error))
    windows = {text.name: text.windows_WS for text in texts}
    args.output.mkdir(parents=True, exist_ok=True)
    for name in (THEIRS, *args.ours):
        if name in runs.runs:
            continue
        run = in_own_process(args, windows, name)
        done = {**runs.runs, name: run}
        runs = Runs(runs.model, runs.keep_ratio, runs.dtype, done)
        write_json(file, runs.to_dict())
        heading = f"# The published code and ours: {runs.model} at ρ = {runs.keep_ratio}, {runs.dtype}\n\n"
        write_file(args.output / "published.md", f"{heading}{table(done)}\n{listing(args)}".encode())
    print(table(runs.runs))


if __name__ == "__main__":
    main()
