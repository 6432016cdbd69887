"""What training the weights of a pruned checkpoint gives, by how it is trained and how much of the change is kept.

    python benchmarks/recovery.py MODEL PRUNED --output FOLDER --dataset corpus.txt \
        --runs distill lora distill@recover_tokens=262144,kl_weight=0.25 --shares 0.6 0.8 1 \
        --evaluate stories=stories.txt novels=novels.txt.gz --eval-seq-len 512 --eval-samples 24,16

PRUNED is what `export` made of MODEL, which is the teacher. Every run starts from it. A run is a way of `--recover`
with options; its weights are mixed with those of PRUNED in every share (`--recover-interpolation`), which needs no
training of its own: the state that is kept is the best one with all of the change. The table is written to
FOLDER/recovery.md and FOLDER/recovery.json, anew after each run; runs that are there already are passed over.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_grasprune import GRASPConfig
from optimum_grasprune.calibration_data import calibration_for
from optimum_grasprune.comparison import evaluation_texts, evaluation_windows, read_corpora
from optimum_grasprune.evaluation import perplexity, perplexity_of
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import load_pruned_model, read_plan
from optimum_grasprune.loading import load_model, load_tokenizer, resolve_device
from optimum_grasprune.problem import TrainingTexts
from optimum_grasprune.recovery.reference import Reference
from optimum_grasprune.recovery.registry import get_stage
from optimum_grasprune.registry import RECOVERIES
from optimum_grasprune.writing import write_file, write_json


@dataclass(frozen=True)
class Bench:
    """The dense model, and texts to measure models on. windows: by the texts' names, shape (W, S) each."""

    args: argparse.Namespace
    dense: PreTrainedModel
    tokenizer: Any
    windows: dict[str, Tensor]

    @classmethod
    def of(cls, args: argparse.Namespace) -> Bench:
        """What the command line names."""
        dense, tokenizer = load_model(args.model, dtype=args.dtype, device=args.device), load_tokenizer(args.model)
        corpora = read_corpora(args.evaluate, "text")
        window, limits = evaluation_windows(args.eval_seq_len, args.eval_samples, len(corpora))
        texts = evaluation_texts(corpora, tokenizer, dense.config.vocab_size, window or 512, limits)
        return cls(args, dense, tokenizer, {text.name: text.windows_WS for text in texts})

    def pruned(self) -> PreTrainedModel:
        """The pruned model as the checkpoint has it, in the dense one's precision and place."""
        return load_pruned_model(self.args.pruned).to(self.dense.device, self.dense.dtype)

    def perplexities(self, model: PreTrainedModel) -> dict[str, float]:
        """On each text."""
        return {name: perplexity_of(perplexity(model, windows_WS).loss) for name, windows_WS in self.windows.items()}

    def run(self, entry: str) -> dict[str, Any]:
        """Train in one way: steps, the losses that it was judged by, seconds, and perplexities by the share kept."""
        name, _, listed = entry.partition("@")
        options = dict(option.split("=", 1) for option in listed.split(",") if option)
        options |= {"dataset": self.args.dataset, "recover": name, "recover_interpolation": 1, "compensation": "none"}
        config = GRASPConfig(**options)
        pruned, (plan, _) = self.pruned(), read_plan(self.args.pruned)
        before = {name: weight.detach().cpu().clone() for name, weight in pruned.named_parameters()}
        calibration = calibration_for(self.dense, self.tokenizer, None, config)
        stage = get_stage(name).from_config(config)
        if calibration is None:
            raise SystemExit(f"--runs {entry}: a method that looks at no data leaves nothing to train on")
        begun = time.perf_counter()
        texts = TrainingTexts(recovery=calibration.training_texts.recovery)
        reference = Reference.on(WholeModel(self.dense), calibration.tokens_NS, config.batch_size, (), texts)
        learnt = stage.train(reference, pruned, plan)
        seconds = time.perf_counter() - begun
        learnt.fold()
        after = {name: weight.detach().cpu().clone() for name, weight in pruned.named_parameters()}
        measured = {}
        for share in self.args.shares:
            mix(pruned, before, after, share)
            measured[f"{share:g}"] = self.perplexities(pruned)
        return {"training": learnt.record.to_dict(), "seconds": seconds, "perplexity": measured}


@torch.no_grad()
def mix(model: PreTrainedModel, before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> None:
    """Give the model the weights that lie so far on the way from one to the other, rounded once."""
    for name, weight in model.named_parameters():
        weight.copy_(before[name].float().lerp(after[name].float(), share))


def table(start: dict[str, float], runs: dict[str, Any], shares: list[float]) -> str:
    """A row a run and share."""
    heading = ["run", "tokens", "step kept", "held out", "watched", "minutes", "share kept", *start]
    lines = [f"| {' | '.join(heading)} |", f"|---|{'---:|' * (len(heading) - 1)}"]
    lines.append(f"| before | | | | | | | {' | '.join(f'{value:.2f}' for value in start.values())} |")
    for entry, run in runs.items():
        training = run["training"]
        judged = training["after"] or training["before"] or {}
        losses = [f"{judged[text]:.3f}" if text in judged else "" for text in ("held_out", "watched")]
        steps = f"{training['kept_step']} of {training['planned_steps']}"
        for place, share in enumerate(shares):
            own = [f"`{entry}`", f"{training['tokens']:,}", steps, *losses, f"{run['seconds'] / 60:.1f}"]
            shown = own if place == 0 else [""] * len(own)
            measured = [f"{value:.2f}" for value in run["perplexity"][f"{share:g}"].values()]
            lines.append(f"| {' | '.join([*shown, f'{share:g}', *measured])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not there yet, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("pruned", metavar="PRUNED")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--dataset", required=True, metavar="PATH|NAME")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME[@OPTION=VALUE,…]")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.6, 0.8, 1.0])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", type=resolve_device, default="auto")
    parser.add_argument("--evaluate", nargs="+", required=True, metavar="NAME=PATH[SLICE]")
    parser.add_argument("--eval-seq-len", default="512")
    parser.add_argument("--eval-samples")
    args = parser.parse_args()
    for entry in args.runs:
        if entry.partition("@")[0] not in RECOVERIES:
            parser.error(f"--runs {entry}: trains no weights; {' and '.join(RECOVERIES)} do")
    bench = Bench.of(args)
    file = args.output / "recovery.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    runs: dict[str, Any] = found.get("runs", {})
    start = found.get("before") or bench.perplexities(bench.pruned())
    args.output.mkdir(parents=True, exist_ok=True)
    for entry in args.runs:
        if entry not in runs:
            runs[entry] = bench.run(entry)
        write_json(file, {"before": start, "runs": runs})
        rows = table(start, runs, args.shares)
        page = f"# Recovery of {Path(args.pruned).name}\n\n`{shlex.join(sys.argv[1:])}`\n\n{rows}"
        write_file(args.output / "recovery.md", page.encode())
    print(rows)


if __name__ == "__main__":
    main()
