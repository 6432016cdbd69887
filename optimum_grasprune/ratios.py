"""One model at several keep ratios: what does not depend on the ratio is worked out once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from .config import GRASPConfig
from .errors import OptionError
from .methods import Problem, get_method
from .methods.selection import Selection
from .numerics import plain_work
from .pruned import PrunedModel
from .record import SharedRun, TrainedWith
from .recovery.base import NumbersStage
from .recovery.chain import Chain
from .recovery.reference import Reference, Trial
from .recovery.together import Sliced, learn_together
from .selection import Started, decide, refit, start
from .sharing import Decision, Sharing
from .units import ElementMask, PruningPlan, UnitMask


def at_ratios(config: GRASPConfig, keep_ratios: Iterable[object], *, nested: bool = False) -> list[GRASPConfig]:
    """The configuration at each of the ratios, largest first.

    nested: whether masks are to be nested.  Raises OptionError for a ratio that is none or stands there twice, and for
    what makes sense at one ratio only, or with several.
    """
    configs = [config.model_copy(update={"keep_ratio": ratio}) for ratio in keep_ratios]
    if not configs:
        raise OptionError("keep_ratio", None, "should be at least one ratio")
    configs.sort(key=lambda each: -each.keep_ratio)
    *larger_ones, smallest = configs
    configs = [*(get_method(each.method).beside_smaller(each) for each in larger_ones), smallest]
    for larger, smaller in pairwise(configs):
        if larger.keep_ratio == smaller.keep_ratio:
            raise OptionError("keep_ratio", smaller.keep_ratio, "is given twice")
    if len(configs) > 1 and ":" in config.pattern:
        raise OptionError("pattern", config.pattern, "keeps exactly half of the weights, which leaves no other ratio")
    if nested and len(configs) == 1:
        raise OptionError("nested", nested, "nests the masks of several keep ratios, and there is one")
    if nested and config.pattern != "units":
        raise OptionError("nested", nested, f"is for whole units; pattern {config.pattern} cuts single weights")
    for each in configs:
        get_method(each.method).check(each)
    return configs


def shared_run(config: GRASPConfig, keep_ratios: Sequence[float], *, nested: bool = False) -> SharedRun | None:
    """The run of several ratios as a record has it, where what comes out at one depends on the others; else None."""
    method = get_method(config.method)
    goes_on = config.pattern == "units" and method.chain_for(method.beside_smaller(config)).together is not None
    depends = nested or method.trains_at_all_budgets or goes_on
    return SharedRun(keep_ratios=tuple(keep_ratios), nested=nested) if len(keep_ratios) > 1 and depends else None


class _Finish(Protocol):
    """Chooses among the candidates of a problem, makes up for the cut, and says how it came to be."""

    def __call__(
        self, problem: Problem, selection: Selection, shared: SharedRun | None, started: Started | None
    ) -> PrunedModel: ...


@dataclass(frozen=True)
class _Together:
    """What is trained together with other ratios' models, and what it was chosen by and from."""

    problem: Problem
    selection: Selection
    started: Started

    @property
    def plan(self) -> PruningPlan:
        """What it keeps."""
        return Trial(self.started.first.cut).plan


class RatioRun:
    """The pruned models of several ratios, largest ratio first, each made when it is asked for.

    problems: the model at each of the ratios, largest first; they share their statistics.  nested: whether what goes at
    a ratio stays away at smaller ones.  finish: makes a pruned model of a choice of units.
    """

    def __init__(self, problems: Sequence[Problem], finish: _Finish, *, nested: bool = False) -> None:
        self.keep_ratios = tuple(problem.config.keep_ratio for problem in problems)
        self.nested = nested
        self._problems, self._finish = tuple(problems), finish
        self._method = get_method(problems[0].config.method)
        self._kept: dict[float, UnitMask] = {}
        self._known: dict[int, Selection] = {}
        self._together: dict[float, _Together] = {}
        self._deepest = self._problems[-1]

    def __iter__(self) -> Iterator[PrunedModel]:
        """One pruned model a ratio; no other is held on to meanwhile."""
        return map(self.prune, self.keep_ratios)

    def prune(self, keep_ratio: float) -> PrunedModel:
        """The pruned model of one of the ratios. OptionError for another, or out of turn where masks are nested."""
        if keep_ratio not in self.keep_ratios:
            known = ", ".join(map(repr, self.keep_ratios))
            raise OptionError("keep_ratio", keep_ratio, f"is none of this run's, which are {known}")
        config = self._deepest.config
        shared = shared_run(config, self.keep_ratios, nested=self.nested)
        with plain_work(config):
            self._prepare()
            one = self._together.get(keep_ratio)
            problem = self._allowed(self.keep_ratios.index(keep_ratio)) if one is None else one.problem
            if problem is self._deepest:
                shared = None  # it is what a run of its own makes
            if one is not None:
                return self._finish(problem, one.selection, shared, one.started)
            pruned = self._finish(problem, self._selected(problem), shared, None)
        if self.nested and pruned.plan is not None:
            self._kept[keep_ratio] = pruned.plan.mask(problem.inventory)
        return pruned

    def _prepare(self) -> None:
        """Do what is done for all ratios together: decide, and train what they share.

        Candidates are judged at the smallest ratio, where most depends on it, as a run for that alone judges them.
        """
        sharing = self._deepest.sharing
        if sharing is None or not sharing.depends:
            return
        chain = self._chain_of(self._deepest)
        if chain.together is not None and not sharing.numbers:
            self._train_together(chain.together, sharing)
        elif sharing.decision is None:
            sharing.decision = decide(self._of_the_deepest.candidates, chain, self._deepest)

    def _train_together(self, stage: NumbersStage, sharing: Sharing) -> None:
        deepest = self._started(self._deepest, self._of_the_deepest.candidates)
        if len(self._deepest.held_out_NS):
            sharing.decision = self._decision(deepest.decision(self._deepest))
        for place, ratio in enumerate(self.keep_ratios):
            problem = self._allowed(place)
            selection = self._selected(problem)
            own = problem is self._deepest
            started = deepest if own else self._started(problem, selection.candidates)
            self._together[ratio] = _Together(problem, selection, started)
            if self.nested:
                self._kept[ratio] = self._together[ratio].plan.mask(problem.inventory)
        firsts = {ratio: each.started.first for ratio, each in self._together.items()}
        plans = {ratio: each.plan for ratio, each in self._together.items()}
        sharing.models = {
            ratio: TrainedWith(plan=plans[ratio], compensation=first.stages, settings=first.settings)
            for ratio, first in firsts.items()
        }
        models = {ratio: Sliced(first.draft, plans[ratio]) for ratio, first in firsts.items()}
        sharing.numbers = learn_together(stage, Reference.of(self._deepest), models)

    def _decision(self, decision: Decision) -> Decision:
        """What was decided at the smallest ratio; how to refit, if its own weights are not, at the next larger one."""
        beside = self._problems[-2]
        if self._chain_of(beside).weight_stages == self._chain_of(self._deepest).weight_stages:
            return decision
        selection = self._known[id(beside)] = self._selected(beside)  # a search of widths is not done twice
        candidates = selection.candidates
        name = decision.candidate if decision.candidate in candidates else [*candidates][-1]
        how = refit(name, candidates[name], self._chain_of(beside), beside)
        return replace(decision, stages=how.stages, settings=how.settings)

    def _started(self, problem: Problem, candidates: Mapping[str, UnitMask | ElementMask]) -> Started:
        return start(candidates, self._chain_of(problem), problem)

    def _chain_of(self, problem: Problem) -> Chain:
        return self._method.chain_for(problem.config)

    def _allowed(self, place: int) -> Problem:
        """The problem at a ratio, with no more units than the next larger ratio kept where masks are nested."""
        problem = self._problems[place]
        if not self.nested or place == 0:
            return problem
        larger = self.keep_ratios[place - 1]
        if larger not in self._kept:
            ratio = self.keep_ratios[place]
            raise OptionError("keep_ratio", ratio, f"is nested in {larger!r}, which has to be made first")
        return problem.at(problem.budget.within(self._kept[larger]), problem.config)

    def _selected(self, problem: Problem) -> Selection:
        if problem is self._deepest:
            return self._of_the_deepest
        return self._known.get(id(problem)) or self._selection(problem)

    @cached_property
    def _of_the_deepest(self) -> Selection:
        return self._selection(self._deepest)

    @cached_property
    def _selection(self) -> Callable[[Problem], Selection]:
        return self._method.selections(self._problems)
