"""Running the cells of a comparison on one model.

Every cell is a file of its own in the output folder, so that a comparison that was stopped is taken up where it was.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..admission import check_model
from ..calibration_data import calibration_for, drawn
from ..config import GRASPConfig
from ..corpora import Corpus, TokenizedCorpus, load_corpus, tokenize
from ..errors import CheckpointError, GraspruneError, OptionError
from ..evaluation import EVALUATION_WINDOW, perplexity
from ..evaluation.harness import Scored, ask_model, beside_dense
from ..evaluation.tasks import TaskSuite
from ..execution import KnownStatistics
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
from ..methods.selection import SelectionCache
from ..model_files import ReadAs, commit_of
from ..provenance import recipe_of
from ..pruner import GRASPPruner
from ..ratios import RatioRun, shared_run
from ..record import SharedRun, installed_versions, read_json
from ..record.describe import describe_model
from ..writing import results_folder, write_json
from .accuracy import headline
from .cells import SAME_FOR_ALL, Cell, as_given, evaluation_texts
from .results import (
    BaseModel,
    CellFile,
    CellInputs,
    CellResult,
    ComparedModel,
    ComparisonResult,
    DenseFile,
    DenseResult,
    DenseTasks,
    FailedCell,
    Inputs,
    PrunedResult,
    PrunedTasks,
    SharedOptions,
)
from .tables import shown

File = TypeVar("File", DenseFile, CellFile)

CELLS_FOLDER = "cells"
DENSE_NAME = "dense.json"


def check_folder(output: Path) -> None:
    """Make the folder of a comparison, or find the one that is to be continued; CheckpointError when it is neither."""
    results_folder(output, CELLS_FOLDER, "comparison")


class Comparison:
    """Runs cells on one model. Making one checks everything that can be checked before the work starts.

    source: model folder or hub name.  corpora: evaluation corpora by name.  window: tokens in an evaluation window;
    None for the usual number, or as many as the model reads.
    limits: windows of each corpus, from its start; None for all.  device: where the dense model is measured.
    share_gates: whether a method that trains gates does so once for all its ratios, instead of once for each.
    tasks: that the dense model and every cell are asked, in fp32; None for perplexity alone.
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
        share_gates: bool = False,
        tasks: TaskSuite | None = None,
    ) -> None:
        self.source, self.cells, self.output, self.device = source, tuple(cells), output, device
        self.share_gates, self.tasks = share_gates, tasks
        self.read_as: ReadAs = {"trust_remote_code": trust_remote_code, "revision": revision}
        config = load_config(source, **self.read_as)
        require_unquantised(source, config)
        window = common_window({"the model": config}, window, EVALUATION_WINDOW, "eval_seq_len")
        self.tokenizer = load_tokenizer(source, **self.read_as)
        self._check_cells(config)
        bos = self.cells[0].config.bos
        self.evaluations = evaluation_texts(corpora, self.tokenizer, config.vocab_size, window, limits, bos=bos)
        self.described = {evaluation.name: evaluation.describe() for evaluation in self.evaluations}
        self.base_model = identity(source, config, revision)
        self._runs: dict[str, RatioRun] = {}
        self._made_output = not os.path.exists(output)
        check_folder(output)

    def run(self, announce: Callable[[str], None] = lambda line: None) -> ComparisonResult:
        """Measure the dense model and every cell that is not finished yet; the whole comparison.

        announce: called with one line about every cell.
        A cell that a GraspruneError stops holds it as `error` and stops no other; the next run tries it again.
        """
        try:
            dense = self._dense(announce)
        except GraspruneError:
            self._leave_no_empty_folder()
            raise
        base = _Base(self.source, self.read_as)
        earlier, statistics = SelectionCache(), KnownStatistics()
        cells = []
        for number, cell in enumerate(self.cells, start=1):
            place = f"cell {number} of {len(self.cells)}, {cell.name}"
            inputs = self._inputs_of(cell)
            stored = _finished(CellFile, self._path_of(cell), inputs)
            if stored is None:
                announce(f"{place}: running")
                stored = self._run_cell(cell, inputs, base, earlier, statistics, dense)
                announce(f"{place}: {_line_of(stored.result)}")
            else:
                announce(f"{place}: finished before")
            cells.append(_reported(cell, stored))
        return ComparisonResult(
            model=ComparedModel(**vars(self.base_model), source=self.source),
            options=SharedOptions(**{name: getattr(self.cells[0].config, name) for name in SAME_FOR_ALL}),
            corpora=self.described,
            tasks=self.tasks.asked if self.tasks else None,
            dense=dense,
            cells=tuple(cells),
            versions=installed_versions(),
        )

    def _leave_no_empty_folder(self) -> None:
        with suppress(OSError):  # it holds something
            (self.output / CELLS_FOLDER).rmdir()
            if self._made_output:
                self.output.rmdir()

    def _tokenized(self, corpus: Corpus, config: Any) -> TokenizedCorpus:
        return tokenize(corpus, self.tokenizer, config.vocab_size, bos=self.cells[0].config.bos)

    def _check_cells(self, config: Any) -> None:
        family, model = family_of(config), empty_model(config)
        inventory = family.inventory(model)
        self._calibrations: dict[tuple[str, str | None, str], TokenizedCorpus] = {}
        self._watched: dict[str, str] = {}
        for cell in self.cells:
            options = cell.config
            try:
                if options.pattern == "units":
                    method = get_method(options.method)
                    added = method.chain_for(options).added_parameters(model, family)
                    method.budget(options, model, family, inventory, added)
            except OptionError as error:
                raise as_given(error, cell.entry, {}) from None
            if not cell.calibrated:
                continue
            length = calibration_length(config, options.seq_len)
            if (key := _corpus_key(options)) not in self._calibrations:
                self._calibrations[key] = self._tokenized(load_corpus(*key), config)
            if options.recover == "none":
                drawn(self._calibrations[key], options, length)  # is refused where the corpus is too short
            elif cell.entry not in self._watched:  # the same at all ratios
                self._watched[cell.entry] = self._watched_by(options, model)

    def _watched_by(self, options: GRASPConfig, model: PreTrainedModel) -> str:
        """Hash of the text that says when weights are trained enough; whatever is too short is refused here."""
        calibration = calibration_for(model, self.tokenizer, self._calibrations[_corpus_key(options)], options)
        text = None if calibration is None else calibration.recovery_text
        if text is None or text.watched is None:
            raise ValueError("no weights are trained")
        return text.watched.sha256

    def _path_of(self, cell: Cell) -> Path:
        return self.output / CELLS_FOLDER / cell.file_name

    def _inputs(self) -> Inputs:
        return Inputs(
            base_model=self.base_model,
            evaluation=self.described,
            versions=installed_versions(python=False),
            tasks=self.tasks.asked if self.tasks else None,
        )

    def _inputs_of(self, cell: Cell) -> CellInputs:
        calibration = self._calibration(cell).corpus.sha256 if cell.calibrated else None
        return CellInputs(
            **vars(self._inputs()),
            recipe=recipe_of(cell.config),
            calibration=calibration,
            watched=self._watched.get(cell.entry),
            shared=self._shared_run(cell),
        )

    def _shared_run(self, cell: Cell) -> SharedRun | None:
        """The ratios whose gates are trained together with a cell's; None for a run of its own."""
        if not self.share_gates:
            return None
        return shared_run(cell.config, [other.config.keep_ratio for other in self.cells if other.entry == cell.entry])

    def _calibration(self, cell: Cell) -> TokenizedCorpus:
        return self._calibrations[_corpus_key(cell.config)]

    def _dense(self, announce: Callable[[str], None]) -> DenseResult:
        path, inputs = self.output / DENSE_NAME, self._inputs()
        if (stored := _finished(DenseFile, path, inputs)) is not None:
            announce("dense: finished before")
            return stored.result
        announce("dense: measuring")
        model = load_model(self.source, dtype="float32", device=self.device, **self.read_as)
        check_model(model)  # before the first forward pass: every cell would find the same
        perplexities, losses = self._measure(model)
        scored = self._scored(model)
        tasks = None if scored is None else DenseTasks(scores=scored.scores, answers=scored.answers)
        result = DenseResult(parameters=count_parameters(model), perplexity=perplexities, loss=losses, tasks=tasks)
        write_json(path, DenseFile(inputs=inputs, result=result).to_dict())
        announce(f"dense: {_line_of(result)}")
        return result

    def _run_cell(
        self,
        cell: Cell,
        inputs: CellInputs,
        base: _Base,
        earlier: SelectionCache,
        statistics: KnownStatistics,
        dense: DenseResult,
    ) -> CellFile:
        result: PrunedResult | FailedCell
        try:
            result = self._pruned(cell, base, earlier, statistics, dense)
        except GraspruneError as error:
            result = FailedCell(error=str(error))
        stored = CellFile(inputs=inputs, result=result)
        write_json(self._path_of(cell), stored.to_dict())
        return stored

    def _pruned(
        self, cell: Cell, base: _Base, earlier: SelectionCache, statistics: KnownStatistics, dense: DenseResult
    ) -> PrunedResult:
        model = base.model_for(cell.config)
        shared = self._shared_run(cell)
        known = None if shared else earlier.for_recipe(cell.config)
        start = time.perf_counter()
        texts = self._calibration(cell) if cell.calibrated else None
        pruner = GRASPPruner(cell.config)
        if shared is None:
            pruned = pruner.prune(model, self.tokenizer, texts, earlier=known, known=statistics)
            earlier.keep(cell.config, pruned.selection)
        else:
            if cell.entry not in self._runs:  # the cells of an entry are side by side: one run is held at a time
                run = pruner.prune_many(model, self.tokenizer, shared.keep_ratios, texts, known=statistics)
                self._runs = {cell.entry: run}
            pruned = self._runs[cell.entry].prune(cell.config.keep_ratio)
        seconds = time.perf_counter() - start
        wide = in_fp32(pruned.model)
        perplexities, losses = self._measure(wide)
        return PrunedResult(
            kept=pruned.record.budget.kept,
            compensation=pruned.record.compensation,
            choice=pruned.record.choice,
            seconds=round(seconds, 2),
            scores_reused=known is not None,
            choice_reused=known is not None and bool(known.candidates),
            perplexity=perplexities,
            loss=losses,
            tasks=self._pruned_tasks(wide, dense.tasks),
        )

    def _scored(self, model: PreTrainedModel) -> Scored | None:
        return None if self.tasks is None else ask_model(model, self.tokenizer, self.tasks, self.source)

    def _pruned_tasks(self, model: PreTrainedModel, dense: DenseTasks | None) -> PrunedTasks | None:
        scored = self._scored(model)
        if scored is None or dense is None or self.tasks is None:
            return None
        against = beside_dense(scored, Scored(dense.scores, dense.answers), self.tasks)
        return PrunedTasks(scores=scored.scores, against_dense=against)

    def _measure(self, model: PreTrainedModel) -> tuple[dict[str, float | None], dict[str, float]]:
        """Perplexities, None where no float holds one, and losses in nats, by corpus."""
        measured = {item.name: perplexity(model, item.windows_WS) for item in self.evaluations}
        losses = {name: result.loss for name, result in measured.items()}
        return {name: result.finite for name, result in measured.items()}, losses


def _finished(kind: type[File], path: Path, inputs: Inputs) -> File | None:
    """The stored result if it is of these inputs, and no error; a file that is damaged is none."""
    try:
        values = read_json(path)
        same = isinstance(values, dict) and values.get("inputs") == inputs.to_dict()
        stored = kind.from_dict(values, path) if same else None
    except (OSError, CheckpointError):
        return None
    return None if stored is None or isinstance(stored.result, FailedCell) else stored


class _Base:
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


def in_fp32(model: PreTrainedModel) -> PreTrainedModel:
    """The model in fp32 for measuring; the given one, and what it shares with others, stays as it is."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


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


def _reported(cell: Cell, stored: CellFile) -> CellResult:
    return CellResult(
        entry=cell.entry,
        keep_ratio=cell.config.keep_ratio,
        result=stored.result,
        recipe=stored.inputs.recipe,
        calibration=stored.inputs.calibration,
        shared=stored.inputs.shared,
    )


def _corpus_key(config: GRASPConfig) -> tuple[str, str | None, str]:
    return config.dataset, config.dataset_split, config.text_column


def _line_of(result: DenseResult | PrunedResult | FailedCell) -> str:
    if isinstance(result, FailedCell):
        return f"failed: {result.error}"
    measured = ", ".join(f"{name} {shown(value)}" for name, value in result.perplexity.items())
    if result.tasks is not None:
        name, score = headline(result.tasks.scores)
        measured += f"; {name} {100 * score.value:.1f}"
    return f"perplexity {measured}" + (f"; {result.seconds:.0f} s" if isinstance(result, PrunedResult) else "")
