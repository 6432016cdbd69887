"""Decoder layers that several processes hold together: each has a share of every tensor's rows in its memory.

A tensor is put together in all of them at once, when its layer is run or it is read for something else, and let go
again. So all have to go through the same layers in the same order, whether they have sequences for it or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..layer_store import Stored
from ..numerics import even_shares
from ..progress import bar
from ..stored_tensors import StoredTensor
from ..streamed_loading import Held
from .peers import Peers


@dataclass(frozen=True)
class Share:
    """This process's rows of a tensor. rows: of each process."""

    part: Tensor
    rows: tuple[int, ...]
    peers: Peers

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `Stored.read`; every process has to."""
        return self.peers.whole(self.part, self.rows).to(device, dtype)


@dataclass(frozen=True)
class _Copy:
    """A tensor that every process has the whole of."""

    tensor: Tensor

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.tensor.to(device, dtype, copy=True)


def shared_out(peers: Peers) -> Held:
    """What holds layers so, for `streamed_model`: in the dtype and on the device that each process computes in."""
    return partial(_held, peers)


def _held(
    peers: Peers, stored: Mapping[str, StoredTensor], dtypes: Mapping[str, torch.dtype], device: torch.device
) -> dict[str, Stored]:
    held: dict[str, Stored] = {}
    with bar(len(stored), "reading", "tensor") as stage:
        for name, tensor in stored.items():
            if len(tensor.shape) < 2:  # a norm or a bias: an exchange costs more than it would save
                held[name] = _Copy(tensor.read(device, dtypes[name]))
            else:
                rows = even_shares(tensor.shape[0], peers.count)
                own = tensor.rows(sum(rows[: peers.rank]), rows[peers.rank])
                held[name] = Share(own.read(device, dtypes[name]), rows, peers)
            stage.update()
    return held
