"""What the record of a pruned model says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import JsonValue
from transformers import PreTrainedModel

from .calibration_data import Calibration
from .config import DiagonalOptions, GRASPConfig, RecoveryOptions
from .methods import get_method
from .methods.selection import Selection
from .problem import Problem
from .record import (
    BudgetRecord,
    CalibrationRecord,
    Record,
    ReportNumbers,
    SharedRun,
    installed_versions,
    option_of,
    score_distribution,
)
from .record.describe import describe_model, elements_budget, units_budget
from .recovery.chain import Chain
from .registry import STAGES
from .selection import Selected
from .sharing import Sharing
from .units import ElementMask, UnitMask


def record_of(
    config: GRASPConfig,
    model: PreTrainedModel,
    selected: Selected,
    budget: BudgetRecord,
    calibration: Calibration | None,
    shared: SharedRun | None = None,
) -> Record:
    """The record of one pruned model. model: the dense one.  shared: the run through several ratios that it is of."""
    described = None if calibration is None else calibration.describe()
    return Record(
        recipe=filled_in(recipe_of(config), described),
        shared=shared,
        base_model=describe_model(model),
        calibration=described,
        versions=installed_versions(),
        budget=budget,
        compensation=selected.stages,
        settings=selected.settings,
        choice=selected.judgements,
        recovery=selected.recovery,
        plan=selected.plan,
    )


def handed_on(record: Record, sharing: Sharing, chain: Chain) -> Record:
    """The record with what its ratio has from the others of its run."""
    ratio, decision, stage = record.config.keep_ratio, sharing.decision, chain.together
    again = stage is not None and not stage.in_plan and bool(sharing.models) and record.shared is not None
    if decision is not None and decision.keep_ratio != ratio:
        record = replace(record, judged_at=decision.keep_ratio)
    return replace(record, trained_with=sharing.trained_with(ratio) if again else None)


def recipe_of(config: GRASPConfig) -> dict[str, JsonValue]:
    """All options that a configuration comes to, with those that the method's own stages bring along.

    Those of a training of weights are left out where there is none.
    """
    names = get_method(config.method).chain_for(config).names
    classes = [options for name in names if (options := STAGES.options_of(name)) is not None]
    unused = RecoveryOptions.model_fields if config.recover == "none" else {}
    common = {name: value for name, value in config.to_dict().items() if name not in unused}
    return {**common, **{k: v for options in classes for k, v in config.own(options).to_dict().items()}}


def filled_in(recipe: Mapping[str, JsonValue], calibration: CalibrationRecord | None) -> dict[str, JsonValue]:
    """A recipe with what its method and its data came to where that was left to them.

    So a replay draws the same sequences and refits by the same kind of least squares, also in a version in which the
    method has other values of its own.
    """
    method = get_method(str(option_of(recipe, "method")))
    filled = {**recipe, **method.own_values(recipe.items())}
    if calibration is not None:
        filled["num_samples"], filled["seq_len"] = calibration.sequences
        filled |= {
            name: getattr(method, name) for name in ("held_out", "statistic_samples") if recipe.get(name) is None
        }
        if recipe.get("diagonal_samples") is None:
            filled["diagonal_samples"] = DiagonalOptions().diagonal_sequences(*calibration.sequences)
    return filled


def replayed_record(record: Record, origin: Record, applied: Mapping[str, JsonValue]) -> Record:
    """The record of a replay, with what that of the plan says. applied: options in place of the recorded ones."""
    continued = record.continued(origin, applied)
    return replace(continued, recipe=filled_in(continued.recipe, continued.calibration))


def run_of(config: GRASPConfig, **others: JsonValue) -> dict[str, JsonValue]:
    """What tells a run from others, as far as nothing has to be read for it. others: what it is beside the recipe."""
    versions = {f"version of {name}": version for name, version in installed_versions().items()}
    return {**recipe_of(config), **others, **versions}


def report_numbers(problem: Problem, selected: Selected, selection: Selection) -> ReportNumbers:
    """What there is to show of how a model came to be, of all that was trained for it."""
    trainings = [each.curves(problem.config.keep_ratio) for each in problem.runner.trainings]
    *_, cut = selection.candidates.values()  # the method's own, where nothing was judged
    cut = selection.candidates.get(selected.candidate, cut)
    return ReportNumbers(
        trainings=tuple(curves for curves in trainings if curves is not None),
        scores=score_distribution(cut) if isinstance(cut, UnitMask) else None,
    )


def replayed_numbers(numbers: ReportNumbers | None, applied: Mapping[str, JsonValue]) -> ReportNumbers | None:
    """Those of a replay, by those of the checkpoint that the plan is from; applied: as in `replayed_record`."""
    return numbers.without(STAGES.names()) if numbers is not None and applied else numbers


def budget_of(problem: Problem, selected: Selected) -> BudgetRecord:
    """What was asked, and what is left of it."""
    if isinstance(selected.cut, ElementMask):
        return elements_budget(problem.family, problem.model, selected.cut, problem.config.keep_ratio)
    return units_budget(problem.family, problem.model, selected.model, problem.budget)
