"""The checkpoints of a benchmark: their names, and the shapes that memory and limits follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..export.checkpoint import read_record
from ..families import family_of
from ..families.shape import model_shape
from ..loading import empty_model, load_config
from ..units import FAST_MULTIPLE
from ..writing import slug
from .bounds import Shape
from .results import CheckpointFacts

DENSE = "dense"
"""Name of the dense checkpoint in results."""
ROUND_WIDTHS = (FAST_MULTIPLE, 64, 128)
"""Multiples that GPU kernels like FFN widths to be."""


@dataclass(frozen=True)
class Checkpoint:
    """A model to measure.

    name: in results.  source: folder or hub name.  dtype: of its weights on disk.  longest: tokens that it reads.
    vocabulary: number of its tokens.
    ffn_widths, kv_heads: of every layer.  kept: shares kept of a pruned one, by its record.
    """

    name: str
    source: str
    shape: Shape
    dtype: str
    longest: int
    vocabulary: int
    ffn_widths: tuple[int, ...]
    kv_heads: tuple[int, ...]
    kept: dict[str, float]

    def describe(self, weight_bytes: int, kv_bytes: int) -> CheckpointFacts:
        """Its facts as served. weight_bytes, kv_bytes: of one element."""
        return CheckpointFacts(
            name=self.name,
            source=self.source,
            parameters=self.shape.parameters,
            weight_bytes=self.shape.parameters * weight_bytes,
            kv_bytes_per_token=self.shape.kv_width * kv_bytes,
            ffn_widths=self.ffn_widths,
            kv_heads=self.kv_heads,
            ffn_widths_multiple_of={str(n): share_of_multiples(self.ffn_widths, n) for n in ROUND_WIDTHS},
            kept=self.kept,
        )


def read_checkpoints(
    dense: str, pruned: Sequence[str], *, trust_remote_code: bool = False, revision: str | None = None
) -> list[Checkpoint]:
    """The dense checkpoint and the pruned ones, each given as SOURCE or NAME=SOURCE.

    Raises OptionError when two have one name, ModelError when one cannot be read.
    """
    entries = [(DENSE, dense), *map(named, pruned)]
    taken: set[str] = set()
    for (name, _), entry in zip(entries, [dense, *pruned], strict=True):
        if slug(name) in taken:
            raise OptionError("pruned", entry, f"another checkpoint is called {name}; name them as in NAME={entry}")
        taken.add(slug(name))
    return [_read(name, source, trust_remote_code, revision) for name, source in entries]


def named(entry: str) -> tuple[str, str]:
    """(name, source) of an entry; without a name it is the last part of the source."""
    name, equals, source = entry.partition("=")
    if equals and name and source and "/" not in name:
        return name, source
    return Path(entry).name or entry, entry


def share_of_multiples(widths: Sequence[int], of: int) -> float:
    """The share of the widths that are multiples of a number."""
    return sum(width % of == 0 for width in widths) / len(widths)


def _read(name: str, source: str, trust_remote_code: bool, revision: str | None) -> Checkpoint:
    config = load_config(source, trust_remote_code=trust_remote_code, revision=revision)
    shape = model_shape(empty_model(config), family_of(config))
    return Checkpoint(
        name=name,
        source=source,
        shape=Shape.of(shape),
        dtype=str(config.dtype).removeprefix("torch."),
        longest=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        ffn_widths=tuple(layer.ffn_channels for layer in shape.layers),
        kv_heads=tuple(layer.kv_heads for layer in shape.layers),
        kept=_kept(source, revision),
    )


def _kept(source: str, revision: str | None) -> dict[str, float]:
    record = read_record(source, revision)
    return {} if record is None else record.budget.kept.to_dict()
