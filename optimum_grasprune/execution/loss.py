"""The next-token loss that gates are trained on and perplexity is measured with.

Shape suffixes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional


def next_token_loss(logits_BSV: Tensor, tokens_BS: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Cross-entropy of each token given those before it, in nats, computed in fp32.

    Returns a scalar, or shape (B, S - 1) with reduction "none".
    """
    logits = logits_BSV[:, :-1].float().flatten(0, 1)
    losses = functional.cross_entropy(logits, tokens_BS[:, 1:].flatten(), reduction=reduction)
    return losses if reduction == "mean" else losses.view(tokens_BS.shape[0], -1)
