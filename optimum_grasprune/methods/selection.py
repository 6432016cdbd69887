"""What a method comes to, and when another recipe would come to the same."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..config import GRASPConfig, RecoveryOptions
from ..registry import STAGES
from ..units import ElementMask, UnitMask


@dataclass(frozen=True)
class Selection:
    """Cuts to choose from, and what they were made by.

    scores_U: what the method scored units with, shape (units,); they fit any budget. None where single weights are cut.
    candidates: cuts by name, the method's own last; none where only the scores are known.
    """

    scores_U: Tensor | None
    candidates: Mapping[str, UnitMask] | Mapping[str, ElementMask]

    def scores_alone(self) -> Selection:
        """Without the candidates, which are of one budget."""
        return replace(self, candidates={})


class SelectionCache:
    """Selections of one model and corpus, so that recipes which differ in no matter are spared the work."""

    def __init__(self) -> None:
        self._selections: dict[str, Selection] = {}

    def keep(self, config: GRASPConfig, selection: Selection | None) -> None:
        """Remember what a recipe came to."""
        if selection is not None:
            self._selections[_key(config, options_of_recovery())] = selection
            self._selections[scores_key(config)] = selection.scores_alone()

    def for_recipe(self, config: GRASPConfig) -> Selection | None:
        """What a recipe would come to, or the scores alone that it would come to; None if neither is known."""
        own = self._selections.get(_key(config, options_of_recovery()))
        return own or self._selections.get(scores_key(config))


def options_of_recovery() -> set[str]:
    """The options that no choice of a cut depends on: what makes up for it, and all that only stages of that have."""
    classes = [STAGES.get(name) for name in STAGES.names()]
    common = {option for stage in classes for option in getattr(stage, "options", ())}
    own = {option for name in STAGES.names() if (options := STAGES.options_of(name)) for option in options.model_fields}
    return {"compensation", *RecoveryOptions.model_fields, *common, *own}


def scores_key(config: GRASPConfig) -> str:
    """The same text for all recipes that come to the same scores."""
    return _key(config, _not_of_scores())


def _not_of_scores() -> set[str]:
    """The options that no score depends on; one more, since any budget can be met with the same scores."""
    return {"keep_ratio", *options_of_recovery()}


def _key(config: GRASPConfig, without: Collection[str]) -> str:
    values = {name: value for name, value in config.to_dict().items() if name not in without}
    return json.dumps([sorted(without), values])
