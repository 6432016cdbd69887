"""The pruner: one call per stage of the algorithm, in the paper's order.  (GRASPrune, arXiv 2604.19398)"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from pydantic import JsonValue
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .admission import check_model
from .calibration_data import Calibration, calibration_for
from .config import GRASPConfig
from .corpora import TokenizedCorpus
from .errors import GraspruneError, OptionError
from .execution import KnownStatistics, Peers, Resumable, Runner, RunState, runner_for, shared
from .export.base_card import base_card
from .export.checkpoint import read_numbers
from .export.outputs import Source, corpora, local, models
from .families import family_of
from .generation import generation_settings, set_generation
from .methods import get_method
from .methods.selection import Selection
from .numerics import on_plain_torch
from .problem import NO_TEXTS, NO_TOKENS_NS, Problem
from .provenance import budget_of, handed_on, record_of, replayed_numbers, replayed_record, report_numbers, run_of
from .pruned import PrunedModel
from .ratios import RatioRun, at_ratios, shared_run
from .record import Record, SharedRun
from .record.describe import units_budget
from .recovery.chain import Chain
from .replay import applied_in_place, replayed
from .running import check_can_run
from .selection import Started, choose
from .sharing import Sharing
from .units import Budget, PruningPlan


class GRASPPruner:
    """Prunes models by a recipe.

    >>> pruned = GRASPPruner(GRASPConfig(keep_ratio=0.8)).prune(model, tokenizer)
    >>> pruned.save("pruned-llama")

    Or in the style of Optimum's quantizers, which keep what they made:

    >>> pruner = GRASPPruner(GRASPConfig(keep_ratio=0.8))
    >>> smaller = pruner.prune_model(model, tokenizer)
    >>> pruner.save("pruned-llama")

    peers: of `execution.joined`, where several processes do the work together, each of which makes the same calls.

    After `prune_model`, `prune` or `replay`, `model`, `plan` and `record` are those of the last `PrunedModel`.
    """

    def __init__(self, config: GRASPConfig | None = None, peers: Peers | None = None) -> None:
        self.config, self.peers = config or GRASPConfig(), peers or Peers()
        self.method = get_method(self.config.method)
        self.method.check(self.config)
        self._last: PrunedModel | None = None

    @property
    def chain(self) -> Chain:
        """What is to make up for the cut."""
        return self.method.chain_for(self.config)

    def prune_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Any] | TokenizedCorpus | None = None,
        *,
        inplace: bool = False,
    ) -> PreTrainedModel:
        """The model alone of what `prune` returns; `save` writes it."""
        return self.prune(model, tokenizer, texts, inplace=inplace).model

    @on_plain_torch
    def prune(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Any] | TokenizedCorpus | None = None,
        *,
        earlier: Selection | None = None,
        known: KnownStatistics | None = None,
        state: RunState | None = None,
        inplace: bool = False,
    ) -> PrunedModel:
        """A smaller dense model; the given one stays as it was, and shares its embeddings, head and norms with it.

        With another `pattern` than "units" it is a model of the same class and size, with zeros in it.

        texts: calibration texts, or conversations (lists of messages with `role` and `content`), in place of the corpus
            that the configuration names; a corpus that is tokenized already is taken as it is.
        earlier: `selection` of a model that was pruned by the same method on the same model and corpus, which need not
            be computed again. Its scores fit any budget; with its candidates, the recipes may differ in nothing but
            what makes up for the cut: `scores_alone()` leaves them out.
        known: statistics of models and texts, gathered by other runs; those that are missing are gathered and added.
        state: where the work is kept while it goes on, so that the same call goes on from there; not with `earlier` or
            `known`. What comes out has the same bytes as without. It is for the caller to remove when the model is
            saved.
        inplace: whether the smaller model may take the given one's place, so that there is never more than one in
            memory: the given one is of no use afterwards, its layers' weights being on the meta device. Where training
            needs both (`recover`, on more text than what the dense model makes of it is held for), or the dense model
            has to be at hand in case that training does not help, it stays until the end.
        Raises ModelError, UnsupportedFamilyError, BudgetError, OptionError or DataError before any training starts.
        """
        if state is not None and (earlier is not None or known is not None):
            raise GraspruneError("a run that starts from what an earlier one found keeps no state")
        work = self._work(model, tokenizer, texts, [self.config], known, state)
        (problem,) = work.problems
        problem = replace(problem, inplace=inplace)
        return self._finished(work, problem, self.method.selection(problem, earlier))

    @on_plain_torch
    def prune_many(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        keep_ratios: Iterable[float],
        texts: Sequence[Any] | TokenizedCorpus | None = None,
        *,
        nested: bool = False,
        known: KnownStatistics | None = None,
        state: RunState | None = None,
    ) -> RatioRun:
        """Smaller models at several keep ratios, from one run: scores, statistics and gates are those of all of them.

        >>> for pruned in pruner.prune_many(model, tokenizer, [0.9, 0.8, 0.7]):
        ...     pruned.save(f"pruned-{pruned.record.recipe['keep_ratio']}")

        keep_ratios: in place of the configuration's; what comes out is in order, largest ratio first, and each model is
        made when the loop asks for it.  texts, known: as in `prune`.
        nested: whether a unit that goes at a ratio stays away at all smaller ones.  state: as in `prune`.
        Everything is checked before it returns: raises what `prune` raises, and OptionError for ratios that cannot be
        had together.
        """
        configs = at_ratios(self.config, keep_ratios, nested=nested)
        work = self._work(model, tokenizer, texts, configs, known, state, nested=nested)

        def finish(
            problem: Problem, selection: Selection, shared: SharedRun | None, started: Started | None
        ) -> PrunedModel:
            return self._finished(work, problem, selection, shared, started)

        return RatioRun(work.problems, finish, nested=nested)

    @on_plain_torch
    def replay(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        plan: PruningPlan,
        origin: Record | None = None,
        *,
        state: RunState | None = None,
        inplace: bool = False,
    ) -> PrunedModel:
        """The pruned model that a saved plan describes; same base model, same bytes.

        origin: the record that the plan was read from. What it says of recipe, calibration and budget is carried over;
        weights that were refitted to calibration data are refitted to the same data, which must still be there.
        state, inplace: as in `prune`.
        With another `compensation` than "auto" in the configuration, that one is applied instead of all that made up
        for the cut, and with another `recover` than "none" that training instead of the recorded one, if any. Raises
        ModelError for a model that cannot be pruned, and PlanError when the plan is for one of other shapes, or its
        corpus has changed.
        """
        if self.config.pattern != "units":
            raise OptionError("pattern", self.config.pattern, "a plan holds whole units")
        check_model(model)
        family = family_of(model.config)
        generation = generation_settings(model)
        numbers = None if plan.source is None else read_numbers(plan.source.parent)
        corpus = self.config.dataset
        if origin is not None and origin.calibration is not None:
            corpus = str(origin.recipe.get("dataset", ""))
        sources = [*models("the model that was pruned", model.config.name_or_path), *corpora("the corpus", corpus)]
        sources += local("the plan", plan.source)
        if origin is not None and isinstance(watched := origin.recipe.get("recover_watch"), str):
            sources += corpora("the text that is watched", watched)
        sources += corpora("the text that is watched", self.config.recover_watch)
        selected, calibration = replayed(
            model, tokenizer, plan, origin, self.config, state, self.peers, inplace=inplace
        )
        sources += [] if calibration is None else _texts_of(calibration)
        set_generation(selected.model, generation)
        budget = units_budget(family, model, selected.model, None)
        record = record_of(self.config, model, selected, budget, calibration)
        if origin is not None:
            applied = applied_in_place(origin, self.config)
            record, numbers = replayed_record(record, origin, applied), replayed_numbers(numbers, applied)
        base = base_card(model.config.name_or_path)
        self._last = PrunedModel(
            selected.model, selected.plan, record, tokenizer, sources=sources, base=base, numbers=numbers
        )
        return self._last

    def save(
        self, output: str | os.PathLike[str], *, overwrite: bool = False, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write the model that was pruned last as a checkpoint folder, as `PrunedModel.save` does."""
        self._pruned_last().save(output, overwrite=overwrite, max_shard_size=max_shard_size)

    @property
    def model(self) -> PreTrainedModel:
        """The model that was pruned last; GraspruneError where none was."""
        return self._pruned_last().model

    @property
    def plan(self) -> PruningPlan | None:
        """Its plan."""
        return self._pruned_last().plan

    @property
    def record(self) -> Record:
        """Its record."""
        return self._pruned_last().record

    def _pruned_last(self) -> PrunedModel:
        if self._last is None:
            raise GraspruneError("nothing has been pruned yet: call prune_model first")
        return self._last

    def _work(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Any] | TokenizedCorpus | None,
        configs: Sequence[GRASPConfig],
        known: KnownStatistics | None,
        state: RunState | None,
        *,
        nested: bool = False,
    ) -> _Work:
        check_model(model)
        generation = generation_settings(model)
        sources = [*models("the model that was pruned", model.config.name_or_path)]
        sources += corpora("the corpus", self.config.dataset if texts is None else "")
        sources += corpora("the text that is watched", self.config.recover_watch)
        runner = shared(runner_for(model), self.peers)
        for config in configs:
            check_can_run(runner, config, self.method.chain_for(config))
        budgets = [self._budget(runner, config) for config in configs]
        calibration = calibration_for(model, tokenizer, texts, configs[0])
        tokens_NS, held_out_NS, training_texts = NO_TOKENS_NS, NO_TOKENS_NS, NO_TEXTS
        if calibration is not None:
            tokens_NS, held_out_NS = calibration.tokens_NS, calibration.held_out_NS
            training_texts = calibration.training_texts
        ratios = [config.keep_ratio for config in configs]
        if state is not None:
            sequences = {} if calibration is None else calibration.sequences
            asked: list[JsonValue] = list(ratios)
            of = run_of(configs[0], keep_ratios=asked, nested=nested, of_smallest=configs[-1].compensation)
            runner = Resumable.begun(runner, state, of, sequences)
        first = self.method.problem(
            runner, budgets[0], tokens_NS, held_out_NS, configs[0], training_texts, others=configs[1:]
        )
        if known is not None:
            first = replace(first, known=known)
        if len(configs) > 1:
            depends = shared_run(configs[0], ratios, nested=nested) is not None
            first = replace(first, sharing=Sharing(runner, ratios, depends=depends))
        others = [first.at(budget, config) for budget, config in zip(budgets[1:], configs[1:], strict=True)]
        return _Work(tokenizer, generation, sources, calibration, (first, *others))

    def _budget(self, runner: Runner, config: GRASPConfig) -> Budget:
        if config.pattern != "units":  # where single weights are cut, every unit stays
            return Budget(runner.inventory.total_cost)
        added = self.method.chain_for(config).added_parameters(runner.model, runner.family)
        return self.method.budget(config, runner.model, runner.family, runner.inventory, added)

    def _finished(
        self,
        work: _Work,
        problem: Problem,
        selection: Selection,
        shared: SharedRun | None = None,
        started: Started | None = None,
    ) -> PrunedModel:
        trainings, chain = problem.runner.trainings, self.method.chain_for(problem.config)
        before = len(trainings)
        selected = choose(selection.candidates, chain, problem, started)
        set_generation(selected.model, deepcopy(work.generation))
        numbers = report_numbers(problem, selected, selection)
        del trainings[before:]  # what makes up for this cut is no part of another model's course
        budget = budget_of(problem, selected)
        record = record_of(problem.config, problem.model, selected, budget, work.calibration, shared)
        if problem.sharing is not None:
            record = handed_on(record, problem.sharing, chain)
        kept = None if selected.plan is None else selection
        base = base_card(problem.model.config.name_or_path)
        self._last = PrunedModel(
            selected.model, selected.plan, record, work.tokenizer, kept, work.sources, base, numbers
        )
        return self._last


def _texts_of(calibration: Calibration) -> list[Source]:
    """The texts that a calibration was read from."""
    sources = corpora("the corpus", calibration.tokenized.corpus.source)
    text = calibration.training_texts.recovery
    if text is not None and text.watched is not None:
        sources += corpora("the text that is watched", text.watched.source)
    return sources


@dataclass(frozen=True)
class _Work:
    """What is to be pruned. problems: one a ratio, largest first."""

    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    sources: Sequence[Source]
    calibration: Calibration | None
    problems: Sequence[Problem]
