"""Running the cells of a comparison on one model.

Every cell is a file of its own in the output folder, so that a comparison that was stopped is taken up where it was.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..admission import check_model
from ..config import GRASPConfig
from ..corpora import Corpus, TokenizedCorpus, load_corpus, tokenize
from ..errors import GraspruneError, OptionError
from ..evaluation import EVALUATION_WINDOW, perplexity
from ..families import family_of
from ..loading import (
    calibration_length,
    common_window,
    count_parameters,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    require_unquantised,
)
from ..methods import get_method
from ..model_files import commit_of
from ..pruner import GRASPPruner, describe_model, drawn
from ..recovery.chain import options_of_stages
from ..units import Budget, UnitMask
from ..writing import results_folder, write_json
from .cells import SAME_FOR_ALL, Cell, Evaluation, as_given
from .tables import shown

CELLS_FOLDER = "cells"
DENSE_NAME = "dense.json"
RESULT_FORMAT = 1


def check_folder(output: Path) -> None:
    """Make the folder of a comparison, or find the one that is to be continued; CheckpointError when it is neither."""
    results_folder(output, CELLS_FOLDER, "comparison")


class Comparison:
    """Runs cells on one model. Making one checks everything that can be checked before the work starts.

    source: model folder or hub name.  corpora: evaluation corpora by name.  window: tokens in an evaluation window;
    None for the usual number, or as many as the model reads.
    limits: windows of each corpus, from its start; None for all.  device: where the dense model is measured.
    Raises GraspruneError.
    """

    def __init__(
        self,
        source: str,
        cells: Sequence[Cell],
        corpora: Mapping[str, Corpus],
        output: Path,
        *,
        window: int | None = None,
        limits: Sequence[int] | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        self.source, self.cells, self.output, self.device = source, tuple(cells), output, device
        self.read_as: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        config = load_config(source, **self.read_as)
        require_unquantised(source, config)
        window = common_window({"the model": config}, window, EVALUATION_WINDOW, "eval_seq_len")
        self.tokenizer = load_tokenizer(source, **self.read_as)
        self._check_cells(config)
        self.evaluations = [
            Evaluation(name, corpus, self._tokenized(corpus, config).windows(window, limit))
            for (name, corpus), limit in zip(corpora.items(), limits or (None,) * len(corpora), strict=True)
        ]
        self.described = {evaluation.name: evaluation.describe() for evaluation in self.evaluations}
        self.base_model = identity(source, config, revision)
        self._made_output = not output.exists()
        check_folder(output)

    def run(self, announce: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Measure the dense model and every cell that is not finished yet; the whole comparison as JSON types.

        announce: called with one line about every cell.
        A cell that a GraspruneError stops holds it as `error` and stops no other; the next run tries it again.
        """
        try:
            dense = self._dense(announce)
        except GraspruneError:
            self._leave_no_empty_folder()
            raise
        base = _Base(self.source, self.read_as)
        earlier = _Reusable()
        cells = []
        for number, cell in enumerate(self.cells, start=1):
            result = self._finished(self._path_of(cell), self._inputs(cell))
            place = f"cell {number} of {len(self.cells)}, {cell.name}"
            if result is None:
                announce(f"{place}: running")
                result = self._run_cell(cell, base, earlier)
                announce(f"{place}: {_outcome_line(result)}")
            else:
                announce(f"{place}: finished before")
            cells.append(_reported(cell, result))
        return {
            "format": RESULT_FORMAT,
            "model": {"source": self.source, **self.base_model},
            "options": {name: getattr(self.cells[0].config, name) for name in SAME_FOR_ALL},
            "corpora": self.described,
            "dense": {key: value for key, value in dense.items() if key != "inputs"},
            "cells": cells,
            "versions": {**computing_versions(), "python": platform.python_version()},
        }

    def _leave_no_empty_folder(self) -> None:
        with suppress(OSError):  # it holds something
            (self.output / CELLS_FOLDER).rmdir()
            if self._made_output:
                self.output.rmdir()

    def _tokenized(self, corpus: Corpus, config: Any) -> TokenizedCorpus:
        return tokenize(corpus, self.tokenizer, config.vocab_size, bos=self.cells[0].config.bos)

    def _check_cells(self, config: Any) -> None:
        family, model = family_of(config), empty_model(config)
        inventory, parameters = family.inventory(model), count_parameters(model)
        self._calibrations: dict[tuple[str, str | None, str], TokenizedCorpus] = {}
        for cell in self.cells:
            options = cell.config
            try:
                if options.pattern == "units":
                    added = get_method(options.method).chain_for(options).added_parameters(model, family)
                    Budget.resolve(options, inventory, parameters, added)
            except OptionError as error:
                raise as_given(error, cell.entry, {}) from None
            if not cell.calibrated:
                continue
            length = calibration_length(config, options.seq_len)
            if (key := _corpus_key(options)) not in self._calibrations:
                self._calibrations[key] = self._tokenized(load_corpus(*key), config)
            drawn(self._calibrations[key], options, length)  # is refused where the corpus is too short

    def _path_of(self, cell: Cell) -> Path:
        return self.output / CELLS_FOLDER / cell.file_name

    def _inputs(self, cell: Cell | None) -> dict[str, Any]:
        """All that a result depends on; the dense model's without a cell."""
        inputs: dict[str, Any] = {
            "base_model": self.base_model,
            "evaluation": self.described,
            "versions": computing_versions(),
        }
        if cell is not None:
            inputs["recipe"] = cell.config.to_dict()
            inputs["calibration"] = self._calibration(cell).corpus.sha256 if cell.calibrated else None
        return inputs

    def _calibration(self, cell: Cell) -> TokenizedCorpus:
        return self._calibrations[_corpus_key(cell.config)]

    def _finished(self, path: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The stored result if it is of these inputs, and no error."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = isinstance(stored, dict) and stored.get("inputs") == inputs
        return stored if same and "perplexity" in stored else None

    def _dense(self, announce: Callable[[str], None]) -> dict[str, Any]:
        path, inputs = self.output / DENSE_NAME, self._inputs(None)
        if (stored := self._finished(path, inputs)) is not None:
            announce("dense: finished before")
            return stored
        announce("dense: measuring")
        model = load_model(self.source, dtype="float32", device=self.device, **self.read_as)
        check_model(model)  # before the first forward pass: every cell would find the same
        result = {"inputs": inputs, "parameters": count_parameters(model), **self._measure(model)}
        write_json(path, result)
        announce(f"dense: {_outcome_line(result)}")
        return result

    def _run_cell(self, cell: Cell, base: _Base, earlier: _Reusable) -> dict[str, Any]:
        result: dict[str, Any] = {"inputs": self._inputs(cell)}
        try:
            result.update(self._pruned(cell, base, earlier))
        except GraspruneError as error:
            result["error"] = str(error)
        write_json(self._path_of(cell), result)
        return result

    def _pruned(self, cell: Cell, base: _Base, earlier: _Reusable) -> dict[str, Any]:
        model = base.model_for(cell.config)
        # What makes up for the cut does not matter to the choice of units, nor the keep ratio to its scores.
        after_the_choice = options_of_stages()
        scores_key = _key_without(after_the_choice | {"keep_ratio"}, cell.config)
        choice_key = _key_without(after_the_choice, cell.config)
        scores, candidates = earlier.scores.get(scores_key), earlier.candidates.get(choice_key)
        pruner = GRASPPruner(cell.config)
        start = time.perf_counter()
        texts = self._calibration(cell) if cell.calibrated else None
        pruned = pruner.prune_model(model, self.tokenizer, texts, scores=scores, candidates=candidates)
        seconds = time.perf_counter() - start
        earlier.scores[scores_key], earlier.candidates[choice_key] = pruner.scores, pruner.candidates
        return {
            "kept": pruner.record.get("budget", {}).get("kept", {}),
            "compensation": pruner.record.get("compensation", []),
            "choice": pruner.record.get("choice", []),
            "seconds": round(seconds, 2),
            "scores_reused": scores is not None,
            "choice_reused": candidates is not None,
            **self._measure(in_fp32(pruned)),
        }

    def _measure(self, model: PreTrainedModel) -> dict[str, dict[str, float | None]]:
        """`perplexity` and `loss`, in nats, by corpus; a perplexity that no float holds is None."""
        measured = {item.name: perplexity(model, item.windows_WS).to_dict() for item in self.evaluations}
        return {
            quantity: {name: result[quantity] for name, result in measured.items()}
            for quantity in ("perplexity", "loss")
        }


@dataclass
class _Reusable:
    """What earlier cells computed, by the options that it depends on."""

    scores: dict[str, Tensor | None] = field(default_factory=dict)
    candidates: dict[str, Mapping[str, UnitMask] | None] = field(default_factory=dict)


def _key_without(names: set[str], config: GRASPConfig) -> str:
    return json.dumps({name: value for name, value in config.to_dict().items() if name not in names})


class _Base:
    """The base model, loaded when it is first needed, and again only for another precision or device."""

    def __init__(self, source: str, read_as: Mapping[str, Any]) -> None:
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


def computing_versions() -> dict[str, str]:
    """The packages whose version a result depends on; a result of others is not taken for finished."""
    return {name: version(name) for name in ("optimum-grasprune", "torch", "transformers")}


def in_fp32(model: PreTrainedModel) -> PreTrainedModel:
    """The model in fp32 for measuring; the given one, and what it shares with others, stays as it is."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def identity(source: str, config: Any, revision: str | None = None) -> dict[str, Any]:
    """What makes a base model another one: its shapes and its weights, wherever they lie."""
    described = describe_model(empty_model(config))
    shapes = {name: value for name, value in described.items() if name not in ("name", "dtype")}
    return {**shapes, "weights": _weights_hash(source) or f"{source}@{commit_of(source, revision)}"}


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


def _reported(cell: Cell, stored: Mapping[str, Any]) -> dict[str, Any]:
    # The model and the corpora are those of the whole comparison; its table needs no copy of them in every cell.
    outcome = {key: value for key, value in stored.items() if key != "inputs"}
    own = {key: stored["inputs"][key] for key in ("recipe", "calibration")}
    return {"entry": cell.entry, "keep_ratio": cell.config.keep_ratio, **outcome, **own}


def _corpus_key(config: GRASPConfig) -> tuple[str, str | None, str]:
    return config.dataset, config.dataset_split, config.text_column


def _outcome_line(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    measured = ", ".join(f"{name} {shown(value)}" for name, value in result["perplexity"].items())
    return f"perplexity {measured}" + (f"; {result['seconds']:.0f} s" if "seconds" in result else "")
