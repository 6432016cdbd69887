"""`optimum-cli grasprune inspect`: the widths of a checkpoint, layer by layer, and what fits beside it on a GPU.

No weights are loaded.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options, declare_late

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from optimum_grasprune.config import DeploymentOptions
    from optimum_grasprune.outputs import Source
    from optimum_grasprune.sizing import Fit
    from optimum_grasprune.units import UnitInventory


class InspectCommand(Subcommand):
    """Show widths, parameters and KV-cache bytes of any checkpoint, the budget of a pruned one, and what fits."""

    COMMAND = CommandInfo(name="inspect", help="Show the widths of a checkpoint and how many sequences fit on a GPU.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(parser, "optimum-cli grasprune inspect -m ./pruned-llama --gpu-memory 24GiB --context 4096")
        declare_late(parser, _declare)

    def sources(self) -> list[Source]:
        """The model and the dense one."""
        from optimum_grasprune.outputs import models

        return models("a model that is inspected", self.args.model, self.args.dense)

    def execute(self) -> None:
        """Read shapes off the configuration, then print them beside the recorded budget and what fits."""
        from optimum_grasprune.checkpoint import read_record
        from optimum_grasprune.families import family_of
        from optimum_grasprune.loading import count_parameters, empty_model, load_config
        from optimum_grasprune.report import print_summary, print_table
        from optimum_grasprune.sizing import model_shape, tensor_parallel_sizes
        from optimum_grasprune.sources import quantization_of

        config = load_config(self.args.model, **self._read_as())
        family = family_of(config)
        options = self._deployment(config)
        fits = [] if options is None else self._fits(config, options)
        model = empty_model(config)
        inventory = family.inventory(model)
        dtype = _dtype(config)
        layers = _layer_table(inventory, dtype.itemsize)
        parameters = count_parameters(model)
        others = _parameters_beside_layers(model, parameters - inventory.total_cost)
        sizes = tensor_parallel_sizes(model_shape(model, family).layers)
        step = math.gcd(*(layer["ffn_channels"] for layer in layers))
        quantised = quantization_of(config)
        footer = (
            f"{parameters:,} parameters in all, {inventory.total_cost:,} of them prunable; {dtype}\n"
            f"every FFN width is a multiple of {step}; tensor-parallel sizes: {', '.join(map(str, sizes))}"
            + (f"\nthe weights are quantised: {quantised}" if quantised else "")
        )
        columns = ("layer", "FFN channels", "KV heads", "parameters", "KV bytes per token")
        print_table(self.args.model, columns, _rows(layers, others, parameters), footer)
        record = read_record(self.args.model, self.args.revision)
        if record:
            print_summary(record, f"pruned from {record.base_model.name or 'a model in memory'}")
        if options is not None:
            _print_fits(fits, options)
        self.write_result(
            {
                "model": self.args.model,
                "family": family.name,
                "parameters": parameters,
                "prunable_parameters": inventory.total_cost,
                "other_parameters": others,
                "quantization": quantised,
                "kv_bytes_per_token": inventory.total_kv_width * dtype.itemsize,
                "ffn_multiple_of": step,
                "tensor_parallel_sizes": sizes,
                "layers": layers,
                "budget": record.budget.to_dict() if record else None,
                "deployment": None if options is None else _describe_fits(fits, options),
            }
        )

    def _read_as(self) -> dict[str, Any]:
        return self.source_options(self.args.model, *filter(None, [self.args.dense]))

    def _deployment(self, config: PreTrainedConfig) -> DeploymentOptions | None:
        from optimum_grasprune.config import DeploymentOptions
        from optimum_grasprune.config.flags import given
        from optimum_grasprune.errors import OptionError
        from optimum_grasprune.loading import check_length, longest_context
        from optimum_grasprune.sources import quantization_of

        chosen = given(self.args, DeploymentOptions.model_fields)
        if "gpu_memory" not in chosen:
            for option in ("dense", *chosen):
                if (value := getattr(self.args, option)) is not None:
                    raise OptionError(option, value, "is of use only with --gpu-memory")
            return None
        options = DeploymentOptions(**chosen)
        if (how := quantization_of(config)) is not None:
            reason = f"the model is quantised ({how}); what fits is known of plain weights only"
            raise OptionError("gpu_memory", self.args.gpu_memory, reason)
        if "context" in chosen:
            check_length(config, "context", options.context)
            return options
        longest = longest_context(config) or options.context
        return options.model_copy(update={"context": min(options.context, longest)})

    def _fits(self, config: PreTrainedConfig, options: DeploymentOptions) -> list[Fit]:
        """What fits beside the dense model, if there is one, and beside this one."""
        from optimum_grasprune.loading import load_config
        from optimum_grasprune.surgery import dense_config

        named = self.args.dense
        dense = load_config(named, **self._read_as()) if named else dense_config(config)
        own = _fit(config, options, self.args.model)
        return [own] if dense is None else [_fit(dense, options, named or "the dense model"), own]


def _declare(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    from optimum_grasprune.config import DeploymentOptions
    from optimum_grasprune.config.flags import add_options

    required = parser.add_argument_group("Required arguments")
    required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
    deployment = parser.add_argument_group("Deployment")
    add_options(deployment, DeploymentOptions)
    deployment.add_argument(
        "--dense", metavar="MODEL", help="dense model to compare with; by default what the checkpoint was cut from"
    )
    add_model_options(parser.add_argument_group("Optional arguments"))


def _dtype(config: PreTrainedConfig) -> Any:
    import torch

    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _layer_table(inventory: UnitInventory, itemsize: int) -> list[dict[str, int]]:
    layers: dict[int, dict[str, Any]] = {}
    for group in inventory.groups:
        row = layers.setdefault(group.layer, {"ffn": None, "kv": None})
        row[group.kind] = group
    return [
        {
            "layer": layer,
            "ffn_channels": groups["ffn"].count,
            "kv_heads": groups["kv"].count,
            "parameters": sum(group.count * group.cost for group in groups.values()),
            "kv_bytes_per_token": groups["kv"].count * groups["kv"].kv_width * itemsize,
        }
        for layer, groups in layers.items()
    ]


def _parameters_beside_layers(model: PreTrainedModel, count: int) -> dict[str, int]:
    """What no unit runs through, by its place. count: how many parameters that are in all."""
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    embedding = table.weight.numel()
    own_head = 0 if head.weight is table.weight else head.weight.numel()
    places = {"embedding": embedding, "head": own_head, "norms_and_biases": count - embedding - own_head}
    return {name: value for name, value in places.items() if value}


def _rows(layers: list[dict[str, int]], others: dict[str, int], parameters: int) -> list[tuple[str, ...]]:
    """The table: every parameter of the model is in one row."""
    sums = {name: f"{sum(layer[name] for layer in layers):,}" for name in layers[0]}
    return [
        *(tuple(f"{value:,}" for value in layer.values()) for layer in layers),
        *((name.replace("_", " "), "", "", f"{value:,}", "") for name, value in others.items()),
        tuple({**sums, "layer": "all", "parameters": f"{parameters:,}"}.values()),
    ]


def _fit(config: PreTrainedConfig, options: DeploymentOptions, name: str) -> Fit:
    from optimum_grasprune.errors import OptionError
    from optimum_grasprune.families import family_of
    from optimum_grasprune.loading import empty_model
    from optimum_grasprune.sizing import fit, model_shape, splits, tensor_parallel_sizes

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


def _print_fits(fits: list[Fit], options: DeploymentOptions) -> None:
    from optimum_grasprune.report import print_table

    gpus = "a GPU" if options.tensor_parallel_size == 1 else f"each of {options.tensor_parallel_size} GPUs"
    columns = ("", "this model") if len(fits) == 1 else ("", "dense", "pruned", "pruned ÷ dense")
    print_table(f"What fits on {gpus} of {_gib(options.gpu_memory)}", columns, _fit_rows(fits), _footer(options))


def _describe_fits(fits: list[Fit], options: DeploymentOptions) -> dict[str, Any]:
    *dense, own = fits
    return {**options.to_dict(), "dense": dense[0].to_dict() if dense else None, "model": own.to_dict()}


def _fit_rows(fits: list[Fit]) -> list[tuple[str, ...]]:
    quantities: tuple[tuple[str, str, Callable[[int], str]], ...] = (
        ("for the engine", "granted", _gib),
        ("weights", "weights", _gib),
        ("activations and runtime", "overhead", _gib),
        ("left for the KV cache", "kv_memory", _gib),
        ("KV bytes per token", "kv_bytes_per_token", "{:,}".format),
        ("KV-cache tokens", "kv_tokens", "{:,}".format),
        (f"sequences of {fits[0].context:,} tokens", "sequences", "{:,}".format),
    )
    rows = []
    for label, name, shown in quantities:
        values = [getattr(fit, name) for fit in fits]
        rows.append((label, *map(shown, values), *_ratio(values)))
    return rows


def _ratio(values: list[int]) -> tuple[str, ...]:
    if len(values) == 1:
        return ()
    dense, pruned = values
    return (f"{pruned / dense:.2f}" if dense > 0 and pruned >= 0 else "–",)


def _footer(options: DeploymentOptions) -> str:
    overhead = (
        "activations and runtime are an allowance for vLLM's defaults, not a measurement"
        if options.overhead is None
        else "activations and runtime as given"
    )
    return f"{options.gpu_memory_utilization:g} of the memory is the engine's; {overhead}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
