"""How the cells of a comparison are shared out among processes. Pure functions of what is to be done."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from typing_extensions import Self

from ..errors import OptionError

_FORM = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


@dataclass(frozen=True)
class Shard:
    """One of several processes that do the same comparison. number: counted from 1.  count: how many there are."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a text like 2/8; OptionError for another."""
        match = _FORM.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise OptionError(
                "shard",
                text,
                "should be I/N, the I-th of N processes that share the cells, as in 1/4, 2/4, 3/4 and 4/4",
            )
        return cls(int(match[1]), int(match[2]))


def shares(groups: Sequence[Hashable], count: int) -> list[list[int]]:
    """The jobs of each of so many processes, as places in the list of all, in its order.

    groups: for each job, what it is done together with, since the second of a group takes less than the first.
    No group is split; the largest goes first, to whoever has least by then.
    """
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    found: list[list[int]] = [[] for _ in range(count)]
    for places in sorted(members.values(), key=len, reverse=True):
        min(found, key=len).extend(places)
    return [sorted(share) for share in found]


def order(groups: Sequence[Hashable], shard: Shard) -> tuple[list[int], list[int]]:
    """(its own, the others') jobs of a process, as places in the list of all, in the order in which it tries them.

    Others' from their ends, which they come to last, and first those of the next process: so that several which are
    done with their own try different ones.
    """
    all_shares = shares(groups, shard.count)
    own = shard.number - 1
    others = all_shares[shard.number :] + all_shares[:own]
    return all_shares[own], [place for share in others for place in reversed(share)]
