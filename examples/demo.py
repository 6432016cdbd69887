"""The main job on a real model: prune SmolLM2-135M, half of its KV cache too, measure it, serve dense and pruned.

Run by `make demo`, which first makes the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from get_smollm2 import export

from optimum_grasprune.report import print_table
from optimum_grasprune.serving.engines.vllm.server import served

QUESTION = "The capital of France is"
# A quarter of the quick recipe's sequences, to end in minutes on two CPU cores.
RECIPE = ["--recipe", "quick", "--num-samples", "48", "--diagonal-samples", "48", "--statistic-samples", "32"]
RECIPE += ["--held-out", "8", "--seed", "0"]
RECIPE += ["--keep-ratio", "0.8", "--kv-keep-ratio", "0.5"]
RECIPE += ["--dataset", "sampled", "--dataset-split", "[:90%]"]
HELD_OUT = ["--dataset", "sampled", "--dataset-split", "[90%:]", "--seq-len", "256", "--num-samples", "16"]
KV_CACHE_GIB = "1"


def precision() -> list[str]:
    """fp32 where the processor multiplies bfloat16, the model's own precision, in software: ten times slower."""
    in_software = not torch.accelerator.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return ["--dtype", "float32"] if in_software else []


def grasprune(*arguments: str) -> None:
    """Run `optimum-cli grasprune` as a user would, showing the command."""
    print(f"\n$ optimum-cli grasprune {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "optimum.commands.optimum_cli", "grasprune", *arguments], check=True)


def ask(model: Path, log: Path) -> tuple[str, int]:
    """The model's continuation of the question and its KV-cache tokens, from a server that is stopped again."""
    # No flag is needed; this one leaves out two minutes of compiling and changes neither answer nor memory.
    flags = ["--enforce-eager"]
    print(f"\n$ vllm serve {model} {' '.join(flags)}", flush=True)
    # The same memory for the KV cache of both models, so that their token counts compare.
    environment = {"VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB}
    with served(model, log, flags=flags, environment=environment) as server:
        return server.complete(QUESTION, max_tokens=40).text, server.kv_cache_tokens()


def main() -> None:
    """Bring the model, prune, measure, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("examples/output"), help="folder for models and logs")
    output = parser.parse_args().output
    start = time.monotonic()
    dense, pruned = output / "smollm2-135m", output / "smollm2-135m-pruned"
    output.mkdir(parents=True, exist_ok=True)
    if not (dense / "config.json").is_file():
        export(dense)
    grasprune("export", "-m", str(dense), *RECIPE, *precision(), "--overwrite", str(pruned))
    grasprune(
        "evaluate",
        "-m",
        str(pruned),
        "--dense",
        str(dense),
        *HELD_OUT,
        *precision(),
        "--json",
        str(output / "perplexity.json"),
    )
    answers = {model: ask(model, output / f"{model.name}.log") for model in (dense, pruned)}
    show(answers, dense, pruned)
    quality = json.loads((output / "perplexity.json").read_text())["models"]
    print(f"Perplexity on held-out text: {quality[0]['perplexity']:.2f} dense, {quality[1]['perplexity']:.2f} pruned.")
    print(f"Done in {(time.monotonic() - start) / 60:.1f} minutes; both servers are stopped.")


def show(answers: dict[Path, tuple[str, int]], dense: Path, pruned: Path) -> None:
    """Print what the servers said and how many tokens their KV caches hold."""
    rows = [(model.name, f"{tokens:,}", " ".join(text.split())) for model, (text, tokens) in answers.items()]
    print_table(f"{QUESTION} …", ("model", "KV-cache tokens", "answer"), rows)
    ratio = answers[pruned][1] / answers[dense][1]
    print(f"The same memory holds {ratio:.2f} times the KV-cache tokens.")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing of the demo is on a hub
    main()
