"""What a pruned model generates with: the dense model's settings, as far as a checkpoint can hold them.

transformers reads many settings with a shrug that it refuses to write: a temperature without sampling, as Vicuna ships,
a length penalty without beams, a padding token of -1. They are written here as they came. What transformers could not
read back is left out, with a warning.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from .errors import GraspruneWarning
from .model_files import optional_file
from .reading import json_in

_NEVER_WRITTEN = "compile_config"


def generation_settings(model: PreTrainedModel) -> GenerationConfig:
    """A copy of the model's generation settings that survives being written and read, with what its `config` holds.

    Settings on `model.config` are those of transformers' early days, which it now neither saves nor generates with.
    Warns of every setting that moves from there or is left out, with its name.
    """
    values = dict(vars(model.generation_config))
    for name, value in _on_config(model).items():
        if values.get(name) is None:
            line = f"{name}={value!r} moves from the model's config to its generation_config"
            warnings.warn(line, GraspruneWarning, stacklevel=2)
            values[name] = value
    if values == vars(model.generation_config) and _refusal(values) is None:
        return copy.deepcopy(model.generation_config)
    kept = _readable(values)
    _warn_of_rest(values, kept)
    return _settings(copy.deepcopy(kept))


def repaired_settings(source: str, revision: str | None = None) -> GenerationConfig | None:
    """Settings in place of those of a model's repository that transformers refuses to read; None where it reads them.

    source: model folder or Hub name. Warns of every setting that is left out, with its name.
    """
    file = optional_file(source, GENERATION_CONFIG_NAME, revision)
    if file is None:
        return None
    try:
        values = dict(json_in(file))
    except (OSError, ValueError, TypeError):
        line = f"{GENERATION_CONFIG_NAME} of {source} is no JSON object and is left out"
        warnings.warn(line, GraspruneWarning, stacklevel=2)
        return GenerationConfig()
    if _refusal(values) is None:
        return None
    kept = _readable(values)
    _warn_of_rest(values, kept)
    return _settings(kept)


def set_generation(model: PreTrainedModel, settings: GenerationConfig) -> None:
    """Give a model these generation settings, and no other ones."""
    for name in _on_config(model):
        delattr(model.config, name)
    model.generation_config = settings


@contextmanager
def savable(model: PreTrainedModel) -> Iterator[GenerationConfig]:
    """The settings to write; while it is open the model has none that `save_pretrained` would refuse."""
    settings = generation_settings(model)
    own, on_config = model.generation_config, _on_config(model)
    set_generation(model, GenerationConfig())
    try:
        yield settings
    finally:
        model.generation_config = own
        for name, value in on_config.items():
            setattr(model.config, name, value)


def write_generation(settings: GenerationConfig, folder: Path) -> None:
    """Write generation_config.json as transformers does, but without its judgement."""
    settings.to_json_file(folder / GENERATION_CONFIG_NAME, keys_to_pop=[_NEVER_WRITTEN])


def _on_config(model: PreTrainedModel) -> dict[str, object]:
    # transformers' own list of what keeps a configuration from being saved.
    return model.config._get_generation_parameters()


def _readable(values: Mapping[str, object]) -> dict[str, object]:
    """As many of the settings as go together. Some need others: several answers need several beams."""
    kept: dict[str, object] = {}
    waiting = dict(values)
    while fitting := [name for name, value in waiting.items() if _refusal({**kept, name: value}) is None]:
        kept[fitting[0]] = waiting.pop(fitting[0])
    return kept


def _warn_of_rest(values: Mapping[str, object], kept: Mapping[str, object]) -> None:
    for name in sorted(values.keys() - kept.keys()):
        reason = _refusal({**kept, name: values[name]})
        line = f"{name}={values[name]!r} is left out of the generation settings: {reason}"
        warnings.warn(line, GraspruneWarning, stacklevel=3)


def _refusal(values: Mapping[str, object]) -> str | None:
    """Why transformers cannot read these settings back from a file; None if it can."""
    try:
        GenerationConfig.from_dict(json.loads(_settings(values).to_json_string(keys_to_pop=[_NEVER_WRITTEN])))
    except Exception as error:  # values may be of any type, and each fails in its own way
        return str(error).partition("\n")[0]
    return None


def _settings(values: Mapping[str, object]) -> GenerationConfig:
    settings = GenerationConfig()
    vars(settings).update(values)  # the constructor drops what it does not know, and judges the rest
    return settings
