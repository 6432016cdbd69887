"""The estimator that lets a gradient through a hard choice. Shape suffix: U units."""

from torch import Tensor


def straight_through(mask_U: Tensor, probabilities_U: Tensor) -> Tensor:
    """Z = m + p − stopgrad(p): the hard mask forward, the probability's gradient backward.

    (GRASPrune, arXiv 2604.19398, section 3.2.) Returns shape (units,).
    """
    return mask_U.to(probabilities_U.dtype) + probabilities_U - probabilities_U.detach()
