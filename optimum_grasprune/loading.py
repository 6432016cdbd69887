"""Reading models and tokenizers strictly: a tensor that is missing, unexpected or of the wrong shape is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.import_utils import is_accelerate_available

from .admission import check_finite
from .errors import CheckpointError, ModelError, OptionError, first_line
from .families import FAMILIES, family_of, kind_of, unsupported
from .generation import repaired_settings
from .model_files import check_source, check_stored, misshapen, optional_file, quantization_of
from .reading import json_in

_MOST_LAYERS = 10_000
CALIBRATION_LENGTH = 512
"""Tokens in a calibration sequence, unless the model reads too few or another number is asked for."""


def load_config(source: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model folder or Hub name; ModelError when it is missing or no causal language model.

    revision: branch, tag or commit of a Hub repository; a folder has none, and it is ignored there.
    """
    check_source(source, revision)
    _check_file(source, revision)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # transformers has many types for a bad value, and no common base for them
        _refuse_unknown_type(source, trust_remote_code, revision)
        raise ModelError(f"the configuration of {source} cannot be read: {first_line(error)}") from None
    _require_causal(source, config)
    return config


def require_unquantised(source: str, config: PreTrainedConfig) -> None:
    """Raise ModelError for a checkpoint that cannot be pruned because its weights are quantised."""
    if (how := quantization_of(config)) is not None:
        raise ModelError(f"{source} is quantised ({how}): prune the unquantised model, and quantise the pruned one")


def load_model(
    source: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, int] | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal language model of a supported family, every tensor of it read from the checkpoint, and finite.

    device_map: where accelerate puts which part of it, in place of `device`.  max_memory: bytes that it may take there.
    Raises ModelError, UnsupportedFamilyError, OptionError or CheckpointError.
    """
    config = load_config(source, trust_remote_code=trust_remote_code, revision=revision)
    family_of(config)
    placed = _placement(config, device, device_map, max_memory)
    if attn_implementation is not None:
        _check_attention(config, attn_implementation)
        placed["attn_implementation"] = attn_implementation
    if (settings := repaired_settings(source, revision)) is not None:
        placed["generation_config"] = settings
    unpacked = _is_unpacked(config)
    if not unpacked:
        check_stored(source, shapes_of(empty_model(config)), revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it is not: without it the error names no tensor
            **placed,
        )
    except Exception as error:  # transformers, safetensors and the file system each have their own types for a bad file
        raise CheckpointError(f"the weights of {source} cannot be read: {first_line(error)}") from None
    model, info = loaded
    refuse_damage(source, info)
    if device_map is None and not unpacked:
        model = model.to(resolve_device(device))
    check_finite(model, source)
    return model.eval()


def load_tokenizer(
    source: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub name; ModelError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
        tokenizer("a", verbose=False)  # some of what its files say wrongly shows only here
        return tokenizer
    except Exception as error:  # tokenizers raises a bare Exception on malformed files
        raise ModelError(f"the tokenizer of {source} cannot be read: {first_line(error)}") from None


def resolve_device(device: str) -> torch.device:
    """The torch device of an option value; OptionError when it does not exist here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise OptionError("device", device, first_line(error)) from None
    if target.type == "meta":
        raise OptionError("device", device, "holds shapes and no numbers, so that nothing is computed there")
    return target


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration without memory for its weights, to read shapes off; ModelError when there is none.

    Of a quantised model it is the one that was quantised.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what a constructor makes of a value that it cannot use
        what = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"no model can be built from the configuration of {config.name_or_path}: {what}") from None


def shapes_of(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a model, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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
    Raises OptionError when a model reads fewer tokens at once than asked, ModelError when it reads too few at all.
    """
    if asked is not None:
        check_length(config, "seq_len", asked)
        return asked
    longest = _usable_context("the model", config)
    return CALIBRATION_LENGTH if longest is None else min(CALIBRATION_LENGTH, max(2, longest // 2))


def common_window(models: Mapping[str, PreTrainedConfig], asked: int | None, default: int, option: str) -> int:
    """Tokens in an evaluation window that all models read: as asked, or the default, or what the shortest one reads.

    models: by the names that messages use.  option: the one that asks.  Raises OptionError when a model reads fewer
    tokens at once than asked, ModelError when one reads too few to predict any.
    """
    if asked is not None:
        for name, config in models.items():
            check_length(config, option, asked, name)
        return asked
    return min(default, *(_usable_context(name, config) or default for name, config in models.items()))


def _usable_context(name: str, config: PreTrainedConfig) -> int | None:
    longest = longest_context(config)
    if longest is not None and longest < 2:
        raise ModelError(f"{name} reads at most {longest} tokens, too few to predict one from another")
    return longest


def count_parameters(model: PreTrainedModel) -> int:
    """All parameters, tied ones once; of a quantised model as many as it had before."""
    if quantization_of(model.config) is not None:
        model = empty_model(model.config)
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters in the precision that they are in, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _placement(config: PreTrainedConfig, device: str, device_map: Any, max_memory: Any) -> dict[str, Any]:
    """Options of `from_pretrained` that say where the weights go."""
    if device_map is not None:
        if device != "auto":
            raise OptionError("device", device, "has no meaning beside device_map")
        if not is_accelerate_available():
            raise OptionError("device_map", device_map, "needs accelerate: pip install accelerate")
        return {"device_map": device_map, "max_memory": None if max_memory is None else dict(max_memory)}
    target = resolve_device(device)
    # A quantised model may not be moved: its loader packs the weights for the device that they are on.
    return {"device_map": {"": target}} if _is_unpacked(config) and target.type != "cpu" else {}


def _is_unpacked(config: PreTrainedConfig) -> bool:
    """Whether transformers knows how the weights are quantised; else it takes packed ones for numbers."""
    values = getattr(config, "quantization_config", None)
    if not values:
        return False
    try:
        return AutoHfQuantizer.supports_quant_method(values)
    except ValueError:  # it names no method, and loading says so
        return True


def _check_attention(config: PreTrainedConfig, implementation: str) -> None:
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    except Exception as error:  # ValueError where it is unknown, ImportError where its package is missing, …
        raise OptionError("attn_implementation", implementation, first_line(error)) from None


def refuse_damage(source: str, info: Mapping[str, Any]) -> None:
    """Raise CheckpointError where tensors are missing, unexpected or misshapen. info: as transformers gives it."""
    if mismatched := sorted(info.get("mismatched_keys") or ()):
        name, found, wanted = mismatched[0]
        raise CheckpointError(misshapen(source, name, tuple(found), tuple(wanted), len(mismatched)))
    for problem in ("missing_keys", "unexpected_keys", "error_msgs"):
        if names := sorted(info.get(problem) or ()):
            what = problem.replace("_", " ")
            raise CheckpointError(f"the weights of {source} are damaged: {what}: {names[0]}{_and_more(names)}")


def _and_more(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _refuse_unknown_type(source: str, trust_remote_code: bool, revision: str | None) -> None:
    """Raise UnsupportedFamilyError where transformers does not know the model's type."""
    try:
        values, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except Exception:  # there is nothing to say of the type, and the caller has the error
        return
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if isinstance(model_type, str) and model_type not in CONFIG_MAPPING and not trust_remote_code:
        raise unsupported(model_type)


def _check_file(source: str, revision: str | None) -> None:
    """Raise ModelError for values of other kinds than all that looks at them takes them for, and layers without end.

    transformers checks some of them, goes through all layers before, and keeps others as they stand in the file.
    """
    file = optional_file(source, "config.json", revision)
    try:
        values = None if file is None else json_in(file)
    except (OSError, ValueError):  # which transformers says
        return
    if not isinstance(values, dict):
        return
    for name, (is_right, what) in _KINDS.items():
        if (value := values.get(name)) is not None and not is_right(value):
            raise ModelError(
                f"the configuration of {source} cannot be read: {name} should be {what}, not {value!r:.60}"
            )
    layers = values.get("num_hidden_layers")
    if isinstance(layers, int | float) and layers > _MOST_LAYERS:
        raise ModelError(f"the configuration of {source} asks for more than {_MOST_LAYERS:,} layers")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_dtype(value: object) -> bool:
    """Of a model of more than text, each part may have its own."""
    return _is_object(value) or (isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype))


_NUMBER, _NAMES = (_is_number, "a whole number"), (_are_names, "a list of names")
_OBJECT, _DTYPE = (_is_object, "an object"), (_is_dtype, "the name of a data type")
_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "sliding_window", "head_dim"), _NUMBER),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), _NUMBER),
    "num_experts_per_tok": _NUMBER,
    **dict.fromkeys(("architectures", "layer_types", "layers_block_type"), _NAMES),
    **dict.fromkeys(("quantization_config", "compression_config"), _OBJECT),
    **dict.fromkeys(("dtype", "torch_dtype"), _DTYPE),
}
"""Fields of a configuration that are looked at before a model is built -> their kind, and what it is called."""


def _require_causal(source: str, config: Any) -> None:
    """By its architecture: `model_type` decides which class loads, so that an old name of a causal one may stay."""
    architectures = config.architectures or []
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _names(names)}
    known |= {family.pruned.causal_lm.__name__ for family in FAMILIES.values()}
    if architectures and not any(name in known or name.endswith("ForCausalLM") for name in architectures):
        if (kind := kind_of(config)) is not None:
            raise unsupported(config.model_type, kind)
        raise ModelError(f"{source} is not a causal language model: its architecture is {', '.join(architectures)}")


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
