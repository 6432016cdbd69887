"""What `grasp_config.json` holds: how a checkpoint was made, and the plan that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import JsonValue, PlainValidator

from ..config import GRASPConfig
from ..errors import PlanError
from ..registry import STAGES
from ..units import PruningPlan
from .stored import INLINE, OPTIONAL, Stored, check_format

RECORD_FORMAT = 8
"""Format of the records that this version writes.

7: version 0.2 while the diagonals of all others were trained as fast as those of the smallest of several ratios.
6: version 0.2 while the smallest of several ratios was trained with the others.
5: version 0.2 while a recovery kept all that it changed.
4: version 0.2 while several ratios' models were trained one after another.
3: version 0.2 while diagonals were trained on no more of the corpus than was calibrated on, and no recovery rehearsed.
2: version 0.2 before diagonals rehearsed anything.
1: version 0.1. Sequences never started with a BOS token, least squares were always the robust ones, and several corpora
were mixed as one text before anything was held out.
"""

_TOKENS_OF_DIAGONALS_OF_FORMAT_3 = 320 * 512
"""What `diagonal_samples=None` came to."""

_OPTIONS_OF_FORMAT_1: dict[str, JsonValue] = {"bos": False, "least_squares": "robust"}


def option_of(recipe: Mapping[str, JsonValue], name: str) -> JsonValue:
    """An option of a recipe, by the name of its field in `GRASPConfig`; the default where it does not say."""
    return recipe.get(name, GRASPConfig.model_fields[name].default)


def _as_of_today(
    record_format: object, recipe: Mapping[str, JsonValue], calibration: object
) -> Mapping[str, JsonValue]:
    """A recipe in the words of today. calibration: as the record has it."""
    recipe = {**_unsaid(record_format, recipe), **recipe}
    if record_format in (2, 3) and recipe.get("compensation") in ("diagonals", "refit"):
        return {**recipe, "diagonal_samples": _diagonal_sequences_of_format_3(recipe, calibration)}
    return recipe


def _diagonal_sequences_of_format_3(recipe: Mapping[str, JsonValue], calibration: object) -> JsonValue:
    """How many there were, when there were no more of the corpus than calibration sequences."""
    asked, share = recipe.get("diagonal_samples"), option_of(recipe, "rehearsal")
    match calibration, share:
        case {"sequences": [int(calibrated), int(length)], **others}, int() | float():
            rehearsed: Any = others.get("rehearsed_sequences", 0)
            most = asked if isinstance(asked, int) else max(1, _TOKENS_OF_DIAGONALS_OF_FORMAT_3 // length)
            own = most - round(share * most) if rehearsed else most
            return max(1, min(calibrated, own)) + int(rehearsed)
    return asked  # what else is wrong with the record is said where its fields are read


def _unsaid(record_format: object, recipe: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What options were, in all but name, before records of this format had them."""
    unsaid = dict(_OPTIONS_OF_FORMAT_1) if record_format == 1 else {}
    if record_format == 2 and recipe.get("compensation") in ("diagonals", "refit"):
        unsaid["rehearsal"] = 0.0
    if record_format in (1, 2) and option_of(recipe, "method") == "grasprune":
        unsaid["gate_kl_weight"] = recipe.get("kl_weight") or 0.0  # a teacher where one was asked for
    if record_format in (1, 2, 3) and option_of(recipe, "recover") != "none":
        unsaid["recover_rehearsal"] = 0.0
    if record_format in (1, 2, 3, 4, 5) and option_of(recipe, "recover") != "none":
        unsaid["recover_interpolation"] = 1.0
    return unsaid


@dataclass(frozen=True, kw_only=True)
class ModelIdentity(Stored):
    """What identifies a base model: its name elsewhere than on this machine, and its shapes."""

    name: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    head_dim: int
    vocab_size: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class CorpusRecord(Stored):
    """A text: where it is from, and the hash that tells whether it is the same."""

    source: str
    split: str | None
    characters: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord(CorpusRecord):
    """The text that was calibrated on, and what was drawn from it.

    first_tokens: what each sequence starts with.  sequences: their number and length.
    rehearsed_sequences: of the package's own text, of which a stage learnt what the dense model predicts.
    """

    first_tokens: tuple[int, ...] = ()
    sequences: tuple[int, int]
    held_out_sequences: int
    rehearsed_sequences: int = field(default=0, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class AskedBudget(Stored):
    """What may stay. cost: prunable parameters.  kv_width: KV-cache elements per token; None for no cap.

    Where whole layers go by a budget of all parameters, cost counts their norms and biases too.
    """

    cost: int
    kv_width: int | None


@dataclass(frozen=True, kw_only=True)
class ModelSize(Stored):
    """Totals of a model. prunable: those of all parameters that units hold, or that single weights are cut from."""

    parameters: int
    prunable: int
    kv_elements_per_token: int


@dataclass(frozen=True, kw_only=True)
class SharesKept(Stored):
    """Shares of the dense model's totals, between 0 and 1; more where biases were added."""

    prunable: float
    parameters: float
    kv_cache: float


@dataclass(frozen=True, kw_only=True)
class BudgetRecord(Stored):
    """The budget, asked and met. asked: None where a plan was replayed of which nothing more is known."""

    asked: AskedBudget | None
    dense: ModelSize
    pruned: ModelSize
    kept: SharesKept


@dataclass(frozen=True, kw_only=True)
class SharedRun(Stored):
    """The run through several ratios that a checkpoint is from, where it depends on the others.

    keep_ratios: all of them, largest first.  nested: whether a unit that went at one of them stays away at the next.
    """

    keep_ratios: tuple[float, ...]
    nested: bool


class _WithSettings(Stored):
    """What holds settings of stages beside its fields: all names are written, null where the stage is not in force."""

    @classmethod
    def written_inline(cls, values: Mapping[str, float]) -> Mapping[str, float | None]:
        """The settings of all stages there are, and any that a stage has which does not exist here."""
        stages = (STAGES.get(name) for name in STAGES.names())
        known = dict.fromkeys(name for stage in stages for name in getattr(stage, "settings", ()))
        return {**known, **values}


@dataclass(frozen=True, kw_only=True)
class Judgement(_WithSettings):
    """One measurement that a choice was made by.

    compensation: names of the stages in force, or "none".  settings: of those that refit weights.
    loss: mean next-token loss on the held-out sequences, in nats.
    """

    candidate: str
    compensation: str
    settings: Mapping[str, float] = field(default_factory=dict, metadata=INLINE)
    loss: float


def _plan(value: Any) -> PruningPlan | None:
    return None if value is None else _some_plan(value)


def _some_plan(value: Any) -> PruningPlan:
    if isinstance(value, PruningPlan):
        return value
    try:
        return PruningPlan.from_dict(value)
    except PlanError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class TrainedWith(_WithSettings):
    """A model of another ratio of the same run, that a stage was trained on together with this one.

    plan: its units.  compensation: names of the stages that had refitted or rebuilt its weights by then.
    settings: theirs.
    """

    plan: Annotated[PruningPlan, PlainValidator(_some_plan)]
    compensation: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict, metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class HeldOutLosses(Stored):
    """Mean next-token losses, in nats, on text that nothing is trained on; None where there is no such text.

    held_out: of the calibration corpus.  watched: of another kind.
    """

    held_out: float | None = None
    watched: float | None = None


@dataclass(frozen=True, kw_only=True)
class RecoveryRecord(Stored):
    """A training of the pruned model's weights.

    stage: its name.  tokens, steps: that it took, of `planned_steps`.  kept_step: steps after which its state was the
    best, which is in the checkpoint; 0 where none was better than before, so that nothing was changed.
    before, after: losses without it and in that state.  watched: the text of another kind.
    minutes: what it took; the one value that differs between two runs of the same.
    """

    stage: str
    tokens: int
    steps: int
    planned_steps: int
    kept_step: int
    before: HeldOutLosses | None
    after: HeldOutLosses | None
    watched: CorpusRecord | None
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Record(_WithSettings):
    """How a checkpoint was made.

    dummy: of a checkpoint with random weights, what it is good for.
    recipe: options of `GRASPConfig` and of the method and stages, by name; `config` is the configuration that they are.
    shared: the ratios of the run that its gates are of, or that it is nested in; None for a run of its own.
    calibration: None where nothing was calibrated.  compensation: names of the stages in force, in order.
    settings: what was chosen for them.  choice: all that was measured to choose.
    judged_at: the ratio of the run at which candidates and settings were chosen, where it is another one.
    trained_with: models that it was trained together with, largest first; None for a training of its own.
    trained_before: of formats up to 7, in its place: models that it was trained with in a way of earlier versions.
    recovery: the training of the weights, where there was one.
    plan: the units that were kept; None where single weights were cut.
    """

    format: int = RECORD_FORMAT
    dummy: str | None = field(default=None, metadata=OPTIONAL)
    recipe: Mapping[str, JsonValue]
    shared: SharedRun | None = field(default=None, metadata=OPTIONAL)
    base_model: ModelIdentity
    calibration: CalibrationRecord | None
    versions: Mapping[str, str]
    budget: BudgetRecord
    compensation: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict, metadata=INLINE)
    choice: tuple[Judgement, ...] = ()
    judged_at: float | None = field(default=None, metadata=OPTIONAL)
    trained_with: tuple[TrainedWith, ...] | None = field(default=None, metadata=OPTIONAL)
    trained_before: tuple[TrainedWith, ...] | None = field(default=None, metadata=OPTIONAL)
    recovery: RecoveryRecord | None = field(default=None, metadata=OPTIONAL)
    plan: Annotated[PruningPlan | None, PlainValidator(_plan)] = None

    @classmethod
    def arranged(cls, values: Any) -> Any:
        """The values as the fields have them, in the words of today: what older formats left unsaid is filled in."""
        if not isinstance(values, Mapping):
            return values
        check_format(values.get("format"), RECORD_FORMAT)
        if isinstance(recipe := values.get("recipe"), Mapping):
            values = {**values, "recipe": _as_of_today(values.get("format"), recipe, values.get("calibration"))}
        if values.get("format") in (5, 6, 7) and "trained_with" in values:
            values = {**values, "trained_before": values["trained_with"], "trained_with": None}
        return super().arranged(values)

    @property
    def config(self) -> GRASPConfig:
        """The recipe as a configuration; OptionError where it holds an option that does not exist here."""
        return GRASPConfig.from_dict(dict(self.recipe))

    def option(self, name: str) -> JsonValue:
        """An option of the recipe; the default where it does not say, as of a dummy."""
        return option_of(self.recipe, name)

    @property
    def mixed_as_one_text(self) -> bool:
        """Whether the calibration sequences were drawn from several corpora in the way of format 1."""
        return self.format == 1 and self.calibration is not None and "," in self.calibration.source

    def continued(self, origin: Record, applied: Mapping[str, JsonValue]) -> Record:
        """This record, of a replay, with what the record of the plan says of recipe, data and budget.

        applied: options that were applied in place of the recorded ones.
        """
        return replace(
            self,
            recipe={**origin.recipe, **applied},
            shared=origin.shared,
            calibration=origin.calibration or self.calibration,
            budget=replace(self.budget, asked=origin.budget.asked),
            choice=origin.choice,
            judged_at=origin.judged_at,
            trained_with=None if "compensation" in applied else origin.trained_with,
            recovery=self.recovery if applied else origin.recovery,
        )
