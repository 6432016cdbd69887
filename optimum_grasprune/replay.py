"""Making a pruned model again from its plan: the stages that made up for the cut, and the data they looked at."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .calibration_data import NO_TOKENS_NS, calibration_for
from .config import GRASPConfig
from .errors import OptionError, PlanError
from .execution import WholeModel
from .methods import get_method
from .numerics import deterministic_algorithms
from .record import Record
from .recovery import stage_names, stages_in
from .recovery.chain import Chain, chains_without_data, held_by
from .recovery.reference import Reference, Trial
from .selection import Selected
from .units import PruningPlan


def replayed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: PruningPlan,
    origin: Record | None,
    config: GRASPConfig,
) -> Selected:
    """The model of a saved plan, with what made up for the cut, or what the configuration asks for in its place.

    Where weights were refitted, everything else is as the record has it. Raises PlanError, or
    OptionError for what would make up for whole layers.
    """
    if plan.whole_layers and config.compensation != "auto" and stages_in(config.compensation):
        reason = "nothing makes up for whole layers, which the plan drops"
        raise OptionError("compensation", config.compensation, reason)
    recipe, tokens_NS = config, NO_TOKENS_NS
    chain = _chain(plan, origin, recipe, config.compensation)
    if origin is not None and not chain.in_plan:
        recipe = origin.config
        chain = _chain(plan, origin, recipe, config.compensation)
    if chain.looks_at_data_again:
        tokens_NS = _recorded_tokens(model, tokenizer, recipe, origin)
    reference = Reference.on(WholeModel(model), tokens_NS, recipe.statistic_samples, chain.statistics)
    settings = chain.recorded_settings(None if origin is None else origin.settings)
    with deterministic_algorithms(recipe.deterministic):
        pruned, kept = chain.replayed(reference, Trial(plan, settings))
    return Selected(kept, pruned, chain.names, settings)


def _chain(plan: PruningPlan, origin: Record | None, recipe: GRASPConfig, compensation: str) -> Chain:
    """What made up for the cut, as the recipe has it; what the plan should hold and does not is left out.

    compensation: what is to be applied in its place, or "auto". Raises PlanError for a stage that does not exist here.
    """
    if compensation != "auto":
        names = stages_in(compensation)
    else:
        names = held_by(plan) if origin is None else origin.compensation
    if unknown := [name for name in names if name not in stage_names()]:
        known = ", ".join(stage_names())
        raise PlanError(f"the plan was made with the stage {unknown[0]}, which does not exist here; there are {known}")
    chain = Chain.of(names, get_method(recipe.method).resolved(recipe))
    return Chain(tuple(stage for stage in chain.stages if not stage.in_plan or stage.held_by(plan)))


def _recorded_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, recipe: GRASPConfig, origin: Record | None
) -> Tensor:
    """The sequences that weights were refitted to, drawn again by a recorded recipe, shape (N, S).

    Raises PlanError where they cannot be.
    """
    calibration = calibration_for(model, tokenizer, None, recipe)
    if calibration is None:
        raise PlanError("the plan's recipe has no calibration data to refit weights to")
    if origin is None:
        return calibration.tokens_NS
    if origin.mixed_as_one_text:
        raise PlanError(
            f"the plan's weights were refitted to {recipe.dataset} mixed as version 0.1 did it, which cannot be "
            f"drawn again; replay it with another compensation: {' or '.join(chains_without_data())}"
        )
    recorded = None if origin.calibration is None else origin.calibration.sha256
    if recorded != calibration.tokenized.corpus.sha256:
        raise PlanError(f"the corpus {recipe.dataset} is not the one that the plan was calibrated on")
    return calibration.tokens_NS
