"""Candidates judged by their loss on held-out calibration data, after compensation, each part kept only if it helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..compensation import Means, refitted_model, restored_on_dense_inputs, take_weights
from ..evaluation import mean_loss
from ..gating import gated, train_scales
from ..masks import UnitMask
from ..plan import PruningPlan
from ..progress import track
from ..surgery import fold_scales

if TYPE_CHECKING:
    from ..methods.base import Task

FINALISTS = 2
"""Candidates whose weights are refitted, which costs more than measuring a loss."""


@dataclass(frozen=True)
class Judgement:
    """One measurement.

    damping: of the least squares, if any.  loss: mean next-token loss on the held-out sequences, in nats.
    """

    candidate: str
    compensation: str
    damping: float | None
    loss: float


@dataclass(frozen=True)
class Outcome:
    """What came out best.

    steps: compensations in force.  damping: of the least squares among them.  judgements: all that was measured to
    decide.
    """

    plan: PruningPlan
    model: PreTrainedModel
    steps: tuple[str, ...]
    damping: float | None
    judgements: tuple[Judgement, ...]


def choose(candidates: Mapping[str, UnitMask], means: Means, task: Task) -> Outcome:
    """The best candidate with the best of the compensations allowed; with nothing held out, the last one with all.

    Each candidate is measured as it is, the best few with refitted weights too, and scales are trained on the winner.
    """
    plans = {name: PruningPlan.from_mask(mask) for name, mask in candidates.items()}
    judge = _Judge(task)
    if len(task.held_out_NS):
        for name, plan in track(plans.items(), "candidates", "mask"):
            judge.consider(Outcome(plan, _built(plan, Means(()), task), (), None, ()), name)
        if means.weight_steps:
            finalists = {name: plans[name] for name in judge.ranking()[:FINALISTS]}
            for name, outcome in track(_refitted(finalists, means, task), "refitted", "model"):
                judge.consider(outcome, name)
        best = judge.outcome()
    else:
        *_, plan = plans.values()
        damping = task.config.damping or means.fit.dampings[0]
        used = damping if "least_squares" in means.steps else None
        best = Outcome(plan, _built(plan, means, task, damping), means.weight_steps, used, ())
    return _scaled(best, task) if "scales" in means.steps else best


def _built(plan: PruningPlan, means: Means, task: Task, damping: float | None = None) -> PreTrainedModel:
    return refitted_model(task.model, plan, task.family, means, task.statistic_tokens_NS, damping)


def _refitted(plans: Mapping[str, PruningPlan], means: Means, task: Task) -> Iterator[tuple[str, Outcome]]:
    """Every plan with refitted weights, and with every damping that is to be tried."""
    steps = means.weight_steps
    if "least_squares" not in steps:
        for name, plan in plans.items():
            yield name, Outcome(plan, _built(plan, means, task), steps, None, ())
        return
    dampings = means.fit.dampings if task.config.damping is None else (task.config.damping,)
    trials = [(name, damping) for name in plans for damping in dampings]
    if means.restoration == "sequential":
        for name, damping in trials:
            yield name, Outcome(plans[name], _built(plans[name], means, task, damping), steps, damping, ())
        return
    pairs = [(plans[name], damping) for name, damping in trials]
    weights = restored_on_dense_inputs(task.model, pairs, task.family, task.statistic_tokens_NS, means.fit)
    for (name, damping), refitted in zip(trials, weights, strict=True):
        pruned = _built(plans[name], Means(()), task)
        take_weights(pruned, refitted, task.family)
        yield name, Outcome(plans[name], pruned, steps, damping, ())


class _Judge:
    """Measures models one after another and holds on to the best only."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.judgements: list[Judgement] = []
        self.best: Outcome | None = None

    def consider(self, outcome: Outcome, name: str) -> None:
        """Measure a model."""
        loss = mean_loss(outcome.model, self.task.held_out_NS)
        if not self.judgements or loss < min(judgement.loss for judgement in self.judgements):
            self.best = outcome
        self.judgements.append(Judgement(name, " ".join(outcome.steps) or "none", outcome.damping, loss))

    def ranking(self) -> list[str]:
        """Names of the candidates, best first."""
        return [judgement.candidate for judgement in sorted(self.judgements, key=lambda judgement: judgement.loss)]

    def outcome(self) -> Outcome:
        """The best model measured, with everything that was measured."""
        if self.best is None:
            raise ValueError("nothing was measured")
        return replace(self.best, judgements=tuple(self.judgements))


def _scaled(outcome: Outcome, task: Task) -> Outcome:
    """The outcome with trained scales folded in, unless the held-out loss is lower without them."""
    pruned, family = outcome.model, task.family
    inventory = family.inventory(pruned)
    scales_U = train_scales(pruned, family, inventory, task.tokens_NS[: task.config.scale_samples], task.config)
    judgements = outcome.judgements
    if len(task.held_out_NS):
        best = min(judgements, key=lambda judgement: judgement.loss)
        with gated(pruned, family, inventory) as gates:
            gates.values_U = scales_U.to(pruned.device)
            loss = mean_loss(pruned, task.held_out_NS)
        steps = " ".join((*outcome.steps, "scales"))
        judgements = (*judgements, Judgement(best.candidate, steps, outcome.damping, loss))
        if loss >= best.loss:
            return replace(outcome, judgements=judgements)
    plan = outcome.plan.with_scales(scales_U)
    fold_scales(pruned, plan, family)
    return Outcome(plan, pruned, (*outcome.steps, "scales"), outcome.damping, judgements)
