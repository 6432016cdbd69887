"""Cutting single weights: which stay, and the model of the same size with zeros where the others were.

Shape suffixes: O output features (rows), I input features (columns), B blocks of neighbours in a row, M in a block.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..units import ElementMask


def keep_per_row(scores_OI: Tensor, count: int) -> Tensor:
    """True at the `count` highest scores of every row, the first of equal ones; shape (O, I), bool."""
    best = scores_OI.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(-1, best, True)


def keep_n_of_m(scores_OI: Tensor, n: int, m: int) -> Tensor:
    """True at the `n` highest scores of every `m` neighbours in a row, the first of equal ones; shape (O, I), bool.

    Blocks of neighbours do not overlap, as sparse tensor cores want it.  ValueError unless I is a multiple of m.
    """
    rows, width = scores_OI.shape
    if width % m:
        raise ValueError(f"{width} columns cannot be split into blocks of {m}")
    blocks_BM = scores_OI.reshape(rows * width // m, m)
    return keep_per_row(blocks_BM, n).view(rows, width)


def build_sparse_model(model: PreTrainedModel, mask: ElementMask) -> PreTrainedModel:
    """A model of the same class and size with zeros where weights were cut; the given one stays as it is.

    Masked weights, and biases beside them, are copies that may be edited in place; all others share their memory with
    the given model.
    """
    # Parameters of its own around shared memory: moving or converting the copy must not move the original.
    own = {id(part): nn.Parameter(part.data, requires_grad=part.requires_grad) for part in model.parameters()}
    for path, kept_OI in mask.kept.items():
        for part in model.get_submodule(path).parameters(recurse=False):
            cut = part.ndim > 1  # a bias loses nothing
            data = part.data.masked_fill(~kept_OI.to(part.device), 0) if cut else part.data.clone()
            own[id(part)] = nn.Parameter(data, requires_grad=part.requires_grad)
    return copy.deepcopy(model, own)
