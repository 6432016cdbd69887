"""How maps are refitted by least squares."""

from typing import Annotated, Literal

from pydantic import Field

from .base import Flag, Options


class LeastSquaresOptions(Options):
    """How maps are refitted by least squares: those that lead out of blocks, or all of them."""

    restoration: Literal["auto", "dense", "sequential"] = Field(
        default="auto",
        description="inputs that the least squares fit: what stays of the dense model's, or those that the layers "
        "already restored give; auto is the method's own",
    )
    least_squares: Literal["auto", "robust", "plain", "weighted"] = Field(
        default="auto",
        description="how least squares take massive activations: robust leaves outlying tokens out and measures the "
        "ridge in median diagonals of the Gram matrix, plain takes all tokens and mean diagonals, as FASP does, "
        "weighted takes all tokens by what an error at their output would do to the loss; auto is the method's own",
    )
    damping: Annotated[float | None, Flag("FACTOR")] = Field(
        default=None,
        gt=0,
        description="ridge of the least squares towards the weights as they are, in mean diagonals of the Gram matrix "
        "(plain) or in median ones (robust, weighted); by default 0.01 for plain, and for the others the best of "
        "several on held-out data",
    )
    reconstruction_damping: Annotated[float, Flag("FACTOR")] = Field(
        default=2.0,
        gt=0,
        description="ridge of the reconstruction of all maps towards the weights as they are, in median diagonals of "
        "the Gram matrix",
    )
