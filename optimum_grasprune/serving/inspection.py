"""A checkpoint as its configuration tells: widths and sizes layer by layer, and what fits beside it on a GPU.

No weights are loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import JsonValue
from transformers import PreTrainedConfig

from ..config import DeploymentOptions
from ..errors import OptionError
from ..families import family_of
from ..families.shape import ModelShape, layer_shape, model_shape, splits, tensor_parallel_sizes
from ..loading import check_length, empty_model, longest_context
from ..model_files import quantization_of
from ..record import Record
from ..report import LayerShares
from ..surgery import dense_config
from ..units import FAST_MULTIPLE
from .fit import GIB, Fit, fit


@dataclass(frozen=True)
class LayerRow:
    """A layer: its widths, the parameters of its units, and what a token takes of its KV cache."""

    layer: int
    ffn_channels: int
    kv_heads: int
    parameters: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Inspection:
    """A checkpoint. dtype: of its weights.  other_parameters: those of no unit, by their place.

    quantization: how its weights are quantised, None for plain ones.  ffn_multiple_of: what divides every FFN width.
    windows: tokens that each layer sees at once, None for all.
    """

    model: str
    family: str
    parameters: int
    prunable_parameters: int
    other_parameters: dict[str, int]
    quantization: str | None
    kv_bytes_per_token: int
    ffn_multiple_of: int
    tensor_parallel_sizes: tuple[int, ...]
    layers: tuple[LayerRow, ...]
    windows: tuple[int | None, ...]
    dtype: str

    def to_dict(self) -> dict[str, JsonValue]:
        """What the result says of it, as JSON types."""
        facts = asdict(self)
        del facts["dtype"]
        lists = ("tensor_parallel_sizes", "layers", "windows")
        return {**facts, **{name: list(facts[name]) for name in lists}}

    def rows(self) -> list[tuple[str, ...]]:
        """The table: every parameter of the model is in one row."""
        layers = [asdict(layer) for layer in self.layers]
        sums = {name: f"{sum(layer[name] for layer in layers):,}" for name in layers[0]}
        return [
            *(tuple(f"{value:,}" for value in layer.values()) for layer in layers),
            *((name.replace("_", " "), "", "", f"{value:,}", "") for name, value in self.other_parameters.items()),
            tuple({**sums, "layer": "all", "parameters": f"{self.parameters:,}"}.values()),
        ]

    def footer(self) -> str:
        """What stands below the table."""
        lines = (
            f"{self.parameters:,} parameters in all, {self.prunable_parameters:,} of them prunable; {self.dtype}",
            f"every FFN width is a multiple of {self.ffn_multiple_of}"
            f"{f' (GPUs want {FAST_MULTIPLE})' if self.ffn_multiple_of % FAST_MULTIPLE else ''}; "
            f"tensor-parallel sizes: {', '.join(map(str, self.tensor_parallel_sizes))}",
            *(
                f"{count} of {len(self.windows)} layers see {window:,} tokens at once"
                for window, count in Counter(self.windows).items()
                if window is not None
            ),
            *([f"the weights are quantised: {self.quantization}"] if self.quantization else []),
        )
        return "\n".join(lines)


COLUMNS = ("layer", "FFN channels", "KV heads", "parameters", "KV bytes per token")
"""Of the rows of an inspection."""


def inspection(name: str, config: PreTrainedConfig) -> Inspection:
    """What a configuration tells. name: of the model."""
    family, dtype = family_of(config), _dtype(config)
    shape = model_shape(empty_model(config), family)
    prunable = sum(map(shape.layer_parameters, shape.layers))
    return Inspection(
        model=name,
        family=family.name,
        parameters=shape.parameters,
        prunable_parameters=prunable,
        other_parameters=_parameters_beside_layers(shape),
        quantization=quantization_of(config),
        kv_bytes_per_token=shape.kv_width * dtype.itemsize,
        ffn_multiple_of=math.gcd(*(layer.ffn_channels for layer in shape.layers)),
        tensor_parallel_sizes=tuple(tensor_parallel_sizes(shape.layers)),
        layers=tuple(
            LayerRow(
                index,
                layer.ffn_channels,
                layer.kv_heads,
                shape.layer_parameters(layer),
                shape.kv_elements(layer) * dtype.itemsize,
            )
            for index, layer in enumerate(shape.layers)
        ),
        windows=tuple(layer.window for layer in shape.layers),
        dtype=str(dtype),
    )


def shares_kept(config: PreTrainedConfig, record: Record | None = None) -> list[LayerShares]:
    """What each layer keeps of the dense model's, as the configuration tells: all of it where nothing was cut.

    record: of the checkpoint; where whole layers were dropped, it alone knows of them.
    """
    if record is not None and record.plan is not None and record.plan.whole_layers:
        stay = {group.layer for group in record.plan.groups if group.kept}
        return [LayerShares(float(layer in stay), float(layer in stay)) for layer in range(record.plan.num_layers)]
    family = family_of(config)
    layers = model_shape(empty_model(config), family).layers
    if (dense := dense_config(config)) is None:
        return [LayerShares(1.0, 1.0)] * len(layers)
    whole = layer_shape(dense, family)
    return [LayerShares(own.ffn_channels / whole.ffn_channels, own.kv_heads / whole.kv_heads) for own in layers]


def _parameters_beside_layers(shape: ModelShape) -> dict[str, int]:
    """The parameters that no unit runs through, by their place; those places that have any."""
    places = {"embedding": shape.embedding, "head": 0 if shape.tied else shape.head}
    places |= {"positions": shape.positions, "projections_of_embeddings": shape.projections}
    places["norms_and_biases"] = shape.replicated - shape.positions - shape.projections
    return {name: count for name, count in places.items() if count}


@dataclass(frozen=True)
class Deployment:
    """What fits beside a model, and beside the dense one if there is one."""

    options: DeploymentOptions
    model: Fit
    dense: Fit | None

    def to_dict(self) -> dict[str, object]:
        """What the result says of it, as JSON types."""
        dense = None if self.dense is None else self.dense.to_dict()
        return {**self.options.to_dict(), "dense": dense, "model": self.model.to_dict()}

    def title(self) -> str:
        """What stands above the table."""
        gpus = self.options.tensor_parallel_size
        return f"What fits on {'a GPU' if gpus == 1 else f'each of {gpus} GPUs'} of {_gib(self.options.gpu_memory)}"

    def columns(self) -> tuple[str, ...]:
        """Of the rows."""
        return ("", "this model") if self.dense is None else ("", "dense", "pruned", "pruned ÷ dense")

    def rows(self) -> list[tuple[str, ...]]:
        """The table."""
        quantities: tuple[tuple[str, str, Callable[[int], str]], ...] = (
            ("for the engine", "granted", _gib),
            ("weights", "weights", _gib),
            ("activations and runtime", "overhead", _gib),
            ("left for the KV cache", "kv_memory", _gib),
            ("KV bytes per token", "kv_bytes_per_token", "{:,}".format),
            ("KV-cache tokens", "kv_tokens", "{:,}".format),
            (f"sequences of {self.model.context:,} tokens", "sequences", "{:,}".format),
        )
        fits = [self.model] if self.dense is None else [self.dense, self.model]
        rows = []
        for label, name, shown in quantities:
            values = [getattr(fit, name) for fit in fits]
            rows.append((label, *map(shown, values), *_ratio(values)))
        return rows

    def footer(self) -> str:
        """What stands below the table."""
        overhead = (
            "activations and runtime are an allowance for vLLM's defaults, not a measurement"
            if self.options.overhead is None
            else "activations and runtime as given"
        )
        return f"{self.options.gpu_memory_utilization:g} of the memory is the engine's; {overhead}"


def deployment_options(config: PreTrainedConfig, given: Mapping[str, Any]) -> DeploymentOptions:
    """What a model is to be served on, by the options that were given; the default context is cut to what it reads.

    Raises OptionError when it reads fewer tokens than asked, or is quantised.
    """
    options = DeploymentOptions(**given)
    if (how := quantization_of(config)) is not None:
        reason = f"the model is quantised ({how}); what fits is known of plain weights only"
        raise OptionError("gpu_memory", given["gpu_memory"], reason)
    if "context" in given:
        check_length(config, "context", options.context)
        return options
    longest = longest_context(config) or options.context
    return options.model_copy(update={"context": min(options.context, longest)})


def deployment(
    config: PreTrainedConfig, name: str, options: DeploymentOptions, dense: tuple[PreTrainedConfig, str] | None = None
) -> Deployment:
    """What fits beside a model. name: of it.  dense: another to compare with; by default what it was cut from."""
    if dense is None and (cut_from := dense_config(config)) is not None:
        dense = cut_from, "the dense model"
    own = fit_of(config, options, name)
    return Deployment(options, own, None if dense is None else fit_of(dense[0], options, dense[1]))


def fit_of(config: PreTrainedConfig, options: DeploymentOptions, name: str) -> Fit:
    """What each GPU holds of a model; OptionError, naming it, when it cannot be split among so many."""
    shape, size = model_shape(empty_model(config), family_of(config)), options.tensor_parallel_size
    for index, layer in enumerate(shape.layers):
        if not splits(layer, size):
            known = ", ".join(map(str, tensor_parallel_sizes(shape.layers)))
            reason = f"layer {index} of {name} cannot be split so; sizes that split every layer: {known}"
            raise OptionError("tensor_parallel_size", size, reason)
    # vLLM serves fp32 checkpoints in half precision unless it is told otherwise.
    weight_bytes = min(2, _dtype(config).itemsize)
    kv_bytes = {"auto": weight_bytes, "float16": 2, "bfloat16": 2}.get(options.kv_cache_dtype, 1)
    return fit(
        shape,
        gpu_memory=options.gpu_memory,
        utilization=options.gpu_memory_utilization,
        context=options.context,
        weight_bytes=weight_bytes,
        kv_element_bytes=kv_bytes,
        size=size,
        overhead=options.overhead,
    )


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _ratio(values: list[int]) -> tuple[str, ...]:
    if len(values) == 1:
        return ()
    dense, pruned = values
    return (f"{pruned / dense:.2f}" if dense > 0 and pruned >= 0 else "–",)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
