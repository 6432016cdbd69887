"""Bytes that a run needs at its peak, stage by stage: of the device, of the host's memory, of the disk. Pure.

Counted is what is there at once in the stage that takes most, from the sizes of the model and the recipe alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..config import RunnerName
from ..execution.streamed import BORDER_BYTES, BORDER_BYTES_ELSEWHERE, HIDDEN_BYTES, HIDDEN_BYTES_ELSEWHERE
from ..recovery.base import TrainedStage
from ..recovery.together import HELD_MODELS_BYTES
from .activations import (
    FP32,
    FP64,
    Trained,
    forward_pass,
    grams,
    logits,
    moments,
    passing_through_layer,
    saved_in_layer,
    solving,
    training_step,
)
from .job import Job
from .sizes import Sizes

Place = Literal["device", "host", "output", "temporary"]
"""Memory of the device and of the host; the disks of OUTPUT and of temporary files."""

MIB = 2**20
KERNELS = {"cpu": 64 * MIB}
"""What code and its buffers take when a model runs for the first time, by the kind of device; measured."""
KERNELS_ELSEWHERE = 256 * MIB
SLACK = {"cpu": 0.3}
"""Of what comes and goes, how much more an allocator holds than is in use; measured."""
SLACK_STREAMED = {"cpu": 0.9}
"""The same where layers come and go too."""
SLACK_ELSEWHERE = 0.1

_ADAM = 4 * FP32
"""A number that is trained: itself, its gradient, two moments."""


@dataclass(frozen=True)
class Part:
    """Something that takes bytes. soft: whether a run can go on with less of it, a little slower."""

    what: str
    size: int
    place: Place
    soft: bool = False


@dataclass(frozen=True)
class Stage:
    """What is there at once in one stage of a run."""

    what: str
    parts: tuple[Part, ...]

    def size(self, place: Place, *, hard: bool = False) -> int:
        """Bytes in a place. hard: of what a run cannot go on without."""
        return sum(part.size for part in self.parts if part.place == place and not (hard and part.soft))

    def largest_first(self, place: Place) -> list[Part]:
        """What lies in a place."""
        return sorted((part for part in self.parts if part.place == place), key=lambda part: -part.size)


@dataclass(frozen=True)
class Needs:
    """What a run needs. runner: how the model is run."""

    runner: RunnerName
    stages: tuple[Stage, ...]

    def peak(self, place: Place) -> Stage:
        """The stage that takes most in a place."""
        return max(self.stages, key=lambda stage: stage.size(place))

    def size(self, place: Place) -> int:
        """Bytes in a place at the peak."""
        return self.peak(place).size(place)

    def hard(self, place: Place) -> int:
        """Bytes in a place without which it cannot run."""
        return max(stage.size(place, hard=True) for stage in self.stages)


def needs_of(job: Job) -> Needs:
    """What a run needs, in all of its stages."""
    stages = (Stage(what, tuple(_placed(job, parts))) for what, parts in _stages(job))
    return Needs(job.runner, tuple(stages))


def _placed(job: Job, parts: Iterator[Part]) -> Iterator[Part]:
    """The parts with what an allocator adds, where the device's memory is."""
    comes_and_goes = 0
    for part in parts:
        on_host = part.place == "device" and job.is_on_host
        yield Part(part.what, part.size, "host" if on_host else part.place, part.soft)
        moves = part.place == "device" and not part.what.startswith(_WEIGHTS)
        comes_and_goes += part.size if moves or (part.what in _LAYERS and job.is_on_host) else 0
    slack = (SLACK_STREAMED if job.by_layers else SLACK).get(job.device, SLACK_ELSEWHERE) * comes_and_goes
    size = KERNELS.get(job.device, KERNELS_ELSEWHERE) + round(slack)
    yield Part("allocator and kernels", size, "host" if job.is_on_host else "device", soft=True)


_WEIGHTS = "weights"
_LAYERS = (f"{_WEIGHTS} of one layer", "a layer that is read")


def _stages(job: Job) -> Iterator[tuple[str, Iterator[Part]]]:
    yield "loading", _weights(job, job.sizes)
    if job.replays:
        yield "writing", _writing(job)
        return
    if job.has_statistics:
        yield ("sensitivity" if job.has_gradients else "statistics"), _statistics(job)
    yield "scores", _scores(job)
    if job.method.training is not None:
        yield job.method.training, _of_units(job)
    if job.held_out:
        yield "candidates", _judging(job)
    if job.least_squares is not None:
        yield "least squares", _least_squares(job)
    for rebuilding in job.smallest_chain.rebuilding_stages:
        yield rebuilding.name, _rebuilding(job)
    for stage in job.chain.trained_stages:
        yield stage.name, _training(job, stage)
    yield "writing", _writing(job)


def _weights(job: Job, sizes: Sizes) -> Iterator[Part]:
    """Where the weights of a model are while it runs."""
    layer = sizes.largest_layer.parameters * job.element
    outside = sizes.outside * job.element
    if job.runner == "whole":
        yield Part(_WEIGHTS, sizes.parameters * job.element, "device")
        return
    yield Part(f"{_WEIGHTS} outside of the layers", outside, "device")
    if job.runner == "offloaded":
        yield Part(f"{_WEIGHTS} of two layers", 2 * layer, "device")
        yield Part(_WEIGHTS, sizes.parameters * job.element, "host")
    else:
        yield Part(_LAYERS[0], layer, "device")
        if job.runner == "sharded":  # the dense model's, which the pruned one is cut out of
            yield Part(f"{_WEIGHTS} in shares", job.sizes.in_layers * job.element // job.processes, "device")
        yield Part(_LAYERS[1], layer, "device" if job.runner == "sharded" else "host")


def _step(job: Job, sizes: Sizes, sequences: int, trained: Trained, *, teacher: bool = False) -> Iterator[Part]:
    """The activations of a forward and backward pass. sequences: in a step."""
    if job.by_layers:
        yield from _streamed_step(job, sizes, sequences, trained, teacher=teacher)
        return
    tokens, element = sequences * job.length, job.element
    checkpointing = job.config.gradient_checkpointing
    whole = training_step(sizes, tokens, element, trained, checkpointing=checkpointing, teacher=teacher)
    wide = min(whole, logits(tokens, sizes.vocabulary, element, backward=True, teacher=teacher))
    yield Part("activations", whole - wide, "device")
    yield Part("logits", wide, "device")


def _streamed_step(
    job: Job, sizes: Sizes, sequences: int, trained: Trained, *, teacher: bool = False
) -> Iterator[Part]:
    """The same layer by layer: one sequence in one layer at a time, while hidden states wait at all borders."""
    element, tokens = job.element, job.length
    state = tokens * sizes.hidden * element
    borders = state * len(sizes.layers)
    least = min(sequences, job.in_a_step)
    room = BORDER_BYTES.get(job.device, BORDER_BYTES_ELSEWHERE // job.processes)
    more = min(sequences, room // borders) - least
    layers = [saved_in_layer(layer, sizes.hidden, tokens, element, trained) for layer in sizes.layers]
    through = passing_through_layer(sizes.largest_layer, sizes.hidden, tokens, element)
    ends = logits(tokens, sizes.vocabulary, element, backward=True, teacher=teacher)
    yield Part("activations of a layer, or logits", max(max(layers) + through, ends), "device")
    yield Part("hidden states and their gradients", 2 * least * state, "device")
    yield Part("hidden states at the borders of layers", least * borders, "host")
    if more > 0:
        yield Part("hidden states of more sequences at once", 2 * more * state, "device", soft=True)
        yield Part("their hidden states at the borders of layers", more * borders, "host", soft=True)


def _pass(job: Job, sizes: Sizes, sequences: int, *, predicts: bool) -> Iterator[Part]:
    """The activations of a forward pass, one sequence at a time. sequences: in all."""
    yield Part("activations", forward_pass(sizes, job.length, job.element, predicts=predicts), "device")
    if job.by_layers:
        state = job.length * sizes.hidden * job.element
        at_once = min(sequences, max(1, HIDDEN_BYTES.get(job.device, HIDDEN_BYTES_ELSEWHERE) // state))
        yield Part("hidden states", 2 * at_once * state, "device", soft=True)


def _statistics(job: Job) -> Iterator[Part]:
    yield from _weights(job, job.sizes)
    if job.has_gradients:
        yield from _step(job, job.sizes, job.in_statistics if job.by_layers else 1, Trained.UNITS)
        yield Part("token weights", 2 * FP32 * len(job.sizes.layers) * job.in_statistics * job.length, "host")
        return
    yield from _pass(job, job.sizes, job.in_statistics, predicts=False)
    yield Part("moments", moments(job.sizes.largest_layer, job.length), "device")


def _scores(job: Job) -> Iterator[Part]:
    """A matrix at a time, in fp32 or fp64, for scores, biases and energies."""
    yield from _weights(job, job.sizes)
    widest = max(max(layer.channels, layer.query) for layer in job.sizes.layers) * job.sizes.hidden
    in_fp64 = any(stage.name in ("energy", "bias") for stage in job.chain.stages)
    yield Part(
        "a matrix in fp64" if in_fp64 else "a matrix in fp32", widest * (3 * FP64 if in_fp64 else 2 * FP32), "device"
    )
    if job.config.pattern != "units":
        yield Part("a model with zeros", job.sizes.in_layers * job.element, "device")
        yield Part("masks", job.sizes.in_layers, "host")


def _of_units(job: Job) -> Iterator[Part]:
    yield from _weights(job, job.sizes)
    teacher = job.units_taught
    yield from _step(job, job.sizes, job.in_a_step, Trained.UNITS, teacher=teacher)
    yield Part("optimiser", job.sizes.units * _ADAM * (2 if job.config.multipliers == "joint" else 1), "device")
    if teacher:
        yield Part("the teacher's hidden states", _hidden(job, job.calibrated), "host")


def _drafted(job: Job) -> Iterator[Part]:
    """A cut model that is judged: the dense one with other maps out of its blocks, in files where layers are."""
    yield Part("maps of a candidate", _leading_out(job, job.cut), "temporary" if job.by_layers else "device")


def _judging(job: Job) -> Iterator[Part]:
    yield from _weights(job, job.sizes)
    yield from _drafted(job)
    yield from _pass(job, job.sizes, job.held_out, predicts=True)


def _least_squares(job: Job) -> Iterator[Part]:
    stage = job.least_squares
    streams = 2 if stage is not None and stage.in_sequence else 1
    layer = job.sizes.largest_layer
    yield from _weights(job, job.sizes)
    if streams > 1:
        yield from _drafted(job)
    through = passing_through_layer(layer, job.sizes.hidden, job.length, job.element)
    matrices = max(grams(layer) + through, solving(layer, job.sizes.hidden, job.share))
    yield Part("matrices of a layer", matrices, "device")
    yield Part("hidden states", streams * _hidden(job, job.in_statistics), "host")
    if len(job.ratios) > 1:
        yield Part("matrices of all layers", sum(grams(each) // 2 for each in job.sizes.layers), "host")
    yield Part(
        "refitted weights", job.refitted * sum(each.leading_out for each in job.cut.layers) * job.element, "temporary"
    )


def _training(job: Job, stage: TrainedStage) -> Iterator[Part]:
    """What learns on the model that was cut, which is in the place of the dense one unless that still teaches."""
    cut, config = job.cut, job.config
    live = not job.recovery_holds and any(each.fine_tunes for each in job.chain.trained_stages)
    if live or len(job.ratios) > 1:
        yield from _weights(job, job.sizes)
        if len(job.ratios) > 1 and stage is job.chain.together:
            yield from _held(job)
        else:
            yield Part("the pruned model's layers", cut.in_layers * job.element, "device")
    else:
        yield from _weights(job, cut)
    trained, numbers = _trained(job, stage)
    diagonal = stage.name == "diagonals"
    teacher = job.recovery_taught if stage.fine_tunes else job.diagonals_taught if diagonal else job.teaches(0.0)
    in_a_step = job.in_a_recovery_step if stage.fine_tunes else job.in_a_step
    yield from _step(job, cut, in_a_step, trained, teacher=teacher)
    yield Part("optimiser", numbers, "device")
    if teacher and not (live and stage.fine_tunes):
        own = job.diagonal_sequences if diagonal else min(config.scale_samples, job.calibrated)
        yield Part("the teacher's hidden states", _hidden(job, max(own, job.taught_sequences)), "host")


def _leading_out(job: Job, cut: Sizes) -> int:
    """Bytes of the maps out of all blocks."""
    return sum(layer.leading_out for layer in cut.layers) * job.element


def _rebuilding(job: Job) -> Iterator[Part]:
    """All maps of a layer fitted: what enters them for all sequences, in both models, and their matrices."""
    layer, hidden = job.sizes.largest_layer, job.sizes.hidden
    yield from _weights(job, job.sizes)
    several, largest = len(job.ratios) > 1, job.rebuilt[0]
    cut = job.cut_at(largest)
    if job.runner == "offloaded" or (job.runner == "whole" and several):
        place: Place = "host" if job.runner == "offloaded" else "device"
        yield Part("the pruned model's layers", cut.in_layers * job.element, place)
    else:  # the pruned model's layers are cut out of the dense ones when they are run, and wait on the disk when fitted
        if job.runner == "whole":
            yield Part("a layer of the pruned model", layer.parameters * job.element, "device")
        yield Part("fitted weights", cut.in_layers * job.element, "temporary")
    if several:
        yield Part("maps of what was rebuilt", _rebuilt(job), "temporary")
    tokens = job.in_statistics * job.length
    yield Part("matrices of a layer", max(grams(layer), solving(layer, hidden, job.share_at(largest))), "device")
    yield Part("what enters a map", tokens * max(layer.channels, layer.query, hidden) * job.element, "device")
    yield Part("what enters a layer's maps", tokens * (2 * hidden + layer.query + layer.channels) * job.element, "host")
    yield Part("hidden states", 2 * _hidden(job, job.in_statistics) + 2 * tokens * hidden * FP32, "host")


def _held(job: Job) -> Iterator[Part]:
    """The models of all ratios: built, all of them or one, and what they are built of."""
    cut = [job.cut_at(ratio) for ratio in job.ratios]
    all_of_them = sum(each.in_layers for each in cut) * job.element
    at_once = all_of_them if all_of_them <= HELD_MODELS_BYTES else cut[0].in_layers * job.element
    if not job.by_layers:
        yield Part("the pruned models' layers", at_once, "device")
    yield Part("maps of all ratios", sum(_leading_out(job, each) for each in cut) + _rebuilt(job), "temporary")


def _rebuilt(job: Job) -> int:
    """Bytes of the maps of all models that were rebuilt."""
    return sum(job.cut_at(ratio).in_layers for ratio in job.rebuilt) * job.element


def _trained(job: Job, stage: TrainedStage) -> tuple[Trained, int]:
    """What gradients a stage takes, and bytes of its numbers with all that the optimiser keeps of them."""
    cut = job.cut
    features = sum(layer.inputs + layer.outputs for layer in cut.layers)
    if stage.name == "distill":
        rounded = 2 * job.element if job.element < FP32 else 0
        return Trained.WEIGHTS, cut.in_layers * (_ADAM + rounded)
    if stage.name == "lora":
        return Trained.ADAPTERS, job.config.recover_rank * features * _ADAM
    if stage.name == "diagonals":
        return Trained.MAPS, features * _ADAM
    return Trained.UNITS, cut.units * _ADAM


def _writing(job: Job) -> Iterator[Part]:
    """The checkpoints, of all ratios, and what a run keeps to go on from."""
    yield from _weights(job, job.cut)
    written = sum(job.cut_at(ratio).parameters for ratio in job.ratios)
    yield Part("checkpoints" if len(job.ratios) > 1 else "checkpoint", written * job.element, "output")
    if job.taught_sequences:
        yield Part("state of the run", _hidden(job, job.taught_sequences), "output")


def _hidden(job: Job, sequences: int) -> int:
    """Bytes of the hidden states of so many sequences at one place of the model."""
    return sequences * job.length * job.sizes.hidden * job.element
