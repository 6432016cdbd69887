"""Least-squares restoration of pruned models, layer by layer.  (FASP, arXiv 2501.09412, section 3.3)

The target of every output projection is what it puts out in the dense model. Its inputs are either those that the
layers already restored give it, as in the paper (`restore_in_sequence`), or what stays of the dense model's
(`restored_on_dense_inputs`): then one forward pass serves any number of plans.

One layer's matrices are in memory at a time.

Shape suffixes: T tokens, I dense input features of an output projection, K those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration.collect import finite
from ..calibration.layerwise import LayerStream
from ..families import Family
from ..gating.gates import frozen
from ..plan import PruningPlan
from ..progress import track
from ..surgery import kept_columns
from ..surgery.restoration import restored_weight, usual_tokens
from ..units import KINDS, Kind


@dataclass(frozen=True)
class Fit:
    """How least squares take massive activations.

    outliers: whether tokens of an outlying norm count too.  diagonal: what of the Gram matrix a damping is measured in.
    dampings: those that are tried where held-out data can choose; the first is taken where they cannot.
    """

    outliers: bool
    diagonal: Literal["median", "mean"]
    dampings: tuple[float, ...]

    def counted(self, x_TI: Tensor) -> Tensor:
        """True for the tokens that count, shape (T,), bool."""
        return torch.ones(len(x_TI), dtype=torch.bool, device=x_TI.device) if self.outliers else usual_tokens(x_TI)


FITS = {
    "robust": Fit(outliers=False, diagonal="median", dampings=(4.0, 0.5, 0.05, 0.005)),
    # As FASP has it, but for the ridge, which pulls towards the old weights and not towards zero.
    "plain": Fit(outliers=True, diagonal="mean", dampings=(0.01,)),
}
"""What `MethodOptions.least_squares` offers, by name."""

Weights = dict[tuple[int, Kind], Tensor]
"""Refitted output projections by layer and kind, each of shape (O, K), in the model's dtype, on the CPU."""


@torch.no_grad()
def restored_on_dense_inputs(
    dense: PreTrainedModel, trials: Sequence[tuple[PruningPlan, float]], family: Family, tokens_NS: Tensor, fit: Fit
) -> list[Weights]:
    """Output projections refitted to the kept part of the dense inputs, for each trial of a plan with a damping.

    One forward pass of the dense model serves all trials. damping: see `restored_weight`.
    """
    results: list[Weights] = [{} for _ in trials]
    with frozen(dense):
        stream = LayerStream.start(dense, family, tokens_NS)
        for index, layer in enumerate(track(list(family.decoder_layers(dense)), "least squares", "layer")):
            outputs = {kind: family.coupling(layer, kind).output for kind in KINDS}
            grams = _advance_with_grams(stream, layer, outputs, index, family, fit)
            for (plan, damping), weights in zip(trials, results, strict=True):
                for kind, before in outputs.items():
                    columns_K = kept_columns(plan.group(index, kind), before)
                    cross_IK = grams[kind][:, columns_K]
                    gram_KK, path = cross_IK[columns_K], family.output_path(index, kind)
                    weight_OK = restored_weight(
                        before.weight, columns_K, gram_KK, cross_IK, damping, path, fit.diagonal
                    )
                    weights[index, kind] = weight_OK.to(before.weight.dtype).cpu()
    return results


def _advance_with_grams(
    stream: LayerStream, layer: nn.Module, outputs: dict[Kind, nn.Linear], index: int, family: Family, fit: Fit
) -> dict[Kind, Tensor]:
    """Take the stream through a layer; X Xᵀ of each output projection's input over the tokens that count, (I, I)."""
    grams = {
        kind: linear.weight.new_zeros(linear.in_features, linear.in_features, dtype=torch.float32)
        for kind, linear in outputs.items()
    }

    def add(kind: Kind, x_TI: Tensor) -> None:
        x_TI = finite(x_TI, family.output_path(index, kind))
        x_TI = x_TI[fit.counted(x_TI)].float()
        grams[kind].addmm_(x_TI.T, x_TI)

    stream.advance(layer, outputs, add)
    return grams


@torch.no_grad()
def take_weights(pruned: PreTrainedModel, weights: Weights, family: Family) -> None:
    """Put refitted output projections into a sliced model, in place."""
    outputs = family.output_projections(pruned)
    for key, weight_OK in weights.items():
        outputs[key].weight.copy_(weight_OK)


@torch.no_grad()
def restore_in_sequence(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    plan: PruningPlan,
    family: Family,
    tokens_NS: Tensor,
    damping: float,
    fit: Fit,
) -> None:
    """Refit the output projections of a sliced model, in place, to the inputs that they have in that model.

    damping: see `restored_weight`.
    """
    layers = list(zip(family.decoder_layers(dense), family.decoder_layers(pruned), strict=True))
    with frozen(dense), frozen(pruned):
        reference = LayerStream.start(dense, family, tokens_NS)
        current = LayerStream.start(pruned, family, tokens_NS)
        for index, (old, new) in enumerate(track(layers, "least squares", "layer")):
            for kind in KINDS:  # attention first: the FFN's inputs depend on it
                before, after = (family.coupling(layer, kind).output for layer in (old, new))
                gram_KK = after.weight.new_zeros(after.in_features, after.in_features, dtype=torch.float32)
                cross_IK = after.weight.new_zeros(before.in_features, after.in_features, dtype=torch.float32)
                path = family.output_path(index, kind)
                for position in range(len(tokens_NS)):
                    x_TI = finite(reference.input_of(before, old, position), path)
                    z_TK = finite(current.input_of(after, new, position), path)
                    counted_T = fit.counted(x_TI) & fit.counted(z_TK)
                    x_TI, z_TK = x_TI[counted_T].float(), z_TK[counted_T].float()
                    gram_KK.addmm_(z_TK.T, z_TK)
                    cross_IK.addmm_(x_TI.T, z_TK)
                columns_K = kept_columns(plan.group(index, kind), before)
                weight_OK = restored_weight(before.weight, columns_K, gram_KK, cross_IK, damping, path, fit.diagonal)
                after.weight.copy_(weight_OK)
            reference.advance(old)
            current.advance(new)
