"""A smaller model that takes the dense one's place layer by layer, when its layers have been worked on."""

from __future__ import annotations

from ..dispatched import is_dispatched
from ..layer_store import detach_store
from ..surgery import Draft, Narrower, let_go
from .runner import Runner
from .streamed import StreamedModel
from .streamed_building import streamed_pruned


def cut_when_run(dense: Runner, draft: Draft) -> StreamedModel | None:
    """The smaller model of a draft, of which one layer is in memory beside the dense model; `put_in_place` is next.

    What is changed of it waits on the disk. The draft is used up. None where the dense model has its weights elsewhere,
    so that there is nothing to gain, or where whole layers go.
    """
    if not dense.in_memory or is_dispatched(dense.model) or not isinstance(draft, Narrower):
        return None
    model = streamed_pruned(draft.outline(), dense.model, dense.family, dense.device)
    return StreamedModel(model)


def put_in_place(dense: Runner, pruned: StreamedModel) -> None:
    """Have its layers in memory, in the place of the dense ones, of which nothing but shapes is left."""
    store = pruned.store
    if store is None:
        raise ValueError("the model is in memory already")
    dense.release()
    for layer in range(len(dense.family.decoder_layers(dense.model))):
        store.settle(layer)
        blocks = [block for block in dense.blocks if block.units.layer == layer]
        let_go(dense.model, [slot.parameter for block in blocks for slot in block.slots])
    detach_store(pruned.model)
