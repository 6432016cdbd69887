"""`GRASPConfig`: everything that decides what a pruned model looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, model_validator
from typing_extensions import Self

from .budget import BudgetOptions
from .calibration import CalibrationOptions
from .diagonals import DiagonalOptions
from .gates import GateOptions
from .least_squares import LeastSquaresOptions
from .method_options import OwnOptions, own_names, validated
from .pruning import PruningOptions
from .recipes import PAPER, QUICK, THOROUGH
from .recovery import RecoveryOptions
from .run import RunOptions
from .scales import ScaleOptions
from .search import SearchOptions

Own = TypeVar("Own", bound=OwnOptions)


class GRASPConfig(
    RecoveryOptions,
    LeastSquaresOptions,
    PruningOptions,
    BudgetOptions,
    CalibrationOptions,
    GateOptions,
    SearchOptions,
    ScaleOptions,
    DiagonalOptions,
    RunOptions,
):
    """The whole recipe of a pruned model. Immutable; unknown names and values out of range raise `OptionError`.

    Options that only the chosen method has, or a recovery stage, are given and read like the others.

    >>> GRASPConfig(keep_ratio=0.8, dataset="wikitext2", epochs=1)
    """

    model_config = ConfigDict(extra="allow")  # for those options: `validated` lets no others in

    @model_validator(mode="before")
    @classmethod
    def _with_own_options(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        common = {name: value for name, value in values.items() if name in cls.model_fields}
        chosen = {name: common.get(name, cls.model_fields[name].default) for name in ("method", "compensation")}
        own = validated(chosen, {name: value for name, value in values.items() if name not in common})
        return {**common, **own}

    @classmethod
    def option_names(cls, method: str) -> tuple[str, ...]:
        """The common options, and those that a method, and every loaded stage, brings along."""
        return (*cls.model_fields, *own_names(method))

    def own(self, options: type[Own]) -> Own:
        """The options of a method or stage, as an object of the class that it brings along."""
        given = self.model_extra or {}
        return options(**{name: given[name] for name in options.model_fields if name in given})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, which are validated; with another method, the options of the one before go."""
        update = dict(update or {})
        values = {**vars(self), **(self.model_extra or {})}
        if update.get("method", self.method) != self.method:
            values = vars(self)
        return type(self)(**{**values, **update})

    @property
    def recovery_batch_size(self) -> int:
        """Sequences in one step while weights are trained."""
        return self.recover_batch_size or self.batch_size

    @classmethod
    def paper(cls, **overrides: Any) -> GRASPConfig:
        """The published recipe (arXiv 2604.19398, section 4.1) with corrected mistakes; `overrides` are set on top.

        WikiText-2 train, 512 sequences of 512 tokens, 4 epochs of gates and 1 of scales, batch 1, AdamW at a constant
        1e-2, bf16.
        """
        return cls(**{**PAPER, **overrides})

    @classmethod
    def quick(cls, **overrides: Any) -> GRASPConfig:
        """Fewer and shorter sequences, and the full cut from the first step: for a first look."""
        return cls(**{**QUICK, **overrides})

    @classmethod
    def thorough(cls, **overrides: Any) -> GRASPConfig:
        """The default, a long search of widths and twice the steps of diagonals: for a model that will be served."""
        return cls(**{**THOROUGH, **overrides})


OwnOptions.common = frozenset(GRASPConfig.model_fields)
