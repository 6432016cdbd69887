"""Running a plan on an engine, and what its numbers say.

A repetition runs all checkpoints, A B A B …, so that what drifts on the machine meets all of them alike, and results
are compared within a repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from .bounds import Limits, limits
from .checkpoints import DENSE, Checkpoint
from .engines import ENGINES, Mode, Session
from .engines.base import Announce, ElementSizes
from .engines.registry import first_with
from .fit import element_bytes
from .machine import machine, versions
from .plan import Plan
from .quantities import COMMON
from .results import RESULT_FORMAT, Comparison, Measurements, Result, Run
from .summary import compare, memory
from .workload import Point


def benchmark(plan: Plan, *, command: str = "", announce: Announce = lambda line: None) -> Result:
    """Run a plan. command: that the user gave, for the result.

    Raises GraspruneError when something does not run; nothing is left running.
    """
    return assembled(plan, measurements(plan, announce), command=command)


def measurements(plan: Plan, announce: Announce = lambda line: None) -> Measurements:
    """Measure every point on every checkpoint, in the order that the mode asks for."""
    mode = ENGINES.get(plan.engine).modes[plan.mode]
    session = mode.session(plan, announce)
    runs = tuple(_all_at_once(session, mode) if _holds_all(plan, mode) else _one_at_a_time(session))
    return Measurements(tuple(session.starts), runs, tuple(session.commands))


def _holds_all(plan: Plan, mode: Mode) -> bool:
    return plan.options.together or mode.inner == "checkpoints"


def _all_at_once(session: Session[Any], mode: Mode) -> list[Run]:
    plan, runs = session.plan, []
    numbers = range(len(plan.points))
    with ExitStack() as stack:
        running = [stack.enter_context(session.running(item, 0, place)) for place, item in enumerate(plan.checkpoints)]
        pairs = list(zip(plan.checkpoints, running, strict=True))
        for repetition in range(plan.options.repetitions):
            if mode.inner == "points":
                order = [(pair, number) for pair in pairs for number in numbers]
            else:
                order = [(pair, number) for number in numbers for pair in pairs]
            for (checkpoint, started), number in order:
                runs.append(session.measure(started, plan.turn(checkpoint, repetition, number)))
    return runs


def _one_at_a_time(session: Session[Any]) -> list[Run]:
    plan, runs = session.plan, []
    for repetition in range(plan.options.repetitions):
        for checkpoint in plan.checkpoints:
            with session.running(checkpoint, repetition, 0) as started:
                for number in range(len(plan.points)):
                    runs.append(session.measure(started, plan.turn(checkpoint, repetition, number)))
                del started  # a model in this process is gone before the next is loaded
    return runs


def assembled(plan: Plan, measured: Measurements, *, command: str) -> Result:
    """The result of measurements. Pure but for what it says of the machine."""
    engine = ENGINES.get(plan.engine)
    mode = engine.modes[plan.mode]
    by_options = engine.element_sizes(plan.options, plan.checkpoints[0].dtype)
    sizes = _as_served(measured, by_options)
    described = tuple(item.describe(sizes.weight, sizes.kv) for item in plan.checkpoints)
    quantities = {**COMMON, **engine.quantities}
    comparisons: list[Comparison] = []
    for point in plan.points:
        for item in plan.checkpoints[1:]:
            # A cache that overflows costs work of its own: there the gain is bounded by no work of the models.
            bounds = None if mode.overflows else _limits(plan.checkpoints[0], item, point, measured.runs, sizes)
            comparisons += compare(measured.runs, point.name, item.name, bounds, quantities)
    return Result(
        format=RESULT_FORMAT,
        mode=plan.mode,
        command=command,
        options=plan.options,
        machine=machine(),
        versions=versions(engine.packages),
        checkpoints=described,
        memory=memory(described, measured.starts, plan.options.kv_cache_bytes),
        points=tuple(point.describe() for point in plan.points),
        comparisons=tuple(comparisons),
        starts=measured.starts,
        runs=measured.runs,
        commands=measured.commands,
        engine=None if first_with(plan.mode) == plan.engine else plan.engine,
    )


def _limits(dense: Checkpoint, pruned: Checkpoint, point: Point, runs: Sequence[Run], sizes: ElementSizes) -> Limits:
    """The limits at the lengths that were measured: those of prompts from a file are not known before."""
    found = next(run.metrics for run in runs if run.checkpoint == DENSE and run.point == point.name)
    batch = min(point.concurrency, point.requests)
    lengths = (found["prompt_tokens"], found["output_tokens"])
    return limits(dense.shape, pruned.shape, batch, *lengths, sizes.weight, sizes.kv)


def _as_served(measured: Measurements, by_options: ElementSizes) -> ElementSizes:
    """What the server of a checkpoint says of its weights goes before what the options say."""
    logged = next((start.dtype for start in measured.starts if start.dtype), None)
    if logged is None:
        return by_options
    weight = element_bytes(logged)
    return ElementSizes(weight, weight if by_options.kv == by_options.weight else by_options.kv)
