"""What the loss of a sequence and its gradient by the logits cost, all rows at a time and a few, on one CPU thread.

    python benchmarks/loss.py [--tokens 512] [--vocabulary 49152] [--dtype bfloat16] [--repeats 9]

Random logits; seconds are of the processor. It ends with exit code 1 where the gradients are not the same to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from optimum_grasprune.execution import loss


def measured(work: Callable[[], Tensor], logits_BSV: Tensor, repeats: int) -> tuple[float, Tensor]:
    """Median seconds of a loss with its gradient, and the gradient, after one run that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.thread_time()
        (gradient_BSV,) = torch.autograd.grad(work(), logits_BSV)
        seconds.append(time.thread_time() - begun)
    return statistics.median(seconds[1:]), gradient_BSV


def main() -> None:
    """Measure both losses in both ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, dtype = (1, args.tokens, args.vocabulary), getattr(torch, args.dtype)
    logits_BSV, teacher_BSV = (torch.randn(shape).mul(3).to(dtype).requires_grad_() for _ in range(2))
    tokens_BS = torch.randint(args.vocabulary, shape[:2])
    losses: dict[str, Callable[[], Tensor]] = {
        "next token": lambda: loss.next_token_loss(logits_BSV, tokens_BS),
        "with a teacher": lambda: loss.distillation_loss(logits_BSV, tokens_BS, teacher_BSV.detach(), 0.25),
    }
    few = loss.IN_CACHE
    same = True
    print("| loss | all rows at a time, ms | a few, ms | ratio |\n|---|---:|---:|---:|")
    for name, work in losses.items():
        loss.IN_CACHE = args.tokens * args.vocabulary
        whole, expected_BSV = measured(work, logits_BSV, args.repeats)
        loss.IN_CACHE = few
        by_rows, found_BSV = measured(work, logits_BSV, args.repeats)
        same = same and torch.equal(found_BSV, expected_BSV)
        print(f"| {name} | {whole * 1e3:.0f} | {by_rows * 1e3:.0f} | {by_rows / whole:.2f} |")
    if not same:
        raise SystemExit("the gradients differ")


if __name__ == "__main__":
    main()
