"""Which runner a model gets that is loaded: by where its weights are."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..dispatched import is_dispatched
from ..layer_store import store_of
from .offloaded import OffloadedModel
from .runner import Runner
from .streamed import StreamedModel
from .whole import WholeModel


def runner_for(model: PreTrainedModel) -> Runner:
    """The runner of a model that is loaded, by where its weights are."""
    if store_of(model) is not None:
        return StreamedModel(model)
    return OffloadedModel(model) if is_dispatched(model) else WholeModel(model)
