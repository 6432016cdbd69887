"""A pruned model with all that is known of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import ModelError
from .export.base_card import BaseCard
from .export.card import CardFacts, model_card
from .export.checkpoint import save_checkpoint, tensors_to_save
from .export.outputs import Source
from .families import family_of
from .families.shape import model_shape, tensor_parallel_sizes
from .layer_store import store_of
from .methods.selection import Selection
from .record import Record, ReportNumbers
from .units import PruningPlan


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """What pruning came to.

    model: the smaller model, or the one with zeros in it.  plan: what was kept; None where single weights were cut.
    record: what `grasp_config.json` will hold.  tokenizer: saved beside the model, if there is one.
    selection: what the method came to, for `GRASPPruner.prune` with another budget or compensation; None after a
    replay, and where single weights were cut, whose masks are as large as the model.
    sources: what lies on this machine of what it was made from, which no checkpoint may replace.
    base: what the card of the dense model says of it.
    numbers: what its report shows of how it came to be; None where that is not known, as of some replays.
    """

    model: PreTrainedModel
    plan: PruningPlan | None
    record: Record
    tokenizer: PreTrainedTokenizerBase | None = None
    selection: Selection | None = None
    sources: Sequence[Source] = ()
    base: BaseCard = field(default_factory=BaseCard)
    numbers: ReportNumbers | None = None

    @property
    def card_facts(self) -> CardFacts:
        """What its card says that its record does not hold."""
        try:
            shape = model_shape(self.model, family_of(self.model.config))
        except ModelError:  # of no attention in any layer, which no engine serves
            return CardFacts(self.base)
        return CardFacts(self.base, tuple(tensor_parallel_sizes(shape.layers)))

    @property
    def in_step(self) -> bool:
        """Whether several processes hold it together: while one saves it, the others have to `read_along`."""
        store = store_of(self.model)
        return store is not None and store.in_step

    def read_along(self, *, max_shard_size: int | str = "5GB") -> None:
        """Take part in what another process does by `save`, with the same size of shards."""
        for _ in tensors_to_save(self.model, max_shard_size):
            pass

    def save(
        self, output: str | os.PathLike[str], *, overwrite: bool = False, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write a checkpoint folder.

        overwrite: replace the files of an older checkpoint in it; all others stay.
        One process of several does it; where they hold the model together (`in_step`) the others `read_along`.
        Raises CheckpointError when it cannot be written, or is, contains or lies in what the model was made from.
        """
        save_checkpoint(
            self.model,
            self.tokenizer,
            self.record,
            output,
            card=model_card(self.record, self.card_facts),
            numbers=self.numbers,
            overwrite=overwrite,
            max_shard_size=max_shard_size,
            sources=self.sources,
        )
