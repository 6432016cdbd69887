"""Comparing what was measured: ratios within each repetition, their median and spread. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .bounds import Limits
from .checkpoints import DENSE
from .fit import GIB
from .quantities import COMMON, Quantity
from .results import CheckpointFacts, Comparison, MemoryRow, Number, Run, Spread, Start


def spread(values: Iterable[float]) -> Spread:
    """The spread of one value or more."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))


def values_of(runs: Iterable[Run], checkpoint: str, point: str, metric: str) -> dict[int, float]:
    """What a checkpoint gave at a point, by repetition."""
    return {
        run.repetition: run.metrics[metric]
        for run in runs
        if run.checkpoint == checkpoint and run.point == point and metric in run.metrics
    }


def paired_ratios(dense: Mapping[int, float], pruned: Mapping[int, float]) -> list[float]:
    """Pruned over dense in each repetition that both have, where the dense value is not 0."""
    return [pruned[key] / dense[key] for key in sorted(dense.keys() & pruned.keys()) if dense[key]]


def compare(
    runs: Sequence[Run],
    point: str,
    checkpoint: str,
    bounds: Limits | None,
    quantities: Mapping[str, Quantity] = COMMON,
) -> list[Comparison]:
    """A checkpoint beside the dense one at one point: a row for every quantity that both have."""
    rows = []
    for name, quantity in quantities.items():
        dense, pruned = (values_of(runs, key, point, name) for key in (DENSE, checkpoint))
        if not dense or not pruned:
            continue
        ratios = paired_ratios(dense, pruned)
        rows.append(
            Comparison(
                point=point,
                checkpoint=checkpoint,
                metric=name,
                dense=spread(dense.values()),
                pruned=spread(pruned.values()),
                ratio=spread(ratios) if ratios else None,
                limit=limit_of(quantity, bounds),
            )
        )
    return rows


def bursty(runs: Iterable[Run]) -> list[str]:
    """Points at which some checkpoint's client got most tokens together with the one before."""
    return list(dict.fromkeys(run.point for run in runs if run.metrics.get("in_bursts", 0.0) > 0.5))


def limit_of(quantity: Quantity, bounds: Limits | None) -> float | None:
    """The limit of a ratio pruned ÷ dense: the speed-up's for a throughput, its inverse for a time."""
    if bounds is None or quantity.phase is None:
        return None
    bound: float = getattr(bounds, quantity.phase)
    return bound if quantity.higher else 1 / bound


def memory(
    described: Sequence[CheckpointFacts], starts: Sequence[Start], kv_bytes: int | None
) -> tuple[MemoryRow, ...]:
    """What each checkpoint takes and what its KV cache holds, the dense one's first.

    starts: of their servers.  kv_bytes: memory of the KV cache where it was fixed.
    `kv_cache_tokens` is what the server says. `kv_tokens_per_gib` follows from the shapes: the view at fixed KV memory.
    `kv_tokens_same_total` gives the cache what the weights of the dense model take more: the view at fixed memory in
    all, which the server itself has where the KV memory is not fixed.
    """
    rows = [_memory_row(item, described[0], starts, kv_bytes) for item in described]
    return tuple(replace(row, kv_ratio=_ratio(row.kv_cache_tokens, rows[0].kv_cache_tokens)) for row in rows)


def _memory_row(
    item: CheckpointFacts, dense: CheckpointFacts, starts: Sequence[Start], kv_bytes: int | None
) -> MemoryRow:
    own = [start for start in starts if start.checkpoint == item.name]
    per_token = item.kv_bytes_per_token
    freed = dense.weight_bytes - item.weight_bytes
    return MemoryRow(
        checkpoint=item.name,
        kv_cache_tokens=_median(start.kv_cache_tokens for start in own),
        max_concurrency=_median(start.max_concurrency for start in own),
        kv_tokens_per_gib=GIB // per_token,
        kv_tokens_same_total=None if kv_bytes is None else (kv_bytes + freed) // per_token,
        kv_ratio_computed=dense.kv_bytes_per_token / per_token,
        load_seconds=_spread(start.load_seconds for start in own),
        seconds=_spread(start.seconds for start in own),
        engine_seconds=_spread(start.engine_seconds for start in own),
        weight_gib=_spread(start.weight_gib for start in own),
    )


def _ratio(own: Number | None, dense: Number | None) -> float | None:
    return own / dense if own and dense else None


def _median(values: Iterable[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
