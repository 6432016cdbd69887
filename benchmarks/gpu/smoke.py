"""Kernel smoke test: do products, vLLM's kernels and the engine itself cope with widths that pruning leaves?

    python benchmarks/gpu/smoke.py --output benchmarks/results/gpu
    python benchmarks/gpu/smoke.py --shape tiny --device cpu --output out

1. The rate of the FFN's first product at round and at odd widths: what alignment is worth on this device.
2. vLLM's normalisation and activation kernels against torch, at the same widths.
3. A tiny model with different widths in every layer, dense beside pruned, in the engine: log-probabilities of a
   prompt against those that transformers computes in fp32 on the CPU.

Exit code 1 when one of them differs by more than bf16 explains.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import describe, matrix_rate, parser, product_seconds, save
from torch.nn import functional
from transformers import AutoModelForCausalLM

from optimum_grasprune.dummy import SHAPES

MAKE_DUMMY = Path(__file__).parents[2] / "examples" / "make_dummy.py"
TOKENS = 2048
"""Tokens in a product: a prefill step's."""
TOLERANCES = {"kernels": 0.02, "engine": 0.1}
"""Largest relative error of one kernel, which rounds to the eight bits of bf16 a few times, and of a whole model."""


def widths_to_try(ffn: int) -> list[int]:
    """About half of the FFN: an odd width, then multiples of 4, of 8, of 64 and of 128, each of no larger one of them.

    Eight elements in bf16 are the 16 bytes that GPU kernels load at once.
    """
    base = ffn // 2 // 128 * 128
    return [base - 1, base - 4, base - 8, base - 64, base]


def product_rates(hidden: int, widths: list[int], device: torch.device) -> list[dict[str, float]]:
    """TFLOP/s of x · Wᵀ for the merged gate and up projection, and for the down projection, at each width."""
    rows = []
    for width in widths:
        row: dict[str, float] = {"width": width}
        for name, features, columns in (("up", hidden, 2 * width), ("down", width, hidden)):
            seconds = product_seconds(TOKENS, features, columns, device, torch.bfloat16)
            row[f"{name}_tflops"] = 2 * TOKENS * features * columns / seconds / 1e12
        rows.append(row)
    return rows


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |difference| ÷ (|reference − mean| + deviation): no value counts for less than the usual size."""
    found, reference = found.float().cpu(), reference.float().cpu()
    scale = (reference - reference.mean()).abs() + reference.std()
    return float(((found - reference).abs() / scale).max())


def kernel_errors(hidden: int, widths: list[int], device: torch.device) -> dict[str, float]:
    """The relative error of what vLLM's layers run on this device, at each width."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    run = f"forward_{device.type}"
    errors = {}
    with set_current_vllm_config(VllmConfig()):
        norm, activation = RMSNorm(hidden, eps=1e-5, dtype=torch.bfloat16).to(device), SiluAndMul()
        x = torch.randn(64, hidden, device=device, dtype=torch.bfloat16)
        errors["rms_norm"] = relative_error(getattr(norm, run)(x), functional.rms_norm(x.float(), (hidden,), eps=1e-5))
        for width in widths:
            x = torch.randn(64, 2 * width, device=device, dtype=torch.bfloat16)
            gate, up = x.float().chunk(2, dim=-1)
            errors[f"silu_and_mul {width}"] = relative_error(getattr(activation, run)(x), functional.silu(gate) * up)
    return errors


def prompt_logprobs(llm: Any, tokens: list[int]) -> torch.Tensor:
    """The engine's log-probability of every token of a prompt but the first."""
    from vllm import SamplingParams

    (output,) = llm.generate({"prompt_token_ids": tokens}, SamplingParams(max_tokens=1, prompt_logprobs=0))
    chosen = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
    return torch.tensor([entry[token].logprob for token, entry in chosen])


@torch.no_grad()
def reference_logprobs(checkpoint: Path, tokens: list[int]) -> torch.Tensor:
    """The same from transformers, in fp32 on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    logprobs = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]


def engine_errors(seed: int) -> dict[str, float]:
    """Relative errors of the engine on a tiny model, dense and pruned to odd widths."""
    # One process: what the engine says stays in order, and it ends when this one does.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, SHAPES["tiny"].vocabulary, (100,), generator=generator).tolist()
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (("dense", []), ("pruned", ["--keep-ratio", "0.5"])):
            checkpoint = Path(folder) / name
            command = [sys.executable, str(MAKE_DUMMY), "--shape", "tiny", *options, str(checkpoint)]
            subprocess.run(command, check=True)
            # Little of the memory: the first engine may still hold its own when the second starts.
            llm = LLM(
                str(checkpoint),
                enforce_eager=True,
                max_model_len=256,
                max_num_seqs=4,
                num_gpu_blocks_override=64,
                gpu_memory_utilization=0.3,
            )
            errors[name] = relative_error(prompt_logprobs(llm, tokens), reference_logprobs(checkpoint, tokens))
            del llm
    return errors


def main() -> None:
    """Run all three, write JSON."""
    options = parser(__doc__)
    options.add_argument("--no-engine", action="store_true", help="leave out vLLM")
    args = options.parse_args()
    torch.manual_seed(args.seed)
    hidden, ffn = SHAPES[args.shape].hidden, SHAPES[args.shape].ffn
    widths = widths_to_try(ffn)
    result: dict[str, Any] = {
        "machine": describe(args.device),
        "shape": args.shape,
        "matrix_tflops": matrix_rate(args.device) / 1e12,
        "products": product_rates(hidden, widths, args.device),
        "errors": {},
        "tolerances": TOLERANCES,
    }
    if not args.no_engine:  # after the rates, since it takes the processor's threads for itself
        result["errors"] = {"kernels": kernel_errors(hidden, widths, args.device), "engine": engine_errors(args.seed)}
    save(result, args.output, "smoke")
    wrong = [
        name for kind, of in result["errors"].items() for name, error in of.items() if not error <= TOLERANCES[kind]
    ]
    if wrong:
        sys.exit(f"differs by more than bf16 explains: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
