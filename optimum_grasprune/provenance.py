"""What the record of a pruned model says of how it was made."""

from __future__ import annotations

from pydantic import JsonValue
from transformers import PreTrainedModel

from .calibration_data import Calibration
from .config import GRASPConfig, RecoveryOptions
from .methods import get_method
from .problem import Problem
from .record import BudgetRecord, Record, SharedRun, installed_versions
from .record.describe import describe_model, elements_budget, units_budget
from .registry import STAGES
from .selection import Selected
from .units import ElementMask


def record_of(
    config: GRASPConfig,
    model: PreTrainedModel,
    selected: Selected,
    budget: BudgetRecord,
    calibration: Calibration | None,
    shared: SharedRun | None = None,
) -> Record:
    """The record of one pruned model. model: the dense one.  shared: the run through several ratios that it is of."""
    recipe = recipe_of(config)
    if calibration is not None:  # what it came to, so that a replay draws the same sequences
        recipe["num_samples"], recipe["seq_len"] = calibration.tokens_NS.shape
    return Record(
        recipe=recipe,
        shared=shared,
        base_model=describe_model(model),
        calibration=None if calibration is None else calibration.describe(),
        versions=installed_versions(),
        budget=budget,
        compensation=selected.stages,
        settings=selected.settings,
        choice=selected.judgements,
        recovery=selected.recovery,
        plan=selected.plan,
    )


def recipe_of(config: GRASPConfig) -> dict[str, JsonValue]:
    """All options that a configuration comes to, with those that the method's own stages bring along.

    Those of a training of weights are left out where there is none.
    """
    names = get_method(config.method).chain_for(config).names
    classes = [options for name in names if (options := STAGES.options_of(name)) is not None]
    unused = RecoveryOptions.model_fields if config.recover == "none" else {}
    common = {name: value for name, value in config.to_dict().items() if name not in unused}
    return {**common, **{k: v for options in classes for k, v in config.own(options).to_dict().items()}}


def run_of(config: GRASPConfig, **others: JsonValue) -> dict[str, JsonValue]:
    """What tells a run from others, as far as nothing has to be read for it. others: what it is beside the recipe."""
    versions = {f"version of {name}": version for name, version in installed_versions().items()}
    return {**recipe_of(config), **others, **versions}


def budget_of(problem: Problem, selected: Selected) -> BudgetRecord:
    """What was asked, and what is left of it."""
    if isinstance(selected.cut, ElementMask):
        return elements_budget(problem.family, problem.model, selected.cut, problem.config.keep_ratio)
    return units_budget(problem.family, problem.model, selected.model, problem.budget)
