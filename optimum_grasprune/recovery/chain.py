"""Stages one after another, on one candidate or on many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..execution import cut_when_run, put_in_place
from ..families import Family
from ..statistics import Statistic
from ..surgery import Draft, Finished, Narrower, Rebuilt
from ..surgery.single_weights import build_sparse_model
from ..units import ElementMask, PruningPlan
from .base import NumbersStage, RebuildingStage, Stage, TrainedStage, WeightStage
from .fine_tuning import FineTuning
from .reference import Cut, Reference, Settings, Trial
from .registry import chain_names, get_stage, stage_names, stages_in

if TYPE_CHECKING:
    from ..config import GRASPConfig


@dataclass(frozen=True)
class Chain:
    """Stages in order: those that refit weights, those that rebuild the winner, then those that train."""

    stages: tuple[Stage, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str], config: GRASPConfig) -> Chain:
        """The named stages as a configuration asks for them, in which every "auto" is the method's own value."""
        return cls(tuple(get_stage(name).from_config(config) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages."""
        return tuple(stage.name for stage in self.stages)

    @property
    def weight_stages(self) -> tuple[WeightStage, ...]:
        """The stages that refit weights."""
        return tuple(stage for stage in self.stages if isinstance(stage, WeightStage))

    @property
    def rebuilding_stages(self) -> tuple[RebuildingStage, ...]:
        """The stages that work on the model that is built, before anything is trained."""
        return tuple(stage for stage in self.stages if isinstance(stage, RebuildingStage))

    @property
    def trained_stages(self) -> tuple[TrainedStage, ...]:
        """The stages that train."""
        return tuple(stage for stage in self.stages if isinstance(stage, TrainedStage))

    @property
    def trainings(self) -> tuple[FineTuning, ...]:
        """Those of them that train the weights themselves."""
        return tuple(stage for stage in self.stages if isinstance(stage, FineTuning))

    @property
    def together(self) -> NumbersStage | None:
        """The stage whose training several ratios share: the first that trains, where it can; others start on top."""
        first = next(iter(self.trained_stages), None)
        return first if isinstance(first, NumbersStage) else None

    @property
    def untrained(self) -> Chain:
        """The chain without those."""
        return Chain(tuple(stage for stage in self.stages if not isinstance(stage, FineTuning)))

    @property
    def statistics(self) -> tuple[Statistic[Any], ...]:
        """The statistics that the stages look at."""
        return tuple(statistic for stage in self.stages for statistic in stage.statistics)

    @property
    def looks_at_data(self) -> bool:
        """Whether any of the stages looks at anything beside the weights."""
        return any(stage.looks_at_data() for stage in self.stages)

    @property
    def in_plan(self) -> bool:
        """Whether a plan holds all that the stages came to."""
        return all(stage.in_plan for stage in self.stages)

    @property
    def looks_at_data_again(self) -> bool:
        """Whether any of them looks at data when a plan is replayed."""
        return any(stage.looks_at_data() for stage in self.stages if not stage.in_plan)

    def added_parameters(self, model: PreTrainedModel, family: Family) -> int:
        """Parameters that the stages add to a model: a bias to each output projection that has none."""
        if not any(stage.output_bias for stage in self.stages):
            return 0
        return model.config.hidden_size * sum(bias is None for bias in family.output_biases(model).values())

    def trials(self, cut: Cut) -> list[Trial]:
        """The cut with every combination of variants that the weight stages offer.

        The first is what is taken where nothing can choose.
        """
        cut = self.before_stages(cut)
        combinations = product(*(stage.variants() for stage in self.weight_stages))
        return [Trial(cut, _merged(combination)) for combination in combinations]

    def before_stages(self, cut: Cut) -> Cut:
        """The cut without multipliers where a stage replaces the weights that they are in."""
        replaced = self.rebuilding_stages or any(stage.replaces_multipliers for stage in self.weight_stages)
        return cut.without_multipliers() if replaced and isinstance(cut, PruningPlan) else cut

    def refitted(self, reference: Reference, trials: Sequence[Trial]) -> Iterator[Draft]:
        """The draft of every trial, with its weights refitted; each is made when it is asked for."""
        stages = self.weight_stages
        edits = [stage.refits(reference, trials) for stage in stages]
        for trial, *own in zip(trials, *edits, strict=True):
            draft = self._drafted(reference, trial.cut)
            for edit in own:
                edit(draft.model)
            yield draft

    def alone(self, reference: Reference) -> Reference | None:
        """The reference when the dense model was asked all that training needs of it; None where it needs the model."""
        taught = [stage.taught_on(reference) for stage in self.trained_stages]
        known = [tokens_NS for tokens_NS in taught if tokens_NS is not None]
        return reference.having_taught(known) if len(known) == len(taught) else None

    def recorded_settings(self, record: Mapping[str, float | None] | None) -> Settings:
        """What a record says was in force; what is not in it is as where nothing can choose."""
        settings: dict[str, float] = {}
        for stage in self.weight_stages:
            found = {name: (record or {}).get(name) for name in stage.settings}
            recorded = {name: value for name, value in found.items() if value is not None}
            settings |= {**stage.variants()[0], **recorded}
        return settings

    def replayed(
        self, reference: Reference, recorded: Trial, *, inplace: bool = False
    ) -> tuple[PreTrainedModel, PruningPlan]:
        """The pruned model of a saved plan, and what of the plan is in force in it.

        inplace: as in `Draft.build`, where training does not need the dense model.
        """
        recorded = replace(recorded, cut=self.before_stages(recorded.plan))
        kept = recorded.plan.without_scales()
        draft = self._drafted(reference, kept)
        for refitting in self.weight_stages:
            kept = refitting.replay(replace(reference, learnt=None), draft.model, kept, recorded)
        alone = self.alone(reference) if inplace else None
        pruned = self.built(reference, draft, kept, inplace=alone is not None)
        reference = alone or reference
        for stage in self.trained_stages:
            at = reference if stage is self.together else replace(reference, learnt=None)
            kept = stage.replay(at, pruned, kept, recorded)
        return pruned, kept

    def built(
        self, reference: Reference, draft: Draft, plan: PruningPlan, *, inplace: bool = False, again: bool = False
    ) -> PreTrainedModel:
        """The smaller model of a draft, rebuilt by those of the stages that do so.

        inplace: whether it may take the dense model's place.  again: whether the draft is to be built again.
        """
        runner = reference.runner
        if not self.rebuilding_stages:
            return runner.built(draft, inplace=inplace, again=again)
        growing = cut_when_run(runner, draft) if inplace and not again else None
        pruned = growing or runner.beside(runner.built(draft, again=again))
        for stage in self.rebuilding_stages:
            stage.rebuild(replace(reference, learnt=None), pruned, plan)
        if growing is not None:
            put_in_place(runner, growing)
        return pruned.model

    def started(self, reference: Reference, trial: Trial) -> Draft:
        """What training starts from, at rest: the draft of a trial, refitted and rebuilt."""
        (draft,) = self.refitted(reference, [trial])
        if not self.rebuilding_stages:
            draft.rest()
            return draft
        _, rebuilt = self.rebuilt(reference, draft, trial.plan)
        return rebuilt

    def rebuilt(self, reference: Reference, draft: Draft, plan: PruningPlan) -> tuple[PreTrainedModel, Draft]:
        """The smaller model of a draft, rebuilt, and what it can be built of again. The draft rests."""
        if not isinstance(draft, Narrower):
            raise TypeError("whole layers are not rebuilt")
        model = self.built(reference, draft, plan, again=True)
        return model, Rebuilt(draft, model, reference.runner.beside(model).parameter)

    def _drafted(self, reference: Reference, cut: Cut) -> Draft:
        if isinstance(cut, ElementMask):
            return Finished(build_sparse_model(reference.model, cut))
        return reference.runner.draft(cut, output_bias=any(stage.output_bias for stage in self.stages))


def _merged(settings: Iterable[Settings]) -> Settings:
    return {name: value for part in settings for name, value in part.items()}


def chains_without_data() -> list[str]:
    """The values of `compensation` that a replay can apply without looking at calibration data."""
    stages = {name: [get_stage(stage) for stage in stages_in(name)] for name in chain_names()}
    return [
        name
        for name, of_chain in stages.items()
        if all(stage.in_plan or not stage.looks_at_data() for stage in of_chain)
    ]


def held_by(plan: PruningPlan) -> tuple[str, ...]:
    """Names of the stages whose result a plan holds."""
    return tuple(name for name in stage_names() if get_stage(name).held_by(plan))


def sentence(names: Iterable[str], *, multiplied: bool = False) -> str:
    """What the named stages did, for the model card. multiplied: whether the plan has multipliers."""
    stages = [get_stage(name) for name in names]
    parts = ["Each unit that stays has a multiplier, trained with the choice of units and folded"] if multiplied else []
    parts += [stage.sentence for stage in stages]
    if not any(stage.fine_tunes for stage in stages):
        changed = multiplied or any(stage.changes_weights for stage in stages)
        parts.append(f"No weight was {'fine-tuned' if changed else 'changed'}")
    first, *others = parts
    return "; ".join([first, *(part[:1].lower() + part[1:] for part in others)]) + "."
