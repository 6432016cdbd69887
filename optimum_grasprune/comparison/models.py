"""The models of a comparison: the base model in the precision of a cell, and what tells of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from ..config import GRASPConfig
from ..errors import ModelError
from ..families import family_of
from ..families.shape import model_shape
from ..loading import empty_model, load_model
from ..model_files import ReadAs, commit_of
from ..record.describe import describe_model
from .results import BaseModel, Widths


class LoadedBase:
    """The base model, loaded when it is first needed, and again only for another precision or device."""

    def __init__(self, source: str, read_as: ReadAs) -> None:
        self.source, self.read_as = source, read_as
        self._key: tuple[str, str] | None = None
        self._model: PreTrainedModel | None = None

    def model_for(self, config: GRASPConfig) -> PreTrainedModel:
        """The model in the precision and on the device of a configuration."""
        key = (config.dtype, config.device)
        if self._model is None or self._key != key:
            self._model = None  # two at once may be more than the device holds
            self._model = load_model(self.source, dtype=config.dtype, device=config.device, **self.read_as)
            self._key = key
        return self._model


def widths_of(model: PreTrainedModel) -> Widths | None:
    """The widths of a model; None of one whose shape cannot be told, as without attention in any layer."""
    try:
        layers = model_shape(model, family_of(model.config)).layers
    except ModelError:
        return None
    return Widths(ffn=tuple(layer.ffn_channels for layer in layers), kv_heads=tuple(layer.kv_heads for layer in layers))


def identity(source: str, config: PreTrainedConfig, revision: str | None = None) -> BaseModel:
    """What makes a base model another one: its shapes and its weights, wherever they lie."""
    weights = _weights_hash(source) or f"{source}@{commit_of(source, revision)}"
    return BaseModel.of(describe_model(empty_model(config)), weights)


def _weights_hash(source: str) -> str | None:
    files = sorted(path for kind in ("*.safetensors", "*.bin") for path in Path(source).glob(kind))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
