"""How much a run computes, stage by stage, in passes of one calibration sequence through the dense model. Pure.

A pass forward is 1; back to the inputs as much again, since weights are fixed; weights that are trained take one more,
and so does a layer that is computed again. What enters least squares is counted by its multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..execution.course import CHECK_UPS
from ..execution.training import training_steps
from ..recovery.base import TrainedStage
from ..recovery.together import sequences_of_the_others
from .job import Job
from .sizes import Sizes

_WATCHED = 32
"""Sequences that fine-tuning is judged on at every look, of both texts."""


@dataclass(frozen=True)
class Work:
    """A stage. label: of its bar.  units: that the bar counts.  each: passes that one of them takes.

    trains: whether its units are steps of a training.
    """

    label: str
    units: int
    each: float
    trains: bool = False

    @property
    def passes(self) -> float:
        """All of it."""
        return self.units * self.each


def works_of(job: Job) -> tuple[Work, ...]:
    """The stages of a run, in order; what is done anew at each of several ratios, as often."""
    return () if job.replays else tuple(work for work in _works(job) if work.units)


def _works(job: Job) -> Iterator[Work]:
    config, again = job.config, 2 + job.config.gradient_checkpointing
    if job.has_statistics:
        label, each = ("sensitivity", again) if job.has_gradients else ("statistics", _without_head(job))
        yield Work(label, job.in_statistics, each)
    if job.config.method == "block_influence":
        yield Work("block influence", len(job.sizes.layers), job.in_statistics / len(job.sizes.layers))
    if job.has_gates and config.start_rounds > 1 and config.start != "zero":
        rounds = config.start_rounds - 1
        yield Work("start", rounds, again * job.in_statistics / config.start_rounds)
    if job.method.training is not None:
        steps = job.trained_for_units * training_steps(job.calibrated, config.epochs, config.batch_size)
        each = again + job.units_taught * (_head(job) + _without_head(job) / config.epochs / job.trained_for_units)
        yield Work(job.method.training, steps, config.batch_size * each, trains=True)
    if job.has_gates and config.search_trials:
        yield Work("widths", config.search_trials, float(min(config.search_samples, job.calibrated)))
    share, ratios = _cost(job), len(job.ratios)
    judged = 1 if ratios > 1 and job.chain.together is not None else ratios
    if job.held_out:
        yield Work("candidates", judged * job.candidates, job.held_out * share)
    if job.least_squares is not None:
        yield Work("least squares", len(job.sizes.layers), _least_squares(job))
        if job.held_out:
            yield Work("refitted", judged * job.refitted, job.held_out * share)
    if job.rebuilt:
        shares = [job.share_at(ratio) for ratio in job.rebuilt]
        yield Work("reconstruction", len(job.sizes.layers), sum(_reconstruction(job, each) for each in shares))
        if job.held_out:
            judged = len(shares) if job.chain.together is None else min(len(shares), 2)
            yield Work("rebuilt", judged, job.held_out * share)
    for stage in job.chain.trained_stages:
        yield _training(job, stage)


def _training(job: Job, stage: TrainedStage) -> Work:
    config, share = job.config, _cost(job)
    in_a_step = config.recovery_batch_size if stage.fine_tunes else config.batch_size
    if stage.fine_tunes:
        sequences, epochs = sum(job.recovery_sequences), config.recover_epochs
        looks = (CHECK_UPS + 1) * _WATCHED * share / sequences / epochs
        unread = job.taught_sequences - job.taught_before_recovery if job.recovery_holds else sequences * epochs
        taught = job.recovery_taught * (_head(job) + _without_head(job) * unread / sequences / epochs)
        each = share * (3 if stage.name == "distill" else 2) + taught + looks
    else:
        diagonal = stage.name == "diagonals"
        sequences = job.diagonal_sequences if diagonal else min(config.scale_samples, job.calibrated)
        epochs = config.diagonal_epochs if diagonal else config.scale_epochs
        taught = job.diagonals_taught if diagonal else job.teaches(0.0)
        unread = sequences
        if job.trained_for_units and job.units_taught:  # what that was taught on is not read again
            unread -= min(job.calibrated, sequences - (job.rehearsed if diagonal else 0))
        each = 2 * share + taught * (_head(job) + _without_head(job) * unread / sequences / epochs)
    each += share * config.gradient_checkpointing
    steps = training_steps(sequences, epochs, in_a_step)
    if len(job.ratios) > 1:
        if stage is job.chain.together:
            steps += training_steps(sequences_of_the_others(sequences), epochs, in_a_step)
        else:
            steps *= len(job.ratios)
    return Work(stage.name, steps, each * in_a_step, trains=True)


def _head(job: Job) -> float:
    """What becomes of hidden states at the end of a pass."""
    return job.sizes.head / _multiplied(job.sizes)


def _multiplied(sizes: Sizes) -> int:
    """Weights that each token is multiplied by."""
    return sizes.in_layers + sizes.head


def _without_head(job: Job) -> float:
    """A pass that ends in hidden states."""
    return job.sizes.in_layers / _multiplied(job.sizes)


def _cost(job: Job) -> float:
    """A pass through the pruned model."""
    return _multiplied(job.cut) / _multiplied(job.sizes)


def _least_squares(job: Job) -> float:
    """One layer: the pass of its sequences, products of what enters its output projections, and the solutions."""
    stage, layer = job.least_squares, job.sizes.largest_layer
    streams = 2 if stage is not None and stage.in_sequence else 1
    tokens = job.in_statistics * job.length
    products = layer.channels**2 + layer.query**2
    solved = sum(_solved(width, job.share, job.sizes.hidden) for width in (layer.channels, layer.query))
    solutions = len(job.ratios) * job.refitted * solved
    multiplications = tokens * (streams * layer.parameters + products) + solutions
    return multiplications / (job.length * _multiplied(job.sizes))


_STOPPED_AT = 3.0
"""Passes of the sliced model through a layer that the fitting of its maps takes: each stops at one of them."""


def _reconstruction(job: Job, share: float) -> float:
    """One layer: the passes of its sequences through both models, products of what enters its maps, solutions.

    share: of the units, how much stays.
    """
    layer, hidden = job.sizes.largest_layer, job.sizes.hidden
    tokens = job.in_statistics * job.length
    widths = [hidden, hidden, round(layer.query * share), round(layer.channels * share)]
    products = sum(width**2 + width * hidden for width in widths)
    solved = sum(_solved(width, 1.0, hidden) for width in widths)
    multiplications = tokens * ((1 + _STOPPED_AT * share) * layer.parameters + products) + solved
    return multiplications / (job.length * _multiplied(job.sizes))


def _solved(width: int, share: float, hidden: int) -> float:
    """Multiplications of one least squares: the factorisation, and what it is applied to."""
    kept = width * share
    return kept**3 / 6 + hidden * kept * (width + 2 * kept)
