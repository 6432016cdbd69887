"""Reading a model whose decoder layers stay in its files: all else is in memory, each layer comes when it is run.

Or they are held in place of the files by something that has less than all of them in memory here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from .admission import check_tensor
from .errors import ModelError
from .families import Family, family_of
from .generation import repaired_settings
from .layer_store import LayerStore, Stored, attach_store
from .loading import empty_model, load_config, refuse_damage, require_unquantised, resolve_device, shapes_of
from .model_files import check_stored
from .stored_tensors import StoredTensor, stored_tensors

Held = Callable[[Mapping[str, StoredTensor], Mapping[str, torch.dtype], torch.device], Mapping[str, Stored]]
"""From the layers' tensors in the files, the dtypes that they are wanted in, and the device, to what they are read
from while the model runs."""


def streamed_model(
    source: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    held: Held | None = None,
) -> PreTrainedModel:
    """A causal language model of a supported family whose decoder layers are read when they are run.

    Their parameters are on the meta device until then; `layer_store.store_of` gives what brings them into memory, and
    `StreamedModel` runs the model. Weights are checked as by `load_model`, those of layers as they are read.
    held: what several processes hold the layers by together, each of which then has to read whatever another does;
    None to read them from their files.
    Raises ModelError, UnsupportedFamilyError, OptionError or CheckpointError.
    """
    config = load_config(source, trust_remote_code=trust_remote_code, revision=revision)
    family = family_of(config)
    require_unquantised(source, config)
    target = resolve_device(device)
    stored = _stored(source, revision)
    config.dtype = _dtype(dtype, config.dtype, stored)
    model = empty_model(config)
    check_stored(source, shapes_of(model), revision)
    tied = _tied(model)
    _check_names(source, model, stored, tied)
    _fill_buffers(model, target)
    _fill_outside(source, model, family, stored, tied, target)
    layers: Mapping[str, Stored] = stored
    if held is not None:
        dtypes = {name: part.dtype for name, part in model.named_parameters() if name.startswith(f"{family.layers}.")}
        layers = held({name: stored[name] for name in dtypes}, dtypes, target)
    check = partial(check_tensor, source)
    attach_store(model, LayerStore(model, family.layers, layers, target, check, in_step=held is not None))
    if model.can_generate():
        model.generation_config = repaired_settings(source, revision) or _generation(source, revision)
    return model.eval()


def _stored(source: str, revision: str | None) -> dict[str, StoredTensor]:
    stored = stored_tensors(source, revision)
    if not stored:
        raise ModelError(
            f"{source} has no weights in safetensors files, which layers are read from: save the model once with "
            "save_pretrained, or run it whole"
        )
    return stored


def _dtype(asked: str | torch.dtype, own: Any, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The one asked for; for "auto" the configuration's, or that of the first tensor that there is."""
    if asked == "auto":
        asked = own or next(iter(stored.values())).dtype
    return getattr(torch, asked) if isinstance(asked, str) else asked


def _tied(model: PreTrainedModel) -> list[list[str]]:
    """Names of all parameters; those that are one parameter of the model stand together."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _check_names(
    source: str, model: PreTrainedModel, stored: Mapping[str, StoredTensor], tied: Sequence[Sequence[str]]
) -> None:
    """Raise ModelError for tensors under other names than the model's, CheckpointError where some are missing."""
    known, ignored = {name for names in tied for name in names}, model._keys_to_ignore_on_load_unexpected or ()
    # What a model works out by itself was once saved with it, as the frequencies of rotary embeddings.
    worked_out = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    strange = (
        name
        for name in stored
        if name not in known
        and name.rpartition(".")[2] not in worked_out
        and not any(re.search(pattern, name) for pattern in ignored)
    )
    if (name := next(strange, None)) is not None:
        raise ModelError(
            f"{source} has a tensor {name}, which is none of {type(model).__name__}'s, so that its layers cannot be "
            "read one by one: save the model once with save_pretrained, or run it whole"
        )
    refuse_damage(source, {"missing_keys": [names[0] for names in tied if not any(name in stored for name in names)]})


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Work out what is stored nowhere, as frequencies of rotary embeddings, as transformers does after it has read."""
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = torch.empty_like(buffer, device="cpu")
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(device)


def _fill_outside(
    source: str,
    model: PreTrainedModel,
    family: Family,
    stored: Mapping[str, StoredTensor],
    tied: Sequence[Sequence[str]],
    device: torch.device,
) -> None:
    """Read all parameters that are in no decoder layer."""
    for names in tied:
        if names[0].startswith(f"{family.layers}."):
            continue
        first, *others = (name for name in names if name in stored)
        weight = stored[first].read()
        for other in others:
            if not torch.equal(weight, stored[other].read()):
                raise ModelError(
                    f"{first} and {other} differ in {source}, and its configuration says that they are one"
                )
        dtype = model.get_parameter(first).dtype
        parameter = nn.Parameter(weight.to(device, dtype))
        check_tensor(source, first, parameter)
        for path, _, leaf in (name.rpartition(".") for name in names):
            model.get_submodule(path)._parameters[leaf] = parameter


def _generation(source: str, revision: str | None) -> GenerationConfig:
    """As transformers reads it: from a file of its own, or out of the configuration, where early models have it."""
    read: Any = GenerationConfig.from_pretrained
    try:
        return read(source, revision=revision)
    except OSError:
        return read(source, config_file_name="config.json", revision=revision, _from_model_config=True)
