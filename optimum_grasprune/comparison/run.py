"""Running the cells of a comparison on one model.

Every cell is a file of its own in the output folder, so that a comparison that was stopped is taken up where it was,
and several processes can do one together: each cell is run by the one that has claimed it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

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
    weight_bytes,
)
from ..methods import get_method
from ..methods.selection import SelectionCache
from ..model_files import ReadAs
from ..provenance import recipe_of
from ..pruner import GRASPPruner
from ..ratios import RatioRun, shared_run
from ..record import SharedRun, installed_versions, read_json
from ..record.describe import dtype_name
from ..writing import results_folder, write_json
from .accuracy import headline
from .cells import SAME_FOR_ALL, Cell, as_given, evaluation_texts
from .claims import cleared, turn
from .models import LoadedBase, identity, widths_of
from .results import (
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
    WeightBytes,
)
from .shards import Shard
from .tables import shown
from .together import Together, jobs_of

File = TypeVar("File", DenseFile, CellFile)
Announce = Callable[[str], None]
"""Shows one line of what is going on."""

CELLS_FOLDER = "cells"
DENSE_NAME = "dense.json"


def check_folder(output: Path) -> None:
    """Make the folder of a comparison, or find the one that is to be continued; CheckpointError when it is neither."""
    results_folder(output, CELLS_FOLDER, "comparison")


class Comparison:
    """Runs cells on one model. Making one checks everything that can be checked before the work starts.

    source: model folder or hub name.  corpora: evaluation corpora by name.  window: tokens in an evaluation window;
    None for the usual number, or as many as the model reads.
    limits: windows of each corpus, from its start; None for all.
    device, dtype: where the dense model is measured, and in which precision; a pruned one is measured as it was pruned.
    share_gates: whether a method that trains gates does so once for all its ratios, instead of once for each.
    tasks: that the dense model and every cell are asked; None for perplexity alone.
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
        dtype: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        share_gates: bool = False,
        tasks: TaskSuite | None = None,
    ) -> None:
        self.source, self.cells, self.output = source, tuple(cells), output
        self.device, self.dtype = device, dtype
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

    def run(self, announce: Announce = lambda line: None, shard: Shard | None = None) -> ComparisonResult:
        """Measure the dense model and every cell that is not finished yet; the whole comparison.

        announce: called with one line about every cell.
        shard: which of several processes this is that do the comparison together, or may: it runs the cells of its own
        share, and then whatever of the others' nobody has begun. Cells that others run meanwhile are not in its result.
        None runs all that is not finished, whatever is claimed.
        A cell that a GraspruneError stops holds it as `error` and stops no other; the next run tries it again, of
        several processes the one whose share it is in.
        """
        try:
            dense = self._dense(announce, shared=shard is not None)
        except GraspruneError:
            self._leave_no_empty_folder()
            raise
        session = _Session(LoadedBase(self.source, self.read_as), dense, announce)
        if shard is None:
            self._run_cells(self.cells, session)
        else:
            self._run_share(shard, session)
        done = session.done
        if len(done) == len(self.cells):
            for path in (self.output / DENSE_NAME, *map(self._path_of, self.cells)):
                cleared(path)  # claims of processes that were killed
        return ComparisonResult(
            model=ComparedModel(**vars(self.base_model), source=self.source),
            options=SharedOptions(**{name: getattr(self.cells[0].config, name) for name in SAME_FOR_ALL}),
            corpora=self.described,
            tasks=self.tasks.asked if self.tasks else None,
            dense=dense,
            cells=tuple(_reported(cell, done[cell.file_name]) for cell in self.cells if cell.file_name in done),
            versions=installed_versions(),
        )

    def _run_cells(self, cells: Iterable[Cell], session: _Session) -> None:
        """Have cells finished, one after the other."""
        for cell in cells:
            place = f"cell {self.cells.index(cell) + 1} of {len(self.cells)}, {cell.name}"
            inputs = self._inputs_of(cell)
            stored = _finished(CellFile, self._path_of(cell), inputs)
            if stored is None:
                session.announce(f"{place}: running")
                stored = self._run_cell(cell, inputs, session)
                session.announce(f"{place}: {_line_of(stored.result)}")
            else:
                session.announce(f"{place}: finished before")
            session.done[cell.file_name] = stored

    def _run_share(self, shard: Shard, session: _Session) -> None:
        inputs = {cell.file_name: self._inputs_of(cell) for cell in self.cells}

        def stored(cell: Cell) -> CellFile | None:
            return _stored(CellFile, self._path_of(cell), inputs[cell.file_name])

        jobs = jobs_of(self.cells, whole=lambda cell: self._shared_run(cell) is not None)
        together = Together(jobs, shard, self._path_of, stored)
        together.run(lambda job: self._run_cells(job, session))
        finished, running = together.results(session.done)
        session.done.update(finished)
        if running:
            session.announce(f"not finished: {', '.join(running)}; the process that is last writes the tables")

    def _leave_no_empty_folder(self) -> None:
        for folder in (self.output / CELLS_FOLDER, *([self.output] if self._made_output else [])):
            with suppress(OSError):  # it holds something
                folder.rmdir()

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
        text = None if calibration is None else calibration.training_texts.recovery
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
            dtype=self.dtype,
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
        """The ratios that share one training of gates with a cell's; None for a run of its own."""
        if not self.share_gates:
            return None
        return shared_run(cell.config, [other.config.keep_ratio for other in self.cells if other.entry == cell.entry])

    def _calibration(self, cell: Cell) -> TokenizedCorpus:
        return self._calibrations[_corpus_key(cell.config)]

    def _dense(self, announce: Announce, *, shared: bool) -> DenseResult:
        """The dense model, measured. shared: whether another process that has begun with it is waited for."""
        path, inputs = self.output / DENSE_NAME, self._inputs()
        if not shared:
            return self._dense_result(path, inputs, announce)
        with turn(
            path,
            done=lambda: _finished(DenseFile, path, inputs) is not None,
            wait=lambda holder: announce(f"dense: {holder} measures it"),
        ):
            return self._dense_result(path, inputs, announce)

    def _dense_result(self, path: Path, inputs: Inputs, announce: Announce) -> DenseResult:
        if (stored := _finished(DenseFile, path, inputs)) is not None:
            announce("dense: finished before")
            return stored.result
        announce("dense: measuring")
        model = load_model(self.source, dtype=self.dtype, device=self.device, **self.read_as)
        check_model(model)  # before the first forward pass: every cell would find the same
        perplexities, losses = self._measure(model)
        scored = self._scored(model)
        tasks = None if scored is None else DenseTasks(scores=scored.scores, answers=scored.answers)
        result = DenseResult(
            parameters=count_parameters(model),
            perplexity=perplexities,
            loss=losses,
            tasks=tasks,
            dtype=dtype_name(model),
        )
        write_json(path, DenseFile(inputs=inputs, result=result).to_dict())
        announce(f"dense: {_line_of(result)}")
        return result

    def _run_cell(self, cell: Cell, inputs: CellInputs, session: _Session) -> CellFile:
        result: PrunedResult | FailedCell
        try:
            result = self._pruned(cell, session)
        except GraspruneError as error:
            result = FailedCell(error=str(error))
        stored = CellFile(inputs=inputs, result=result)
        write_json(self._path_of(cell), stored.to_dict())
        return stored

    def _pruned(self, cell: Cell, session: _Session) -> PrunedResult:
        model = session.base.model_for(cell.config)
        shared = self._shared_run(cell)
        known = None if shared else session.earlier.for_recipe(cell.config)
        start = time.perf_counter()
        texts = self._calibration(cell) if cell.calibrated else None
        pruner = GRASPPruner(cell.config)
        if shared is None:
            pruned = pruner.prune(model, self.tokenizer, texts, earlier=known, known=session.statistics)
            session.earlier.keep(cell.config, pruned.selection)
        else:
            if cell.entry not in self._runs:  # the cells of an entry are side by side: one run is held at a time
                run = pruner.prune_many(model, self.tokenizer, shared.keep_ratios, texts, known=session.statistics)
                self._runs = {cell.entry: run}
            pruned = self._runs[cell.entry].prune(cell.config.keep_ratio)
        seconds = time.perf_counter() - start
        perplexities, losses = self._measure(pruned.model)
        return PrunedResult(
            kept=pruned.record.budget.kept,
            weight_bytes=WeightBytes(dense=weight_bytes(model), pruned=weight_bytes(pruned.model)),
            widths=widths_of(pruned.model),
            compensation=pruned.record.compensation,
            choice=pruned.record.choice,
            seconds=round(seconds, 2),
            scores_reused=known is not None,
            choice_reused=known is not None and bool(known.candidates),
            perplexity=perplexities,
            loss=losses,
            tasks=self._pruned_tasks(pruned.model, session.dense.tasks),
            dtype=dtype_name(pruned.model),
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


def _stored(kind: type[File], path: Path, inputs: Inputs) -> File | None:
    """The stored result if it is of these inputs; a file that is damaged is none."""
    try:
        values = read_json(path)
        same = isinstance(values, dict) and values.get("inputs") == inputs.to_dict()
        return kind.from_dict(values, path) if same else None
    except (OSError, CheckpointError):
        return None


def _finished(kind: type[File], path: Path, inputs: Inputs) -> File | None:
    """The same, if it is no error."""
    stored = _stored(kind, path, inputs)
    return None if stored is None or isinstance(stored.result, FailedCell) else stored


class _Session:
    """What the cells of one call of `run` share. done: what came of each cell, by the name of its file."""

    def __init__(self, base: LoadedBase, dense: DenseResult, announce: Announce) -> None:
        self.base, self.dense, self.announce = base, dense, announce
        self.earlier, self.statistics = SelectionCache(), KnownStatistics()
        self.done: dict[str, CellFile] = {}


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
