"""Candidates judged by their loss on held-out calibration data, and each stage of recovery kept only if it helps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from ..problem import Problem
from ..progress import track
from ..recovery.base import TrainedStage
from ..recovery.chain import Chain, as_recorded
from ..recovery.reference import Reference, Settings, Trial
from ..units import PruningPlan, UnitMask

FINALISTS = 2
"""Candidates whose weights are refitted, which costs more than measuring a loss."""


@dataclass(frozen=True)
class Judgement:
    """One measurement.

    compensation: names of the stages in force, or "none".  settings: of those that refit weights.
    loss: mean next-token loss on the held-out sequences, in nats.
    """

    candidate: str
    compensation: str
    settings: Settings
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON types."""
        parts = {"candidate": self.candidate, "compensation": self.compensation}
        return {**parts, **as_recorded(self.settings), "loss": self.loss}


@dataclass(frozen=True)
class Selected:
    """A candidate with what makes up for its cut.

    stages: names of those in force.  settings: of those that refit weights.  judgements: all that was measured to
    decide.
    """

    plan: PruningPlan
    model: PreTrainedModel
    stages: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()


def choose(candidates: Mapping[str, UnitMask], chain: Chain, task: Problem) -> Selected:
    """The best candidate with the best of the chain; with nothing held out, the last one with all of it.

    Each candidate is measured as it is, the best few with refitted weights too, and the winner alone is trained on.
    """
    plans = {name: PruningPlan.from_mask(mask) for name, mask in candidates.items()}
    reference = Reference.of(task)
    if len(task.held_out_NS):
        judge = _Judge(task)
        for name, plan in track(plans.items(), "candidates", "mask"):
            (bare,) = Chain().refitted(reference, [Trial(plan)])
            judge.consider(Selected(plan, bare), name)
        if chain.weight_stages:
            finalists = {name: chain.trials(plans[name]) for name in judge.ranking()[:FINALISTS]}
            total = sum(map(len, finalists.values()))
            for name, selected in track(_refitted(finalists, chain, reference), "refitted", "model", total):
                judge.consider(selected, name)
        selected = judge.selected(refitted=any(stage.starts_refitted for stage in chain.trained_stages))
    else:
        *_, plan = plans.values()
        selected = next(_refitted({"": chain.trials(plan)[:1]}, chain, reference))[1]
    for stage in chain.trained_stages:
        selected = _trained(selected, stage, reference, task)
    return selected


def _refitted(
    trials: Mapping[str, Sequence[Trial]], chain: Chain, reference: Reference
) -> Iterator[tuple[str, Selected]]:
    """The model of every trial, with the name of the candidate that it is of."""
    stages = tuple(stage.name for stage in chain.weight_stages)
    named = [(name, trial) for name, of_candidate in trials.items() for trial in of_candidate]
    models = chain.refitted(reference, [trial for _, trial in named])
    for (name, trial), model in zip(named, models, strict=True):
        yield name, Selected(trial.plan, model, stages, trial.settings)


class _Judge:
    """Measures models one after another and holds on to the best only."""

    def __init__(self, task: Problem) -> None:
        self.task = task
        self.judgements: list[Judgement] = []
        self.best: Selected | None = None
        self.best_refitted: Selected | None = None

    def consider(self, selected: Selected, name: str) -> None:
        """Measure a model."""
        loss = self.task.runner.beside(selected.model).mean_loss(self.task.held_out_NS)
        if not self.judgements or loss < min(judgement.loss for judgement in self.judgements):
            self.best = selected
        of_refitted = [judgement.loss for judgement in self.judgements if judgement.compensation != "none"]
        if selected.stages and loss < min(of_refitted, default=math.inf):
            self.best_refitted = selected
        self.judgements.append(Judgement(name, " ".join(selected.stages) or "none", selected.settings, loss))

    def ranking(self) -> list[str]:
        """Names of the candidates, best first."""
        return [judgement.candidate for judgement in sorted(self.judgements, key=lambda judgement: judgement.loss)]

    def selected(self, *, refitted: bool) -> Selected:
        """The best model measured, or the best with refitted weights; with everything that was measured."""
        best = (self.best_refitted if refitted else None) or self.best
        if best is None:
            raise ValueError("nothing was measured")
        return replace(best, judgements=tuple(self.judgements))


def _trained(selected: Selected, stage: TrainedStage, reference: Reference, task: Problem) -> Selected:
    """The selected model with what the stage learns folded in, unless the held-out loss is lower without it."""
    learnt = stage.train(reference, selected.model, selected.plan)
    stages, judgements = (*selected.stages, stage.name), selected.judgements
    if len(task.held_out_NS):
        best = min(judgements, key=lambda judgement: judgement.loss)
        with learnt.in_force():
            loss = task.runner.beside(selected.model).mean_loss(task.held_out_NS)
        judgements = (*judgements, Judgement(best.candidate, " ".join(stages), selected.settings, loss))
        if loss >= best.loss:
            return replace(selected, judgements=judgements)
    return replace(selected, plan=learnt.fold(), stages=stages, judgements=judgements)
