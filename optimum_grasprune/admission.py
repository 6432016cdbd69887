"""What may be pruned: one plain causal language model, wherever accelerate keeps it. All else is refused at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .dispatched import hooks_of, is_dispatched, kept_nowhere, out_of_reach, tensor_at
from .errors import ModelError
from .families import family_of
from .layer_store import store_of
from .model_files import quantization_of
from .stock import check_stock

_MERGE = "merge the adapter first, by merge_and_unload of the PeftModel"
_WRAPPERS: Mapping[str, str] = {
    "OptimizedModule": "compiled (torch.compile): give model._orig_mod",
    "DataParallel": "wrapped in DataParallel: give model.module",
    "DistributedDataParallel": "wrapped in DistributedDataParallel: give model.module",
    "FullyShardedDataParallel": "wrapped in FullyShardedDataParallel: give the whole model, without it",
    "DeepSpeedEngine": "wrapped by DeepSpeed: give model.module, with its weights gathered",
}


def check_model(model: Any) -> None:
    """Raise ModelError or UnsupportedFamilyError, in one line that says what to do, for what cannot be pruned.

    Reads every weight once; nothing is computed with the model. Weights of layers that stay in the files of a streamed
    model are looked at when they are read.
    """
    _check_type(model)
    _check_adapters(model)
    _check_quantization(model)
    _check_place(model)
    _check_trainable(model)
    check_stock(model, family_of(model.config))
    check_finite(model, "the model")


def check_finite(model: nn.Module, name: str) -> None:
    """Raise ModelError for the first tensor with a NaN or an infinity. name: what messages call the model."""
    dispatched = is_dispatched(model)
    for path, parameter in model.named_parameters():
        tensor = tensor_at(model, path) if parameter.is_meta and dispatched else parameter
        if not tensor.is_meta and _is_plain(tensor):
            check_tensor(name, path, tensor)


def check_tensor(name: str, path: str, tensor: Tensor) -> None:
    """Raise ModelError for a tensor with a NaN or an infinity. name: of its model, in messages.  path: its own."""
    if not tensor.numel():
        return
    low, high = torch.aminmax(tensor.detach())
    if not (low.isfinite() and high.isfinite()):
        overflow = tensor.dtype == torch.float16 and not low.isnan()
        hint = ": a value that float16 cannot hold; bfloat16 and float32 can" if overflow else ""
        raise ModelError(f"{name} has weights that are not finite, in {path}{hint}")


def _check_type(model: Any) -> None:
    if isinstance(model, PreTrainedTokenizerBase):
        raise ModelError("a tokenizer stands where the model belongs: prune_model(model, tokenizer)")
    if not isinstance(model, nn.Module):
        what = repr(model) if isinstance(model, (str, type(None))) else f"an object of class {type(model).__name__}"
        raise ModelError(f"{what} is no model: load one with AutoModelForCausalLM.from_pretrained")
    if _is_peft(model):
        merge = _MERGE if hasattr(model, "merge_and_unload") else "it cannot be merged; prune the model without it"
        raise ModelError(f"the model is a {type(model).__name__}, a model with an adapter: {merge}")
    for cls in type(model).__mro__:
        if (advice := _WRAPPERS.get(cls.__name__)) is not None:
            raise ModelError(f"the model is {advice}")
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"a {type(model).__name__} is no causal language model of transformers")


def _check_adapters(model: PreTrainedModel) -> None:
    # What `model.load_adapter` and peft's `inject_adapter_in_model` leave in the modules themselves.
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the model has adapters (load_adapter): load them with PeftModel.from_pretrained(model, adapter) instead, "
            "and merge them first: merge_and_unload()"
        )
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise ModelError(f"the model has an adapter in {name} ({type(module).__name__}): {_MERGE}")


def _is_peft(model: nn.Module) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "base_model") and not isinstance(model, PreTrainedModel)


def _check_quantization(model: PreTrainedModel) -> None:
    advice = "prune the unquantised model"
    if (how := quantization_of(model.config)) is not None:
        raise ModelError(f"the model is quantised ({how}): {advice}")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not getattr(quantizer.quantization_config, "dequantize", False):
        raise ModelError(f"the model is quantised ({quantization_of(quantizer)}): {advice}")
    for name, tensor in model.named_parameters():
        if _is_distributed(tensor):
            raise ModelError(f"{name} is sharded over several processes: give the whole model")
        if not _is_plain(tensor):
            raise ModelError(f"the model is quantised ({name}: {type(tensor).__name__}, {tensor.dtype}): {advice}")


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor of floating-point numbers, and neither a packed one nor of a subclass that unpacks it."""
    if type(tensor) not in (Tensor, nn.Parameter) or type(tensor.data) is not Tensor:
        return False
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize >= 2


def _is_distributed(tensor: Tensor) -> bool:
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def _check_place(model: PreTrainedModel) -> None:
    """A model that accelerate has dispatched is run as it is, where its hooks bring all of it to where it computes."""
    dispatched = is_dispatched(model)
    if any(hasattr(module, "_hf_hook") and not any(hooks_of(module)) for module in model.modules()):
        raise ModelError("the model is moved about by accelerate's hooks: load it whole, or with device_map")
    devices = _names(str(device) for device in getattr(model, "hf_device_map", {}).values())
    if store_of(model) is None and (kept_nowhere(model) is not None or ("disk" in devices and not dispatched)):
        raise ModelError(
            "the model's weights are not in memory (on the meta device, or offloaded by other means than device_map): "
            "load it whole, or with device_map"
        )
    places = _names(str(tensor.device) for tensor in model.parameters() if not tensor.is_meta)
    if len(places) > 1 or len(devices) > 1:
        if not dispatched:
            spread = ", ".join(places if len(places) > 1 else devices)
            raise ModelError(f"the model is spread over {spread}: load it on one device, or with device_map")
        if (name := out_of_reach(model)) is not None:
            raise ModelError(f"nothing brings the inputs of {name} to where its weights are: load it with device_map")


def _check_trainable(model: PreTrainedModel) -> None:
    """Autograd records nothing of tensors that were made in inference mode."""
    made_for_inference = (name for name, part in model.named_parameters() if part.is_inference())
    if (name := next(made_for_inference, None)) is not None:
        raise ModelError(
            f"the model was made under torch.inference_mode, so that nothing can be trained on it (as {name} shows); "
            "load it outside of that"
        )


def _names(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
