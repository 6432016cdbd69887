"""`optimum-cli grasprune inspect`: the widths of a checkpoint, layer by layer, without loading its weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from .base import Subcommand, add_example, add_model_options

if TYPE_CHECKING:
    from optimum_grasprune.units import UnitInventory


class InspectCommand(Subcommand):
    """Show widths, parameters and KV-cache bytes of any checkpoint, and the budget of a pruned one."""

    COMMAND = CommandInfo(name="inspect", help="Show the widths of a checkpoint, layer by layer.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        add_example(parser, "optimum-cli grasprune inspect -m ./pruned-llama")
        required = parser.add_argument_group("Required arguments")
        required.add_argument("-m", "--model", required=True, help="model folder or Hugging Face name")
        optional = parser.add_argument_group("Optional arguments")
        add_model_options(optional, dtype=False)

    def execute(self) -> None:
        """Read shapes off the configuration, then print them beside the recorded budget."""
        import torch

        from optimum_grasprune.checkpoint import read_record
        from optimum_grasprune.families import family_of
        from optimum_grasprune.loading import count_parameters, empty_model, load_config
        from optimum_grasprune.report import print_summary, print_table

        config = load_config(self.args.model, trust_remote_code=self.args.trust_remote_code)
        family = family_of(config)
        model = empty_model(config)
        inventory = family.inventory(model)
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
        layers = _layer_table(inventory, dtype.itemsize)
        rows = [tuple(f"{value:,}" for value in layer.values()) for layer in layers]
        totals = [f"{sum(layer[name] for layer in layers):,}" for name in list(layers[0])[1:]]
        parameters = count_parameters(model)
        footer = f"{parameters:,} parameters in all, {inventory.total_cost:,} of them prunable; {dtype}"
        columns = ("layer", "FFN channels", "KV heads", "parameters", "KV bytes per token")
        print_table(self.args.model, columns, [*rows, ("all", *totals)], footer)
        record = read_record(self.args.model)
        if record:
            print_summary(record, f"pruned from {record['base_model']['name'] or 'a model in memory'}")
        self.write_result(
            {
                "model": self.args.model,
                "family": family.name,
                "parameters": parameters,
                "prunable_parameters": inventory.total_cost,
                "kv_bytes_per_token": inventory.total_kv_width * dtype.itemsize,
                "layers": layers,
                "budget": record["budget"] if record else None,
            }
        )


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
