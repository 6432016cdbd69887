"""Candidates judged by their loss on held-out calibration data, and each stage of recovery kept only if it helps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from ..errors import GraspruneWarning
from ..execution import Runner
from ..problem import Problem
from ..progress import track
from ..record import Judgement, RecoveryRecord
from ..recovery.base import TrainedStage
from ..recovery.chain import Chain
from ..recovery.reference import Cut, Reference, Settings, Trial
from ..sharing import Decision
from ..surgery import Draft
from ..units import ElementMask, PruningPlan, UnitMask

FINALISTS = 2
"""Candidates whose weights are refitted, which costs more than measuring a loss."""


@dataclass(frozen=True)
class Selected:
    """A candidate with what makes up for its cut.

    candidate: its name.  stages: names of those in force.  settings: of those that refit weights.
    judgements: all that was measured to decide.  recovery: the training of the weights, where there was one.
    """

    cut: Cut
    model: PreTrainedModel
    stages: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    candidate: str = ""
    recovery: RecoveryRecord | None = None

    @property
    def plan(self) -> PruningPlan | None:
        """The units that stay; None where single weights were cut."""
        return None if isinstance(self.cut, ElementMask) else self.cut

    def resting(self, draft: Draft) -> Choice:
        """The same, not built; draft: what it can be built of."""
        return Choice(self.cut, draft, self.stages, self.settings, self.judgements, self.candidate)


@dataclass(frozen=True)
class Choice:
    """A candidate that is not built yet; the rest is as in `Selected`."""

    cut: Cut
    draft: Draft
    stages: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    candidate: str = ""

    def built(self, runner: Runner, *, inplace: bool) -> Selected:
        """The same, built; runner: of the dense model.  inplace: as in `Draft.build`."""
        return self.of(runner.built(self.draft, inplace=inplace), self.cut)

    def of(self, model: PreTrainedModel, cut: Cut) -> Selected:
        """The same when it is built. cut: what is in force in the model."""
        return Selected(cut, model, self.stages, self.settings, self.judgements, self.candidate)


@dataclass(frozen=True)
class Started:
    """What is chosen before anything is trained.

    first: what training starts from.  best: what is had, if that does not help; most often the same.
    """

    first: Choice
    best: Choice

    def decision(self, problem: Problem) -> Decision:
        """The same, for other ratios to go by."""
        return Decision(
            keep_ratio=problem.config.keep_ratio,
            candidate=self.first.candidate,
            plan=Trial(self.first.cut).plan,
            stages=self.first.stages,
            settings=self.first.settings,
            judgements=self.best.judgements,  # before anything was rebuilt
        )


def choose(
    candidates: Mapping[str, UnitMask | ElementMask], chain: Chain, problem: Problem, started: Started | None = None
) -> Selected:
    """The best candidate with the best of the chain; with nothing held out, the last one with all of it.

    Each candidate is measured as it is, the best few with refitted weights too, and the winner alone is built, and
    trained on: in the place of the dense model, where the problem says so and nothing needs that any more. In a run
    through several ratios that has decided already, that candidate alone is measured, with those settings.
    started: of `start`, what was trained together with other ratios' in such a run.
    """
    reference = Reference.of(problem)
    shared = started is not None
    started = started or _started(candidates, chain, reference, problem)
    best, first = started.best, started.first
    if not chain.trained_stages and not chain.rebuilding_stages:
        return best.built(problem.runner, inplace=problem.inplace)
    other = best.draft is not first.draft
    alone = chain.alone(reference) if problem.inplace and not other else None
    again = bool(chain.rebuilding_stages) and not other and alone is None
    instead = best if other or again else None
    cut = chain.before_stages(first.cut)
    if shared:
        model = problem.runner.built(first.draft, again=True)
        reference = reference.having_learnt(problem.config.keep_ratio)
    else:
        model = chain.built(reference, first.draft, Trial(cut).plan, inplace=alone is not None, again=again)
    selected = first.of(model, cut)
    if chain.rebuilding_stages:
        selected = selected if shared else _rebuilt(selected, chain, problem)
        if instead is not None and selected.judgements and selected.judgements[-1].loss <= _lowest(best.judgements):
            instead = None
    gone = bool(chain.rebuilding_stages) and alone is not None
    selected = _all_trained(selected, instead, chain, alone or reference, problem, gone=gone)
    if gone:
        _tell_where_it_is_no_better(selected, _lowest(best.judgements))
    return selected


def _tell_where_it_is_no_better(selected: Selected, before: float) -> None:
    """Warn where the model as it was cut is gone, and was better on held-out text. before: its loss."""
    loss = _lowest(_in_force(selected))
    if before < loss < math.inf:
        warnings.warn(
            f"held-out text prefers the model as it was cut, with a loss of {before:.3f}, to what was made of it in "
            f"its place, with {loss:.3f}: --compensation none leaves it so",
            GraspruneWarning,
            stacklevel=2,
        )


def _rebuilt(selected: Selected, chain: Chain, problem: Problem) -> Selected:
    """The selected model, which was rebuilt, measured where it was before that."""
    selected = replace(selected, stages=(*selected.stages, *(stage.name for stage in chain.rebuilding_stages)))
    if not selected.judgements:
        return selected
    loss = problem.runner.beside(selected.model).mean_loss(problem.held_out_NS)
    judgement = _judgement(selected.candidate, selected.stages, selected.settings, loss)
    return replace(selected, judgements=(*selected.judgements, judgement))


def _in_force(selected: Selected) -> list[Judgement]:
    """What was measured of the selected model as it stands."""
    compensation = " ".join(selected.stages) or "none"
    return [each for each in selected.judgements if each.compensation == compensation]


def _lowest(judgements: Sequence[Judgement]) -> float:
    """The lowest loss that was measured."""
    return min((judgement.loss for judgement in judgements), default=math.inf)


def start(candidates: Mapping[str, UnitMask | ElementMask], chain: Chain, problem: Problem) -> Started:
    """What is trained together with other ratios' models, rebuilt where the chain does so, and at rest."""
    reference = Reference.of(problem)
    started = _measured(_started(candidates, chain, reference, problem), problem)
    for choice in (started.best, started.first):
        choice.draft.rest()
    if not chain.rebuilding_stages:
        return started
    first = started.first
    cut = chain.before_stages(first.cut)
    model, draft = chain.rebuilt(reference, first.draft, Trial(cut).plan)
    return replace(started, first=_rebuilt(first.of(model, cut), chain, problem).resting(draft))


def refit(candidate: str, mask: UnitMask | ElementMask, chain: Chain, problem: Problem) -> Choice:
    """A candidate with the best that the chain's stages make of its weights, before anything is rebuilt or trained."""
    judge = _Judge(problem)
    for refitted in _refitted({candidate: chain.trials(_cut(mask))}, chain, Reference.of(problem)):
        judge.consider(refitted)
    return judge.selected()


def decide(candidates: Mapping[str, UnitMask | ElementMask], chain: Chain, problem: Problem) -> Decision | None:
    """What `choose` would train on, for other ratios to go by; None where nothing is held out to decide on."""
    if not len(problem.held_out_NS):
        return None
    return _started(candidates, chain, Reference.of(problem), problem).decision(problem)


def _started(
    candidates: Mapping[str, UnitMask | ElementMask], chain: Chain, reference: Reference, problem: Problem
) -> Started:
    cuts = {name: _cut(mask) for name, mask in candidates.items()}
    decision = None if problem.sharing is None else problem.sharing.decision
    if not len(problem.held_out_NS):
        *_, cut = cuts.values()
        only = next(_refitted({"": chain.trials(cut)[:1]}, chain, reference))
    elif decision is not None and decision.candidate in cuts:
        only = _as_decided(cuts[decision.candidate], decision, chain, reference, problem)
    else:
        return _judged(cuts, chain, reference, problem)
    return Started(first=only, best=only)


def _judged(cuts: Mapping[str, Cut], chain: Chain, reference: Reference, problem: Problem) -> Started:
    """Both with all that was measured."""
    judge = _Judge(problem)
    for name, cut in track(cuts.items(), "candidates", "mask"):
        (bare,) = Chain().refitted(reference, [Trial(cut)])
        judge.consider(Choice(cut, bare, candidate=name))
    if chain.weight_stages:
        finalists = {name: chain.trials(cuts[name]) for name in judge.ranking()[:FINALISTS]}
        total = sum(map(len, finalists.values()))
        for refitted in track(_refitted(finalists, chain, reference), "refitted", "model", total):
            judge.consider(refitted)
    best = judge.selected()
    refitted_first = any(stage.starts_refitted for stage in chain.trained_stages)
    return Started(first=judge.to_train_on() if refitted_first else best, best=best)


def _as_decided(cut: Cut, decision: Decision, chain: Chain, reference: Reference, problem: Problem) -> Choice:
    """The candidate with what was decided at another ratio; where that was this one, with all that was measured."""
    if any(stage.name in decision.stages for stage in chain.weight_stages):
        trials = [trial for trial in chain.trials(cut) if trial.settings == decision.settings]
        (choice,) = _refitted({decision.candidate: trials}, chain, reference)
    else:
        (bare,) = Chain().refitted(reference, [Trial(cut)])
        choice = Choice(cut, bare, candidate=decision.candidate)
    if choice.cut == decision.plan and problem.config.keep_ratio == decision.keep_ratio:
        return replace(choice, judgements=decision.judgements)
    return choice if chain.together is not None else _with_its_loss(choice, problem)


def _measured(started: Started, problem: Problem) -> Started:
    """The same with the loss before anything is trained, unless that is known.

    Of several ratios the largest is measured, beside that which was decided at: the others have more to make up for,
    and are trained in any case.
    """
    sharing, choice = problem.sharing, started.first
    largest = sharing is None or problem.config.keep_ratio == sharing.keep_ratios[0]
    if choice.judgements or not largest or not len(problem.held_out_NS):
        return started
    choice = _with_its_loss(choice, problem)
    return Started(first=choice, best=choice)


def _with_its_loss(choice: Choice, problem: Problem) -> Choice:
    judge = _Judge(problem)
    judge.consider(choice)
    return judge.selected()


def _cut(mask: UnitMask | ElementMask) -> Cut:
    return PruningPlan.from_mask(mask) if isinstance(mask, UnitMask) else mask


def _refitted(trials: Mapping[str, Sequence[Trial]], chain: Chain, reference: Reference) -> Iterator[Choice]:
    """The draft of every trial; trials: by the name of the candidate that they are of."""
    stages = tuple(stage.name for stage in chain.weight_stages)
    named = [(name, trial) for name, of_candidate in trials.items() for trial in of_candidate]
    drafts = chain.refitted(reference, [trial for _, trial in named])
    for (name, trial), draft in zip(named, drafts, strict=True):
        yield Choice(trial.cut, draft, stages, trial.settings, candidate=name)


class _Judge:
    """Measures candidates one after another and holds on to the best only, which rest meanwhile."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.judgements: list[Judgement] = []
        self.best: Choice | None = None
        self.best_refitted: Choice | None = None

    def consider(self, choice: Choice) -> None:
        """Measure a candidate."""
        loss = self.problem.runner.beside(choice.draft.model).mean_loss(self.problem.held_out_NS)
        if not self.judgements or loss < min(judgement.loss for judgement in self.judgements):
            self.best = choice
        of_refitted = [judgement.loss for judgement in self.judgements if judgement.compensation != "none"]
        if choice.stages and loss < min(of_refitted, default=math.inf):
            self.best_refitted = choice
        self.judgements.append(_judgement(choice.candidate, choice.stages, choice.settings, loss))
        if any(choice is each for each in (self.best, self.best_refitted)):
            choice.draft.rest()
        else:
            choice.draft.drop()

    def ranking(self) -> list[str]:
        """Names of the candidates, best first."""
        return [judgement.candidate for judgement in sorted(self.judgements, key=lambda judgement: judgement.loss)]

    def selected(self) -> Choice:
        """The best candidate measured, with everything that was measured."""
        if self.best is None:
            raise ValueError("nothing was measured")
        return replace(self.best, judgements=tuple(self.judgements))

    def to_train_on(self) -> Choice:
        """The best one with refitted weights, if there is one: they may come to their own only with training."""
        best = self.selected()
        return best if self.best_refitted is None else replace(self.best_refitted, judgements=best.judgements)


def _all_trained(
    selected: Selected,
    instead: Choice | None,
    chain: Chain,
    reference: Reference,
    problem: Problem,
    *,
    gone: bool = False,
) -> Selected:
    """The selected model with what each stage learns in turn folded in, where that is better.

    instead: what is had, and trained on by the others, where the first of them does not help; None for the same model.
    gone: whether what was measured before can no longer be had.
    """
    if not chain.trained_stages and instead is not None and selected.judgements:
        built = instead.built(problem.runner, inplace=problem.inplace)
        return replace(built, judgements=selected.judgements)
    for stage in chain.trained_stages:
        shared = stage is chain.together and reference.learnt is not None
        selected, helps = _trained(selected, stage, reference, problem, shared=shared, gone=gone)
        if instead is not None and not helps:
            built = instead.built(problem.runner, inplace=problem.inplace and stage is chain.trained_stages[-1])
            selected = replace(built, judgements=selected.judgements, recovery=selected.recovery)
        instead = None
    return selected


def _trained(
    selected: Selected,
    stage: TrainedStage,
    reference: Reference,
    problem: Problem,
    *,
    shared: bool = False,
    gone: bool = False,
) -> tuple[Selected, bool]:
    """The selected model with what the stage learns folded in, if its held-out loss is lower, and whether it is.

    A stage that has a verdict of its own, on more text than this, is taken by its word.
    shared: whether it has learnt already, together with other ratios' models; then what was not measured before is
    taken as it is.  gone: as in `_all_trained`.
    """
    plan = Trial(selected.cut).plan
    learnt = stage.train(reference if shared else replace(reference, learnt=None), selected.model, plan)
    stages, judgements = (*selected.stages, stage.name), selected.judgements
    better, recovery = learnt.verdict, learnt.record or selected.recovery
    if len(problem.held_out_NS) and (judgements or not shared):
        lowest = _lowest(_in_force(selected) if gone else judgements)
        with learnt.in_force():
            loss = problem.runner.beside(selected.model).mean_loss(problem.held_out_NS)
        judgements = (*judgements, _judgement(selected.candidate, stages, selected.settings, loss))
        better = loss < lowest if better is None else better
    selected = replace(selected, judgements=judgements, recovery=recovery)
    if better is False:
        return selected, False
    return replace(selected, cut=learnt.fold(), stages=stages), True


def _judgement(candidate: str, stages: Sequence[str], settings: Settings, loss: float) -> Judgement:
    return Judgement(candidate=candidate, compensation=" ".join(stages) or "none", settings=settings, loss=loss)
