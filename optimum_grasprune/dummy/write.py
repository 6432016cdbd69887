"""Writing a checkpoint with random weights, one shard at a time: no model has to fit in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from ..export.account import GITHUB_NAME
from ..export.checkpoint import check_shard_size
from ..export.staging import RECORD_NAME, is_pruned_checkpoint, staged_folder
from ..families import family_of
from ..loading import empty_model
from ..progress import track
from ..record import Record, installed_versions
from ..record.describe import describe_model, units_budget
from ..surgery import pruned_config
from ..units import Budget, PruningPlan
from ..writing import write_json
from .shapes import dummy_tokenizer

MEANINGLESS = "The weights are random: right for speed and memory, meaningless for quality."
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Dummy:
    """A checkpoint to write.

    shape: name of the shape.  config: of the dense model.  plan: what stays, or None for the dense model.
    budget: that the plan meets.  widths: in words, where the widths are from.
    """

    shape: str
    config: PreTrainedConfig
    plan: PruningPlan | None = None
    budget: Budget | None = None
    widths: str = ""

    @property
    def served_config(self) -> PreTrainedConfig:
        """The configuration that the checkpoint has."""
        return self.config if self.plan is None else pruned_config(self.config, self.plan)


def write_dummy(
    dummy: Dummy,
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    config_only: bool = False,
    overwrite: bool = False,
    max_shard_size: str = "2GB",
) -> None:
    """Write configuration, tokenizer, record and card, and random weights in shards unless `config_only`.

    The largest shard is in memory at once, or the largest tensor if that is larger. Raises CheckpointError when the
    folder cannot be written, OptionError when the shard size is none.
    """
    check_shard_size(max_shard_size)
    config = dummy.served_config
    with staged_folder(output, overwrite=overwrite, replaceable=is_replaceable) as folder:
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)
        dummy_tokenizer(dummy.config).save_pretrained(folder)
        if not config_only:
            write_random_weights(config, folder, seed, max_shard_size)
        if dummy.plan is not None:
            write_json(folder / RECORD_NAME, _record(dummy, config, seed).to_dict())
        (folder / "README.md").write_text(_card(dummy, seed, config_only), encoding="utf-8")


def is_replaceable(folder: Path) -> bool:
    """Whether a folder holds a dummy, whose card says so, or a checkpoint that was pruned."""
    card = folder / "README.md"
    return is_pruned_checkpoint(folder) or (card.is_file() and MEANINGLESS.encode() in card.read_bytes())


def write_random_weights(config: PreTrainedConfig, folder: Path, seed: int, max_shard_size: str) -> None:
    """Safetensors shards of a model with norms of one, biases of zero and all other weights drawn."""
    tensors: dict[str, Tensor] = dict(empty_model(config).named_parameters())  # tied ones once
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    generator = torch.Generator("cpu").manual_seed(seed)
    for file, names in track(shards.filename_to_tensors.items(), "shards", "shard"):
        # Unnamed, so that this shard is gone before the next is drawn.
        save_file(
            {name: _drawn(name, tensors[name], config.initializer_range, generator) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
    if shards.is_sharded:
        write_json(folder / INDEX_NAME, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})


def _drawn(name: str, like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    tensor = torch.empty_like(like, device="cpu")
    if like.dim() == 1:
        return tensor.fill_(0 if name.endswith(".bias") else 1)
    return tensor.normal_(std=deviation, generator=generator)


def _record(dummy: Dummy, config: PreTrainedConfig, seed: int) -> Record:
    """How it was made, in the form that every pruned checkpoint has, and what it is."""
    dense, pruned = empty_model(dummy.config), empty_model(config)
    options = {} if dummy.budget is None else dummy.budget.options.to_dict()
    return Record(
        dummy=MEANINGLESS,
        recipe={**options, "seed": seed},
        base_model=replace(describe_model(dense), name=f"{dummy.shape} (random weights)"),
        calibration=None,
        versions=installed_versions(),
        budget=units_budget(family_of(config), dense, pruned, dummy.budget),
        plan=dummy.plan,
    )


def _card(dummy: Dummy, seed: int, config_only: bool) -> str:
    data = ModelCardData(library_name="transformers", tags=[GITHUB_NAME, "dummy", "random-weights"])
    what = f"the shape of {dummy.shape}" + (f", pruned; its widths are {dummy.widths}" if dummy.plan else "")
    weights = (
        "There are no weights here: serve it with `vllm serve FOLDER --load-format dummy`."
        if config_only
        else f"Drawn with seed {seed}."
    )
    return str(
        ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {dummy.shape}, a dummy\n\n**{MEANINGLESS}**\n\n"
            f"Made by {GITHUB_NAME} to time {what}. {weights}\n"
        )
    )
