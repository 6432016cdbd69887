"""The options of `optimum-cli grasprune benchmark`, by group: words for `argparse` alone.

What they mean, and their defaults, stand in `optimum_grasprune.serving.asked`, which is not imported for --help.
"""

from __future__ import annotations

from typing import Any

Words = dict[str, Any]
"""Arguments of `add_argument`."""


def _one(metavar: str, text: str, **others: Any) -> Words:
    return {"metavar": metavar, "help": text, **others}


def _many(metavar: str, text: str) -> Words:
    return _one(metavar, text, nargs="+", action="extend")


def _switch(text: str) -> Words:
    return {"action": "store_true", "help": text}


OPTIONS: dict[str, dict[str, Words]] = {
    "Required arguments": {
        "--dense": _one("MODEL", "the dense model: folder or hub name", required=True),
        "--pruned": _one(
            "[NAME=]MODEL",
            "a checkpoint to measure beside it; may be given several times",
            required=True,
            action="append",
        ),
        "output": _one("OUTPUT", "folder for results, plots and logs", nargs="?"),
    },
    "Workload": {
        "--mode": _one(
            "MODE",
            "serve: vllm serve; long-context: the same with more sequences than the dense KV cache holds; "
            "offline: vllm bench throughput and latency; generate: transformers alone. serve by default",
        ),
        "--concurrency": _many(
            "N", "requests at once, of generate and latency sequences in a batch; 1 4 16 by default"
        ),
        "--lengths": _many(
            "PROMPT:OUTPUT",
            "tokens of a random prompt and tokens to generate; 128:64 512:32 by default, as far as the models read so "
            "many",
        ),
        "--prompts": _one("FILE", 'also prompts of a jsonl file, a "prompt" on every line'),
        "--output-len": _one("N", "tokens to generate for each of them; 128 by default"),
        "--num-prompts": _one("N", "requests at each point; by default 8 for each concurrent one, at least 16"),
        "--repetitions": _one("N", "of everything, interleaved; 3 by default"),
    },
    "Engine": {
        "--engine": _one("NAME", "what runs the checkpoints: vllm by default, or the first that has the mode"),
        "--kv-cache-memory": _one(
            "GIB",
            "memory of every checkpoint's KV cache, fractions too; by default what vLLM finds on a GPU, 1 on a CPU, "
            "and in long-context what the pruned checkpoints need",
        ),
        "--serve-flags": _one("FLAGS", "more flags for vLLM, in one word: --serve-flags='--enforce-eager'"),
        "--together": _switch(
            "keep all servers up, or all models loaded, and interleave at every point: fewer starts, more memory"
        ),
        "--port": _one("N", "port of the server; a free one by default"),
        "--start-timeout": _one("SECONDS", "time that a server may take to be ready; 1800 by default"),
    },
    "Optional arguments": {
        "--seed": _one("N", "seed of the requests; 0 by default"),
        "--no-plot": _switch("write tables only; needs no matplotlib"),
        "--dtype": _one("DTYPE", "auto, float32, bfloat16 or float16"),
        "--device": _one("DEVICE", "torch device, as in cpu or cuda:0; auto by default"),
    },
}
