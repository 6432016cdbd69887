"""Whether a model in memory computes what its configuration says: pruned models are built from transformers' classes.

A class of its own, a patched forward, an added head would be replaced by the stock code without a word. A model passes
if its modules and tensors have the stock model's names, and every module's `forward` is the stock module's: also a
subclass that overrides something else, or whose code came with a checkpoint of ours.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .dispatched import wraps_own_forward
from .errors import ModelError
from .families import Family, family_of

_RUN_BY = ("forward", "__call__")
_CHANGING_ROTARY = frozenset({"dynamic", "longrope"})
"""Rotary embeddings whose frequencies follow the length of what was read last."""
_ROUNDED = 1e-2
"""What casting a whole model to bfloat16 may change of a frequency."""


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of causal language models of this type: transformers' own, whatever others were registered, or ours."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return family_of(config).pruned.causal_lm if name is None else getattr(transformers, name)


def check_stock(model: PreTrainedModel, family: Family) -> None:
    """Raise ModelError, naming what differs, for a model that is not the stock model of its configuration."""
    stock = _without_weights(model.config)
    if type(model).__module__.startswith("transformers.") and not isinstance(model, type(stock)):
        name = type(model).__name__
        raise ModelError(f"a {name} is not a causal language model: load it with AutoModelForCausalLM.from_pretrained")
    _check_modules(model, stock)
    _check_tensors(model, stock, family)
    _check_buffers(model, stock)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"  # whichever it is, it goes over to the pruned model; this one must not need it
    with torch.device("meta"):
        return stock_class(config)(own)


def _check_modules(model: nn.Module, stock: nn.Module) -> None:
    own, expected = dict(model.named_modules()), dict(stock.named_modules())
    for name, module in own.items():
        if name in expected:
            _check_module(name, module, expected[name])
    for name in own.keys() - expected.keys():
        raise ModelError(f"the model has a module that {type(stock).__name__} has not: {name} ({_name_of(own[name])})")
    for name in expected.keys() - own.keys():
        raise ModelError(f"the model has no module {name} of its own, as {type(stock).__name__} has")


def _check_module(name: str, module: nn.Module, stock: nn.Module) -> None:
    where = f"{name} is" if name else "the model is"
    if module._compiled_call_impl is not None:
        raise ModelError(f"{where} compiled (torch.compile): compile the pruned model instead")
    if not all(_same(getattr(type(module), run), getattr(type(stock), run)) for run in _RUN_BY):
        raise ModelError(
            f"{where} of class {_name_of(module)}, whose forward is not that of {_name_of(stock)}, and the pruned "
            "model would be built from the latter"
        )
    if "forward" in vars(module) and not wraps_own_forward(module):
        raise ModelError(
            f"the forward of {name or 'the model'} has been replaced by {_origin(module.forward)}, which the pruned "
            "model would not have: load the model without it"
        )
    for attribute, value in vars(stock).items():
        # Numbers that a forward multiplies by, as the scale of attention and the epsilon of norms.
        if isinstance(value, float) and (found := getattr(module, attribute, None)) != value:
            raise ModelError(f"{where} not as the configuration says: {attribute} is {found}, not {value}")


def _same(found: Any, expected: Any) -> bool:
    """Whether two functions are one, or the same text in a checkpoint's code and in ours, where nothing is enclosed."""
    if found is expected:
        return True
    if not found.__module__.startswith("transformers_modules.") or not expected.__module__.endswith(".modeling_grasp"):
        return False
    return found.__code__ == expected.__code__ and found.__closure__ is expected.__closure__ is None


def _check_tensors(model: nn.Module, stock: PreTrainedModel, family: Family) -> None:
    """Names of all tensors; shapes of those that no unit runs through, since widths are read off the real shapes."""
    own, expected = (dict(each.named_parameters(remove_duplicate=False)) for each in (model, stock))
    for name in own.keys() - expected.keys():
        raise ModelError(f"the model has a parameter that {type(stock).__name__} has not: {name}")
    for name in expected.keys() - own.keys():
        raise ModelError(f"the model has no parameter {name}, as {type(stock).__name__} has")
    cut = {slot.parameter for block in family.blocks(stock) for slot in block.slots}
    for name, parameter in own.items():
        wanted = tuple(expected[name].shape)
        if tuple(parameter.shape) != wanted and name not in cut:
            raise ModelError(f"{name} has the shape {tuple(parameter.shape)}; the configuration says {wanted}")


def _check_buffers(model: nn.Module, stock: nn.Module) -> None:
    """What is computed from the configuration and stored nowhere: the frequencies of rotary embeddings."""
    for name, module in stock.named_modules():
        types = getattr(module, "rope_type", None)  # one, or one for each kind of layer
        if types is None or {*(types.values() if isinstance(types, dict) else (types,))} & _CHANGING_ROTARY:
            continue
        fresh: Any = type(module)(module.config)
        for buffer in sorted(module._non_persistent_buffers_set):
            found, wanted = model.get_submodule(name).get_buffer(buffer).cpu().float(), fresh.get_buffer(buffer)
            if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=_ROUNDED):
                raise ModelError(f"{name}.{buffer} has other values than the configuration gives, and is not saved")


def _name_of(module: nn.Module) -> str:
    cls = type(module)
    return (
        cls.__name__ if cls.__module__.startswith(("torch.", "transformers.")) else f"{cls.__module__}.{cls.__name__}"
    )


def _origin(function: Any) -> str:
    function = getattr(function, "__func__", function)
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', type(function).__name__)}"
