"""Reading models and tokenizers strictly: a tensor that is missing, unexpected or of the wrong shape is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .errors import CheckpointError, ModelError, OptionError
from .families import family_of
from .modeling import PRUNED_CLASSES

CALIBRATION_LENGTH = 512
"""Tokens in a calibration sequence, unless the model reads too few or another number is asked for."""


def load_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model folder or hub name; ModelError when it is missing or no causal language model."""
    _require_folder(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(f"the configuration of {source} cannot be read: {_first_line(error)}") from None
    _require_causal(source, config)
    return config


def load_model(
    source: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model of a supported family, every tensor of it read from the checkpoint.

    Raises ModelError, UnsupportedFamilyError or CheckpointError.
    """
    config = load_config(source, trust_remote_code=trust_remote_code)
    family_of(config)
    target = resolve_device(device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and the file system each have their own types for a bad file
        raise CheckpointError(f"the weights of {source} cannot be read: {_first_line(error)}") from None
    model, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            names = sorted(str(name) for name in info[problem])
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"the weights of {source} are damaged: {problem.replace('_', ' ')}: {names[0]}{more}")
    return model.to(target).eval()


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name; ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises a bare Exception on malformed files
        raise ModelError(f"the tokenizer of {source} cannot be read: {_first_line(error)}") from None


def resolve_device(device: str) -> torch.device:
    """The torch device of an option value; OptionError when it does not exist here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", device, _first_line(error)) from None
    return target


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration without memory for its weights, to read shapes off."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def longest_context(config: PreTrainedConfig) -> int | None:
    """Tokens that a model reads at most; None where its configuration sets no limit."""
    return getattr(config, "max_position_embeddings", None)


def check_length(config: PreTrainedConfig, option: str, length: int, model: str = "the model") -> None:
    """Raise OptionError when a model reads fewer tokens at once than the option asks for; model: what it is called."""
    longest = longest_context(config)
    if longest is not None and length > longest:
        raise OptionError(option, length, f"{model} reads at most {longest} tokens")


def calibration_length(config: PreTrainedConfig, asked: int | None) -> int:
    """Tokens in a calibration sequence: as asked, or 512, or half of what the model reads where that is less.

    Half, since a model need not be good near the end of its context: few of the texts it learnt from reach that far.
    Raises OptionError when a model reads fewer tokens at once than asked.
    """
    if asked is not None:
        check_length(config, "seq_len", asked)
        return asked
    longest = longest_context(config)
    return CALIBRATION_LENGTH if longest is None else min(CALIBRATION_LENGTH, longest // 2)


def count_parameters(model: PreTrainedModel) -> int:
    """All parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _require_folder(source: str) -> None:
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or (source.count("/") != 1 and "/" in source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the model folder {source} has no config.json")
    elif path.exists() or looks_local:
        raise ModelError(f"the model folder {source} does not exist")


def _require_causal(source: str, config: Any) -> None:
    architectures = config.architectures or []
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _names(names)}
    known |= {causal_class.__name__ for _, _, causal_class in PRUNED_CLASSES.values()}
    if architectures and not known & set(architectures):
        raise ModelError(f"{source} is not a causal language model: its architecture is {', '.join(architectures)}")


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
