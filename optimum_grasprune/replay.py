"""Making a pruned model again from its plan: the stages that made up for the cut, and the data they looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .calibration_data import Calibration, calibration_for
from .config import CalibrationOptions, GRASPConfig, RecoveryOptions
from .corpora import source_and_split
from .corpora.sources import is_missing, names_in
from .errors import OptionError, PlanError
from .execution import Peers, Resumable, RunState, runner_for, shared
from .methods import get_method
from .numerics import deterministic_algorithms
from .problem import NO_TEXTS, NO_TOKENS_NS, RecoveryText
from .provenance import run_of
from .record import Record
from .recovery import stage_names, stages_in
from .recovery.chain import Chain, chains_without_data, held_by
from .recovery.fine_tuning import FineTuning
from .recovery.reference import Reference, Trial
from .recovery.together import Sliced, learn_together
from .registry import RECOVERIES
from .running import check_can_run
from .selection import Selected
from .sharing import Sharing
from .units import PruningPlan

_RECORDED_TEXTS = {
    "dataset": "is what the plan was calibrated on, and there is no such file here; give where it lies, or replay the "
    "plan with another compensation:",
    "recover_watch": "is what the plan's recovery was judged on, and there is no such file here; give where it lies, "
    "or replay the plan without the recovery, with a compensation:",
}
"""Options of a recorded recipe that may be paths, and what is said where there is nothing of that path."""


def replayed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: PruningPlan,
    origin: Record | None,
    config: GRASPConfig,
    state: RunState | None = None,
    peers: Peers | None = None,
    *,
    inplace: bool = False,
) -> tuple[Selected, Calibration | None]:
    """The model of a saved plan, with what made up for the cut, or what the configuration asks for in its place.

    Where weights were refitted, everything else is as the record has it. Returned with it are the sequences that were
    looked at, None where none were. state: where the work is kept, if it is.  peers: as in `GRASPPruner`.
    inplace: as in `Draft.build`, where nothing needs the dense model any more.
    Raises PlanError, or OptionError for what would make up for whole layers.
    """
    if plan.whole_layers and config.compensation != "auto" and stages_in(config.compensation):
        reason = "nothing makes up for whole layers, which the plan drops"
        raise OptionError("compensation", config.compensation, reason)
    tokens_NS, texts, calibration = NO_TOKENS_NS, NO_TEXTS, None
    recipe, chain = _recipe_and_chain(plan, origin, config)
    for training in chain.trainings:
        training.check()
    if chain.looks_at_data_again:
        if origin is not None:
            recipe = _where_texts_lie(recipe, origin, config)
        calibration = _recorded_data(model, tokenizer, recipe, origin)
        tokens_NS, texts = calibration.tokens_NS, calibration.training_texts
        if config.recover == "none" and origin is not None and texts.recovery is not None:
            _check_watched(texts.recovery, origin)
    runner = shared(runner_for(model), peers or Peers())
    check_can_run(runner, recipe, chain, whole_layers=plan.whole_layers)
    if state is not None:
        of = run_of(recipe, plan=_digest(plan), stages=list(chain.names))
        runner = Resumable.begun(runner, state, of, {} if calibration is None else calibration.sequences)
    others = () if origin is None or config.compensation != "auto" else origin.trained_with or ()
    chains = [_chain(other.plan, recipe, other.compensation) for other in others]
    reference = Reference.on(
        runner,
        tokens_NS,
        get_method(recipe.method).statistic_samples_for(recipe),
        [statistic for of_it in (chain, *chains) for statistic in of_it.statistics],
        texts,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
    settings = chain.recorded_settings(None if origin is None else origin.settings)
    with deterministic_algorithms(recipe.deterministic):
        if origin is not None and config.compensation == "auto":
            own = Trial(chain.before_stages(plan.without_scales()), settings)
            reference = _having_learnt(reference, chain, origin, own, chains)
        alone = inplace and not chain.trainings
        pruned, kept = chain.untrained.replayed(reference, Trial(plan, settings), inplace=alone)
        selected = Selected(kept, pruned, chain.untrained.names, settings)
        for training in chain.trainings:
            selected = _trained(selected, training, reference)
    return selected, calibration


def applied_in_place(origin: Record, config: GRASPConfig) -> dict[str, JsonValue]:
    """The options of a configuration that a replay goes by in place of the recorded ones."""
    applied: dict[str, JsonValue] = {}
    if config.compensation != "auto":
        applied["compensation"] = config.compensation
        if origin.recovery is not None:
            applied["recover"] = "none"
    if config.recover != "none":
        given = dict.fromkeys(RecoveryOptions.model_fields)
        if origin.calibration is None:  # the record says nothing of text
            given |= dict.fromkeys(CalibrationOptions.model_fields)
        applied |= {name: value for name, value in config.to_dict().items() if name in given}
    return applied


def _recipe_and_chain(plan: PruningPlan, origin: Record | None, config: GRASPConfig) -> tuple[GRASPConfig, Chain]:
    """What makes up for the cut, and its options: the recorded ones where the plan does not hold all of it."""
    names = _stages(plan, origin, config)
    chain = _chain(plan, config, names)
    if origin is None or chain.in_plan:
        return config, chain
    recipe = _recipe(origin, config)
    return recipe, _chain(plan, recipe, names)


def _recipe(origin: Record, config: GRASPConfig) -> GRASPConfig:
    """The recorded recipe, with what is applied in its place, and what says of this run alone how it is to go."""
    checkpointing = config.gradient_checkpointing or origin.config.gradient_checkpointing
    applied = {name: value for name, value in applied_in_place(origin, config).items() if name != "compensation"}
    return origin.config.model_copy(update={**applied, "gradient_checkpointing": checkpointing})


def _digest(plan: PruningPlan) -> str:
    return hashlib.sha256(json.dumps(plan.to_dict()).encode()).hexdigest()[:16]


def _where_texts_lie(recipe: GRASPConfig, origin: Record, config: GRASPConfig) -> GRASPConfig:
    """The recipe with the paths that are given for recorded ones which are not there: it may be another machine.

    Raises OptionError where none is given. Whether it is the same text is checked when it is read.
    """
    moved = {}
    for option, reason in _RECORDED_TEXTS.items():
        recorded, given = origin.recipe.get(option), getattr(config, option)
        if not isinstance(recorded, str) or getattr(recipe, option) != recorded:
            continue
        unread = option == "recover_watch" and recipe.recover == "none"
        if unread or not any(is_missing(source_and_split(name)[0]) for name in names_in(recorded)):
            continue
        if given in (recorded, GRASPConfig.model_fields[option].default):
            raise OptionError(option, recorded, f"{reason} {' or '.join(chains_without_data())}")
        moved[option] = given
    return recipe.model_copy(update=moved)


def _trained(selected: Selected, training: FineTuning, reference: Reference) -> Selected:
    """The same model with its weights trained, where that is better."""
    learnt = training.train(reference, selected.model, Trial(selected.cut).plan)
    if learnt.verdict is False:
        return replace(selected, recovery=learnt.record)
    return replace(selected, cut=learnt.fold(), stages=(*selected.stages, training.name), recovery=learnt.record)


def _stages(plan: PruningPlan, origin: Record | None, config: GRASPConfig) -> tuple[str, ...]:
    """Names of what makes up for the cut: as recorded, or what the configuration asks for in its place."""
    if config.compensation != "auto":
        names = stages_in(config.compensation)
    else:
        names = held_by(plan) if origin is None else origin.compensation
    if config.recover != "none":
        names = (*(name for name in names if name not in RECOVERIES), config.recover)
    return tuple(names)


def _chain(plan: PruningPlan, recipe: GRASPConfig, names: Sequence[str]) -> Chain:
    """The named stages, as the recipe has them; what the plan should hold and does not is left out.

    Raises PlanError for a stage that does not exist here.
    """
    if unknown := [name for name in names if name not in stage_names()]:
        known = ", ".join(stage_names())
        raise PlanError(f"the plan was made with the stage {unknown[0]}, which does not exist here; there are {known}")
    chain = Chain.of(names, get_method(recipe.method).resolved(recipe))
    return Chain(tuple(stage for stage in chain.stages if not stage.in_plan or stage.held_by(plan)))


def _recorded_data(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, recipe: GRASPConfig, origin: Record | None
) -> Calibration:
    """The sequences that weights were refitted to or trained on, drawn again by a recorded recipe.

    Raises PlanError where they cannot be.
    """
    calibration = calibration_for(model, tokenizer, None, recipe)
    if calibration is None:
        raise PlanError("the plan's recipe has no calibration data to refit weights to")
    if origin is None or (origin.calibration is None and recipe.recover != "none"):
        return calibration
    if origin.mixed_as_one_text:
        raise PlanError(
            f"the plan's weights were refitted to {recipe.dataset} mixed as version 0.1 did it, which cannot be "
            f"drawn again; replay it with another compensation: {' or '.join(chains_without_data())}"
        )
    recorded = None if origin.calibration is None else origin.calibration.sha256
    if recorded != calibration.tokenized.corpus.sha256:
        raise PlanError(f"the corpus {recipe.dataset} is not the one that the plan was calibrated on")
    return calibration


def _having_learnt(
    reference: Reference, chain: Chain, origin: Record, own: Trial, chains: Sequence[Chain]
) -> Reference:
    """The reference with what was learnt for all models of the recorded run, where they were trained together.

    own: the model that is made again.  chains: what was done to each of the others before it was trained. All of them
    are made and trained again. Raises PlanError where the record does not say all of them.
    """
    stage, others = chain.together, origin.trained_with
    if stage is None or stage.in_plan:
        return reference
    if origin.trained_before is not None:
        raise PlanError(
            "the plan was trained with those of other ratios as earlier versions did it, which cannot be done again; "
            f"replay it with another compensation: {' or '.join(chains_without_data())}"
        )
    if others is None:
        return reference
    ratio = origin.config.keep_ratio
    ratios = () if origin.shared is None else origin.shared.keep_ratios
    if ratio not in ratios or len(ratios) != len(others) + 1:
        raise PlanError(f"the plan was trained together with {len(others)} others, which are not those of its run")
    place = ratios.index(ratio)
    trials = [(Trial(other.plan, other.settings), of_it) for other, of_it in zip(others, chains, strict=True)]
    trials.insert(place, (own, chain))
    shared_reference = replace(reference, sharing=Sharing(reference.runner, ratios))
    models = {
        each: Sliced(of_it.started(shared_reference, trial), trial.plan)
        for each, (trial, of_it) in zip(ratios, trials, strict=True)
    }
    learnt = learn_together(stage, shared_reference, models)
    return replace(reference, learnt=learnt[ratio])


def _check_watched(text: RecoveryText, origin: Record) -> None:
    """Raise PlanError where a recorded training of weights would be judged on another text."""
    recorded = None if origin.recovery is None else origin.recovery.watched
    if recorded is not None and text.watched is not None and recorded.sha256 != text.watched.sha256:
        raise PlanError(f"the text {text.watched.source} is not the one that the plan's recovery was judged on")
