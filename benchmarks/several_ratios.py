"""What several keep ratios from one run cost, and what they lose beside runs of their own.

    python benchmarks/several_ratios.py MODEL --output FOLDER --dataset corpus.txt --dataset-split '[:90%]' \
        --evaluate 'stories=corpus.txt[90%:]' --eval-seq-len 256 --eval-samples 60

All ratios are made together, and some of them by themselves too, with the same seed: seconds of all processors, part by
part, and nats that the run for all adds to the loss on each text. The tables are written to FOLDER/several-ratios.md,
anew after each seed, and what they are made of to FOLDER/several-ratios.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import PreTrainedModel

from optimum_grasprune import GRASPConfig, GRASPPruner, PrunedModel
from optimum_grasprune.comparison import evaluation_texts, evaluation_windows, read_corpora
from optimum_grasprune.config import by_recipe
from optimum_grasprune.evaluation import perplexity, perplexity_of
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.recovery.reconstruction import Reconstruction
from optimum_grasprune.writing import write_file, write_json

PARTS: list[tuple[type, str, str | None]] = [
    (WholeModel, "gather", "statistics"),
    (WholeModel, "teacher", "teacher"),
    (WholeModel, "mean_loss", "held-out losses"),
    (WholeModel, "learn", None),
    (Reconstruction, "rebuild", "reconstruction"),
]
"""Methods, and what their calls are for; trainings are named by their labels."""

Seconds = Counter[str]
Losses = dict[str, float]


@contextmanager
def seconds_by_part(seconds: Seconds) -> Iterator[None]:
    """Adds up processor seconds while the block runs: by part, without those of parts inside, and "all"."""
    inner: list[float] = []

    def timed(method: Callable[..., Any], what: str | None) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            part = what or given[3].label
            inner.append(0.0)
            begun = time.process_time()
            try:
                return method(*given, **options)
            finally:
                took = time.process_time() - begun
                seconds[part] += took - inner.pop()
                if inner:
                    inner[-1] += took

        return call

    begun = time.process_time()
    with ExitStack() as patches:
        for of, name, what in PARTS:
            patches.enter_context(patch.object(of, name, timed(getattr(of, name), what)))
        yield
    seconds["all"] += time.process_time() - begun


class Bench:
    """One model with its texts. Runs are timed without the measuring of perplexity."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model: PreTrainedModel = load_model(args.model, dtype=args.dtype, device="cpu")
        self.tokenizer = load_tokenizer(args.model)
        corpora = read_corpora(args.evaluate, "text")
        window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(corpora))
        texts = evaluation_texts(corpora, self.tokenizer, self.model.config.vocab_size, window or 256, limits)
        self.windows = {text.name: text.windows_WS for text in texts}

    def losses(self, model: PreTrainedModel) -> Losses:
        """Mean next-token loss on each text, in nats."""
        return {name: perplexity(model, windows_WS).loss for name, windows_WS in self.windows.items()}

    def run(self, config: GRASPConfig, keep_ratios: Iterable[float]) -> tuple[Seconds, dict[str, Losses]]:
        """Prune at the ratios, from one run where they are several: what it took, and the losses."""
        seconds, losses = Seconds(), {}
        models: Iterator[PrunedModel]
        with seconds_by_part(seconds):
            models = iter(GRASPPruner(config).prune_many(self.model, self.tokenizer, keep_ratios))
        while True:
            with seconds_by_part(seconds):
                pruned = next(models, None)
            if pruned is None:
                return seconds, losses
            losses[f"{pruned.record.recipe['keep_ratio']}"] = self.losses(pruned.model)
            del pruned


def cost_table(one: Seconds, together: Seconds, alone: str, count: int) -> str:
    """Processor seconds of one ratio and of all."""
    parts = [part for part in together if part != "all"]
    rest = "reading text, refitting, building"

    def row(name: str, seconds: Seconds) -> str:
        values = [*(seconds[part] for part in parts), seconds["all"] - sum(seconds[part] for part in parts)]
        return f"| {name} | {' | '.join(f'{value:.1f}' for value in (*values, seconds['all']))} |"

    heading = f"| | {' | '.join((*parts, rest, 'all'))} |\n|---|{'---:|' * (len(parts) + 2)}"
    ratio = together["all"] / one["all"]
    return "\n".join(
        [heading, row(f"one, {alone}", one), row(f"{count} together", together), f"\nTogether ÷ one: {ratio:.2f}\n"]
    )


def loss_table(dense: Losses, alone: dict[str, Losses], together: dict[str, Losses]) -> str:
    """Perplexities of the ratios that were made both ways, and the nats that the run for all adds."""
    lines = [f"| | {' | '.join(f'{text}, alone | together | nats added' for text in dense)} |"]
    lines.append(f"|---|{'---:|' * (3 * len(dense))}")
    lines.append(f"| dense | {' | '.join(f'{perplexity_of(loss):.4g} |  | ' for loss in dense.values())} |")
    for ratio, losses in alone.items():
        pairs = [(loss, together[ratio][text]) for text, loss in losses.items()]
        cells = [f"{perplexity_of(one):.4g} | {perplexity_of(all_):.4g} | {all_ - one:+.3f}" for one, all_ in pairs]
        lines.append(f"| ρ = {ratio} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    ten = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5]
    parser.add_argument("--keep-ratios", nargs="+", type=float, default=ten, help="made together")
    parser.add_argument(
        "--alone", nargs="+", type=float, default=[0.5, 0.6, 0.8], help="made alone too; the first is timed"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--dataset", required=True, metavar="PATH|NAME")
    parser.add_argument("--dataset-split")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="of the recipe, as in seq_len=64"
    )
    parser.add_argument("--evaluate", nargs="+", required=True, metavar="NAME=PATH[SLICE]")
    parser.add_argument("--eval-seq-len", default="256")
    parser.add_argument("--eval-samples")
    args = parser.parse_args()
    if unknown := set(args.alone) - set(args.keep_ratios):
        parser.error(f"--alone {min(unknown)}: is none of --keep-ratios")
    return args


def main() -> None:
    """Measure seed by seed, write the tables."""
    args = parsed()
    bench = Bench(args)
    dense = bench.losses(bench.model)
    options = dict(entry.split("=", 1) for entry in args.options)
    options |= {"dataset": args.dataset, **({"dataset_split": args.dataset_split} if args.dataset_split else {})}
    args.output.mkdir(parents=True, exist_ok=True)
    bench.run(by_recipe(args.recipe, **{**options, "num_samples": 4, "seq_len": 16, "held_out": 2}), [0.5])  # warm-up
    results: dict[str, Any] = {}
    page = f"# Several ratios of `{args.recipe}` on {Path(args.model).name}\n\n`{shlex.join(sys.argv[2:])}`\n"
    for seed in args.seeds:
        config = by_recipe(args.recipe, **options, seed=seed)
        runs = [bench.run(config, [ratio]) for ratio in args.alone]
        alone = {ratio: losses for _, of_run in runs for ratio, losses in of_run.items()}
        together, losses = bench.run(config, args.keep_ratios)
        page += f"\n## Seed {seed}\n\nProcessor seconds:\n\n"
        page += cost_table(runs[0][0], together, str(args.alone[0]), len(args.keep_ratios))
        page += f"\nPerplexity:\n\n{loss_table(dense, alone, losses)}"
        results[str(seed)] = {
            "seconds": {"one": dict(runs[0][0]), "together": dict(together)},
            "loss": {"dense": dense, "alone": alone, "together": losses},
        }
        write_json(args.output / "several-ratios.json", {"arguments": sys.argv[1:], "seeds": results})
        write_file(args.output / "several-ratios.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
