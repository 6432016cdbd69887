"""One model pruned by several methods at several ratios: the cells of the comparison, running them, and their tables.

Every cell is a file of its own in the output folder, so that a comparison that was stopped is taken up where it was.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import math
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .budget import Budget
from .calibration import Corpus, load_corpus, tokenize
from .checkpoint import results_folder, write_file, write_json
from .config import RECIPES, GRASPConfig
from .errors import GraspruneError, OptionError
from .evaluation import EVALUATION_WINDOW, perplexity, windows_of
from .families import family_of
from .loading import (
    calibration_length,
    check_length,
    count_parameters,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
)
from .masks import UnitMask
from .methods import get_method, method_names
from .pruner import GRASPPruner, describe_model

CELLS_FOLDER = "cells"
DENSE_NAME = "dense.json"
RESULT_NAME = "comparison.json"
RESULT_FORMAT = 1

SAME_FOR_ALL = ("dataset", "dataset_split", "text_column", "seed")
"""Fields that no recipe decides for itself in a comparison: every cell has the same data and seed."""

_AFTER_THE_CHOICE = {
    "compensation",
    "restoration",
    "damping",
    "scale_samples",
    "scale_epochs",
    "scale_learning_rate",
}
"""Fields that the choice of units does not depend on; its scores depend on the keep ratio neither."""

_ENTRY = re.compile(r"(?P<name>[^+:]+)(?:\+(?P<compensation>[^+:]+))?(?::(?P<pattern>[^+]+))?")
_CORPUS = re.compile(r"(?P<name>[^=]+)=(?P<source>.+?)(?:\[(?P<part>[^\[\]]+)\])?")
_SLUG = re.compile(r"[^\w.+-]+")
_MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One method at one ratio. entry: the method as the user named it.  config: the whole recipe."""

    entry: str
    config: GRASPConfig

    @property
    def name(self) -> str:
        """Names the cell in messages."""
        return f"{self.entry} at {self.config.keep_ratio:g}"

    @property
    def file_name(self) -> str:
        """Name of the file that holds the cell's result."""
        return f"{slug(self.entry)}-{self.config.keep_ratio!r}.json"

    @property
    def calibrated(self) -> bool:
        """Whether the recipe looks at calibration data."""
        return get_method(self.config.method).looks_at_data(self.config)


@dataclass(frozen=True)
class Evaluation:
    """A text to measure perplexity on. windows_WS: its windows of tokens, shape (W, S), int64."""

    name: str
    corpus: Corpus
    windows_WS: Tensor

    def describe(self) -> dict[str, Any]:
        """What identifies it: two evaluations of the same description measure the same tokens."""
        count, window = self.windows_WS.shape
        tokens_hash = hashlib.sha256(self.windows_WS.numpy().tobytes()).hexdigest()
        return {**self.corpus.describe(), "windows": count, "window": window, "tokens_sha256": tokens_hash}


def slug(name: str) -> str:
    """A name as part of a file name."""
    return _SLUG.sub("-", name)


def cells_of(entries: Sequence[str], ratios: Sequence[object], options: Mapping[str, Any]) -> list[Cell]:
    """Every entry at every ratio, highest first; all are checked before any is returned.

    entries: names of recipes or methods, each as NAME[+COMPENSATION][:PATTERN].  ratios: shares between 0 and 1.
    options: fields of `GRASPConfig` that override the recipes'.  Raises OptionError.
    """
    default = RECIPES["default"](**options)
    shared = {**{name: getattr(default, name) for name in SAME_FOR_ALL}, **options}
    cells: dict[tuple[str, float], Cell] = {}
    for entry in entries:
        of_entry = [Cell(entry, _configuration(entry, ratio, shared)) for ratio in ratios]
        for cell in sorted(of_entry, key=lambda cell: -cell.config.keep_ratio):
            cells[entry, cell.config.keep_ratio] = cell
    return list(cells.values())


def _configuration(entry: str, ratio: object, options: Mapping[str, Any]) -> GRASPConfig:
    match = _ENTRY.fullmatch(entry)
    if not match:
        raise OptionError("methods", entry, "should look like NAME, NAME+COMPENSATION or NAME:PATTERN")
    name = match["name"]
    own: dict[str, Any] = {field: match[field] for field in ("compensation", "pattern") if match[field]}
    recipe = RECIPES.get(name)
    if recipe is None:
        if name not in method_names():
            known = f"the recipes {', '.join(RECIPES)} and the methods {', '.join(method_names())}"
            raise OptionError("methods", entry, f"no such recipe or method; there are {known}")
        recipe, own["method"] = RECIPES["default"], name
    try:
        config = recipe(**{**options, **own, "keep_ratio": ratio})
        GRASPPruner(config)  # which checks that the method supports it
    except OptionError as error:
        raise _as_given(error, entry, own) from None
    return config


def _as_given(error: OptionError, entry: str, own: Mapping[str, Any]) -> OptionError:
    # The user gave one --methods and one --keep-ratios, not the fields of each configuration.
    if error.option == "keep_ratio":
        return OptionError("keep_ratios", error.value, error.reason)
    if error.option in own:
        return OptionError("methods", entry, error.reason)
    return error


def read_corpora(entries: Sequence[str], text_column: str) -> dict[str, Corpus]:
    """Evaluation corpora by name. entries: each as NAME=PATH or NAME=PATH[PART], PART a slice or the name of a split.

    Raises OptionError or DataError.
    """
    corpora: dict[str, Corpus] = {}
    for entry in entries:
        match = _CORPUS.fullmatch(entry)
        if not match:
            raise OptionError("evaluate", entry, "should look like NAME=PATH or NAME=PATH[90%:]")
        if slug(match["name"]) in map(slug, corpora):
            raise OptionError("evaluate", entry, "another corpus has this name")
        part = match["part"]
        split = f"[{part}]" if part and ":" in part else part
        try:
            corpora[match["name"]] = load_corpus(match["source"], split, text_column)
        except OptionError as error:
            raise OptionError("evaluate", entry, error.reason) from None
    return corpora


def check_folder(output: Path) -> None:
    """Make the folder of a comparison, or find the one that is to be continued; CheckpointError when it is neither."""
    results_folder(output, CELLS_FOLDER, "comparison")


class Comparison:
    """Runs cells on one model. Making one checks everything that can be checked before the work starts.

    source: model folder or hub name.  corpora: evaluation corpora by name.  window: tokens in an evaluation window.
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
        window: int = EVALUATION_WINDOW,
        limits: Sequence[int] | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.source, self.cells, self.output = source, tuple(cells), output
        self.device, self.trust_remote_code = device, trust_remote_code
        config = load_config(source, trust_remote_code=trust_remote_code)
        check_length(config, "eval_seq_len", window)
        self._check_cells(config)
        self.tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        self.evaluations = [
            Evaluation(name, corpus, windows_of(tokenize(corpus, self.tokenizer), window, limit))
            for (name, corpus), limit in zip(corpora.items(), limits or (None,) * len(corpora), strict=True)
        ]
        self.described = {evaluation.name: evaluation.describe() for evaluation in self.evaluations}
        self.base_model = identity(source, config)
        check_folder(output)

    def run(self, announce: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Measure the dense model and every cell that is not finished yet; the whole comparison as JSON types.

        announce: called with one line about every cell.
        A cell that a GraspruneError stops holds it as `error` and stops no other; the next run tries it again.
        """
        dense = self._dense(announce)
        base = _Base(self.source, self.trust_remote_code)
        known = _Known()
        cells = []
        for number, cell in enumerate(self.cells, start=1):
            result = self._finished(self._path_of(cell), self._inputs(cell))
            place = f"cell {number} of {len(self.cells)}, {cell.name}"
            if result is None:
                announce(f"{place}: running")
                result = self._run_cell(cell, base, known)
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
            "versions": {name: version(name) for name in ("optimum-grasprune", "torch", "transformers")}
            | {"python": platform.python_version()},
        }

    def _check_cells(self, config: Any) -> None:
        family, model = family_of(config), empty_model(config)
        inventory, parameters = family.inventory(model), count_parameters(model)
        self._corpus_hashes: dict[tuple[str, str | None, str], str] = {}
        for cell in self.cells:
            options = cell.config
            try:
                if options.pattern == "units":
                    Budget.resolve(options, inventory, parameters)
            except OptionError as error:
                raise _as_given(error, cell.entry, {}) from None
            if not cell.calibrated:
                continue
            calibration_length(config, options.seq_len)
            if (key := _corpus_key(options)) not in self._corpus_hashes:
                self._corpus_hashes[key] = load_corpus(*key).sha256

    def _path_of(self, cell: Cell) -> Path:
        return self.output / CELLS_FOLDER / cell.file_name

    def _inputs(self, cell: Cell | None) -> dict[str, Any]:
        """All that a result depends on; the dense model's without a cell."""
        inputs: dict[str, Any] = {
            "base_model": self.base_model,
            "evaluation": self.described,
        }
        if cell is not None:
            inputs["recipe"] = cell.config.to_dict()
            inputs["calibration"] = self._corpus_hashes[_corpus_key(cell.config)] if cell.calibrated else None
        return inputs

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
        model = load_model(self.source, dtype="float32", device=self.device, trust_remote_code=self.trust_remote_code)
        result = {"inputs": inputs, "parameters": count_parameters(model), "perplexity": self._measure(model)}
        write_json(path, result)
        announce(f"dense: {_outcome_line(result)}")
        return result

    def _run_cell(self, cell: Cell, base: _Base, known: _Known) -> dict[str, Any]:
        result: dict[str, Any] = {"inputs": self._inputs(cell)}
        try:
            result.update(self._pruned(cell, base, known))
        except GraspruneError as error:
            result["error"] = str(error)
        write_json(self._path_of(cell), result)
        return result

    def _pruned(self, cell: Cell, base: _Base, known: _Known) -> dict[str, Any]:
        model = base.model_for(cell.config)
        scores_key = _key_without(_AFTER_THE_CHOICE | {"keep_ratio"}, cell.config)
        choice_key = _key_without(_AFTER_THE_CHOICE, cell.config)
        scores, candidates = known.scores.get(scores_key), known.candidates.get(choice_key)
        pruner = GRASPPruner(cell.config)
        start = time.perf_counter()
        pruned = pruner.prune_model(model, self.tokenizer, scores=scores, candidates=candidates)
        seconds = time.perf_counter() - start
        known.scores[scores_key], known.candidates[choice_key] = pruner.scores, pruner.candidates
        return {
            "kept": pruner.record.get("budget", {}).get("kept", {}),
            "compensation": pruner.record.get("compensation", []),
            "choice": pruner.record.get("choice", []),
            "seconds": round(seconds, 2),
            "scores_reused": scores is not None,
            "choice_reused": candidates is not None,
            "perplexity": self._measure(widened(pruned)),
        }

    def _measure(self, model: PreTrainedModel) -> dict[str, float]:
        return {evaluation.name: perplexity(model, evaluation.windows_WS).perplexity for evaluation in self.evaluations}


@dataclass
class _Known:
    """What earlier cells computed, by the options that it depends on."""

    scores: dict[str, Tensor | None] = field(default_factory=dict)
    candidates: dict[str, Mapping[str, UnitMask] | None] = field(default_factory=dict)


def _key_without(names: set[str], config: GRASPConfig) -> str:
    return json.dumps({name: value for name, value in config.to_dict().items() if name not in names})


class _Base:
    """The base model, loaded when it is first needed, and again only for another precision or device."""

    def __init__(self, source: str, trust_remote_code: bool) -> None:
        self.source, self.trust_remote_code = source, trust_remote_code
        self._key: tuple[str, str] | None = None
        self._model: PreTrainedModel | None = None

    def model_for(self, config: GRASPConfig) -> PreTrainedModel:
        """The model in the precision and on the device of a configuration."""
        key = (config.dtype, config.device)
        if self._model is None or self._key != key:
            self._model = None  # two at once may be more than the device holds
            self._model = load_model(
                self.source, dtype=config.dtype, device=config.device, trust_remote_code=self.trust_remote_code
            )
            self._key = key
        return self._model


def widened(model: PreTrainedModel) -> PreTrainedModel:
    """The model in fp32 for measuring; the given one, and what it shares with others, stays as it is."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def identity(source: str, config: Any) -> dict[str, Any]:
    """What makes a base model another one: its shapes and its weights, wherever they lie."""
    described = describe_model(empty_model(config))
    shapes = {name: value for name, value in described.items() if name not in ("name", "dtype")}
    return {**shapes, "weights": _weights_hash(source) or f"{source}@{getattr(config, '_commit_hash', None)}"}


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


# Tables. Pure functions of a comparison as `Comparison.run` returns it and comparison.json holds it.


def failed(result: Mapping[str, Any]) -> list[str]:
    """Names of the cells that ended in an error."""
    return [f"{cell['entry']} at {cell['keep_ratio']:g}" for cell in result["cells"] if "error" in cell]


def by_ratio(result: Mapping[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """The cells grouped by keep ratio, highest first."""
    ratios = sorted({cell["keep_ratio"] for cell in result["cells"]}, reverse=True)
    return {ratio: [cell for cell in result["cells"] if cell["keep_ratio"] == ratio] for ratio in ratios}


def excess_loss(result: Mapping[str, Any], cell: Mapping[str, Any], corpus: str) -> float:
    """ln(perplexity / dense perplexity): by how many nats a token the mean loss rose."""
    return math.log(cell["perplexity"][corpus] / result["dense"]["perplexity"][corpus])


def points_of(result: Mapping[str, Any], corpus: str) -> dict[str, list[tuple[float, float]]]:
    """For every method, its points (share of all parameters kept, perplexity), in the order of the shares."""
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in result["cells"]:
        share = cell.get("kept", {}).get("parameters")
        if "error" not in cell and share is not None:
            points.setdefault(cell["entry"], []).append((share, cell["perplexity"][corpus]))
    return {entry: sorted(found) for entry, found in points.items()}


def shown(value: float) -> str:
    """A perplexity with about four digits."""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def short_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of text for a terminal: shares kept and perplexities, the dense model first."""
    corpora = list(result["corpora"])
    rows = [["dense", "", *["100.0%"] * 2, *_perplexities(result["dense"], corpora)]]
    for ratio, cells in by_ratio(result).items():
        for cell in cells:
            values = ["failed"] * len(corpora) if "error" in cell else _perplexities(cell, corpora)
            rows.append([cell["entry"], f"{ratio:g}", *_shares(cell), *values])
    return ["method", "ratio", "kept", "KV", *corpora], rows


def full_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of Markdown: the dense model, then ratio by ratio, the best value of each corpus in bold."""
    corpora = list(result["corpora"])
    columns = ["method", "keep ratio", "kept of all", "KV cache"]
    columns += [title for name in corpora for title in (name, "Δ nats")] + ["compensation", "seconds"]
    dense = [text for value in _perplexities(result["dense"], corpora) for text in (value, "0")]
    rows = [["dense", "", *["100.0%"] * 2, *dense, "", ""]]
    for cells in by_ratio(result).values():
        whole = [cell for cell in cells if "error" not in cell]
        best = {name: min(cell["perplexity"][name] for cell in whole) for name in corpora if len(whole) > 1}
        rows += [_full_row(result, cell, best) for cell in cells]
    return columns, rows


def _full_row(result: Mapping[str, Any], cell: Mapping[str, Any], best: Mapping[str, float]) -> list[str]:
    corpora = list(result["corpora"])
    front = [cell["entry"], f"{cell['keep_ratio']:g}", *_shares(cell)]
    if "error" in cell:
        return [*front, *[_MISSING] * (2 * len(corpora)), f"failed: {cell['error']}", _MISSING]
    values = []
    for name in corpora:
        mark = "**" if best.get(name) == cell["perplexity"][name] else ""
        texts = (shown(cell["perplexity"][name]), f"{excess_loss(result, cell, name):+.3f}")
        values += [f"{mark}{text}{mark}" for text in texts]
    compensation = " + ".join(cell["compensation"]).replace("_", " ") or "none"
    return [*front, *values, compensation, f"{cell['seconds']:,.0f}"]


def _perplexities(measured: Mapping[str, Any], corpora: Sequence[str]) -> list[str]:
    return [shown(measured["perplexity"][name]) for name in corpora]


def _shares(cell: Mapping[str, Any]) -> list[str]:
    kept = cell.get("kept", {})
    return [_MISSING if kept.get(name) is None else f"{kept[name]:.1%}" for name in ("parameters", "kv_cache")]


def markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown page: what was done, and the table, the best of each ratio in bold."""
    columns, rows = full_table(result)
    left = {"method", "compensation"}
    lines = [columns, [":---" if column in left else "---:" for column in columns], *rows]
    options = result["options"]
    corpora = "\n".join(
        f"- {name}: {_text_of(corpus['source'], corpus['split'])}, {corpus['windows']:,} windows of {corpus['window']} "
        f"tokens, sha256 `{corpus['sha256'][:16]}…`"
        for name, corpus in result["corpora"].items()
    )
    patterns = sorted({cell["recipe"]["pattern"] for cell in result["cells"]} - {"units"})
    sparse = f" Of {', '.join(patterns)}, what is not zero counts as kept: the file is no smaller." if patterns else ""
    body = "\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines)
    return (
        f"# Comparison of pruning methods on {result['model']['source']}\n\n"
        f"Calibrated on {_text_of(options['dataset'], options['dataset_split'])} with seed {options['seed']}. "
        f"Perplexity in fp32 on non-overlapping windows of:\n\n{corpora}\n\n"
        f"{body}\n\n"
        "*Kept of all*: share of all parameters, embeddings and head included. *KV cache*: share of its elements per "
        "token. *Δ nats*: rise of the mean loss over the dense model, ln(perplexity / dense). Bold: best at its ratio. "
        f"*Seconds*: of pruning; scores computed for one ratio serve the others, a choice of units serves "
        f"other compensations.{sparse}\n"
    )


def _text_of(source: str, split: str | None) -> str:
    return f"`{source}`" + (f", `{split}`" if split else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def csv_text(result: Mapping[str, Any]) -> str:
    """The comparison as CSV, one line a cell, the dense model first; shares between 0 and 1, losses in nats."""
    corpora = list(result["corpora"])
    shares = ("prunable", "parameters", "kv_cache")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", *(f"kept_{name}" for name in shares), "compensation", "seconds"]
        + [f"{quantity}[{name}]" for name in corpora for quantity in ("perplexity", "excess_loss")]
        + ["error"]
    )
    dense = [value for name in corpora for value in (result["dense"]["perplexity"][name], 0.0)]
    writer.writerow(["dense", 1.0, *[1.0] * len(shares), "", "", *dense, ""])
    for cells in by_ratio(result).values():
        for cell in cells:
            writer.writerow(_csv_row(result, cell, corpora, shares))
    return file.getvalue()


def _csv_row(
    result: Mapping[str, Any], cell: Mapping[str, Any], corpora: Sequence[str], shares: Sequence[str]
) -> list[Any]:
    if "error" in cell:
        return [cell["entry"], cell["keep_ratio"], *[""] * (len(shares) + 2 + 2 * len(corpora)), cell["error"]]
    kept = [cell["kept"].get(name, "") for name in shares]
    values = [value for name in corpora for value in (cell["perplexity"][name], excess_loss(result, cell, name))]
    return [cell["entry"], cell["keep_ratio"], *kept, "+".join(cell["compensation"]), cell["seconds"], *values, ""]


def write_tables(result: dict[str, Any], output: Path) -> None:
    """Write comparison.json, comparison.md and comparison.csv."""
    write_json(output / RESULT_NAME, result)
    write_file(output / "comparison.md", markdown(result).encode())
    write_file(output / "comparison.csv", csv_text(result).encode())
