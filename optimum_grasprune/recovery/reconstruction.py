"""All maps of the layers refitted by least squares, layer by layer, to what enters them once others are cut.

What is cut from a layer changes what enters all later ones. So each map of the sliced model, from the first layer on,
is fitted to its inputs there, z: the target is what the dense map makes of the dense model's inputs, x. A map that
leads out of a block is to make up besides for what the residual stream lacks by then, e, so that errors do not add up.
The inputs of the next map are those of the maps already fitted. Tokens count by what an error at the block's output
would do to the loss, as for weighted least squares. Nothing is trained.

(Fitting to the inputs of the model as it is compressed so far, and to the dense model's outputs, is FASP's, arXiv
2501.09412; that what was lost before is made up for in it too, as GPTAQ does where weights are quantised, arXiv
2504.02692, and here in the residual stream.)

Shape suffixes: N sequences, T tokens, I input features before the cut, K those that stay, O output features, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ..execution import LayerStream, Runner
from ..families import Block, linear_at
from ..progress import track
from ..statistics import TOKEN_WEIGHTS, finite
from ..surgery import keep_units
from ..units import PruningPlan
from .base import RebuildingStage
from .least_squares import fitted_weight, of_layer
from .reference import Linear, Reference, kept_columns
from .registry import register

if TYPE_CHECKING:
    from ..config import GRASPConfig


@register("reconstruction")
@dataclass(frozen=True)
class Reconstruction(RebuildingStage):
    """Fits every map in the layers. damping: the ridge towards the old weights, in median diagonals of z zᵀ."""

    damping: float

    name = "reconstruction"
    sentence = "All maps in the layers were refitted by least squares, layer by layer"
    statistics = (TOKEN_WEIGHTS,)
    needs_sequences = True
    options = ("reconstruction_damping",)

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Self:
        """The stage of a configuration."""
        return cls(config.reconstruction_damping)

    def rebuild(self, reference: Reference, pruned: Runner, plan: PruningPlan) -> None:
        """Fit the maps, in place."""
        weights = reference.statistics[TOKEN_WEIGHTS]
        reconstruct(reference.runner, pruned, plan, reference.statistic_tokens_NS, weights, self.damping)


@torch.no_grad()
def reconstruct(
    dense: Runner,
    pruned: Runner,
    plan: PruningPlan,
    tokens_NS: Tensor,
    token_weights: Mapping[str, Tensor],
    damping: float,
) -> None:
    """Fit the maps of a sliced model, in place.

    tokens_NS: shape (N, S), int64.  token_weights: what each token counts for, by path of the map out of its block,
    shape (N, S) each.  damping: as in `restored_weight`.
    """
    corrects = not dense.family.norms_after_blocks(dense.model.config)
    with dense.stream(tokens_NS) as before, pruned.stream(tokens_NS) as after:
        for index in track(range(len(before.layers)), "reconstruction", "layer"):
            blocks = of_layer(dense, index)
            entered = list(before.hidden)
            inputs = _advance_with_inputs(before, index, dense, blocks)
            lacking = None
            if corrects:
                lacking = [(x_BSD - z_BSD)[0].float() for x_BSD, z_BSD in zip(entered, after.hidden, strict=True)]
            for block in blocks:
                layer = _Fit(dense, pruned, block, plan, after, index, token_weights[block.output], damping)
                lacking = layer.fitted(inputs, lacking)
            after.advance(index)


def _advance_with_inputs(
    stream: LayerStream, index: int, dense: Runner, blocks: Iterable[Block]
) -> dict[str, list[Tensor]]:
    """Take the dense stream through a layer; what entered the first and the last map of its blocks, (T, I) each."""
    modules = {path: linear_at(dense.model, path) for block in blocks for path in (block.maps[0], block.output)}
    inputs: dict[str, list[Tensor]] = {path: [] for path in modules}
    stream.advance(index, modules, lambda path, x_TI: inputs[path].append(finite(x_TI, path).cpu()))
    return inputs


@dataclass(frozen=True)
class _Fit:
    """The maps of one block. stream: of the sliced model, at its layer `index`.  weights_NS: what tokens count for."""

    dense: Runner
    pruned: Runner
    block: Block
    plan: PruningPlan
    stream: LayerStream
    index: int
    weights_NS: Tensor
    damping: float

    def fitted(self, inputs: Mapping[str, list[Tensor]], lacking: list[Tensor] | None) -> list[Tensor] | None:
        """Fit them; what the residual stream lacks after the block, if that is known.

        inputs: of the dense maps.  lacking: what the stream lacks before the block, shape (T, D) each, on the CPU; None
        where what a block puts out is not added to it as it is.
        """
        block, group = self.block, self.plan.group(self.block.address)
        of_output = inputs[block.output]
        if group.kept:
            self._fit_inputs(inputs[block.maps[0]])
        old = self.dense.parameter(f"{block.output}.weight")
        if lacking is not None:  # biases stay, and are the same in both
            lacking = [
                lacks_TD + functional.linear(x_TI.to(old.device), old).cpu().float()
                for lacks_TD, x_TI in zip(lacking, of_output, strict=True)
            ]
        if not group.kept:
            return lacking
        columns_K = kept_columns(self.plan, block, Linear(old))
        sliced = linear_at(self.pruned.model, block.output)
        entered = [self._input_of(block.output, position) for position in range(len(of_output))]
        weight_OK = old[:, columns_K].float()
        gram_KK, cross_OK = self._products(entered, self._targets(of_output, old, lacking))
        new_OK = fitted_weight(weight_OK, gram_KK, cross_OK, self.damping, block.output)
        with self.pruned.editing(sliced):
            sliced.weight.copy_(new_OK)
            new_OK = sliced.weight.detach().clone()
        if lacking is None:
            return None
        return [
            lacks_TD - functional.linear(z_TK, new_OK).cpu().float()
            for lacks_TD, z_TK in zip(lacking, entered, strict=True)
        ]

    def _fit_inputs(self, dense_inputs: list[Tensor]) -> None:
        """The maps into the block, which all have the same input."""
        block, group = self.block, self.plan.group(self.block.address)
        entered = [self._input_of(block.maps[0], position) for position in range(len(dense_inputs))]
        gram_II, cross_II = self._products(entered, iter(dense_inputs))
        for slot in block.slots[:-1]:
            path, _, leaf = slot.parameter.rpartition(".")
            if leaf != "weight":
                continue
            old_OI = keep_units(self.dense.parameter(slot.parameter), slot, group.kept, group.count).float()
            new_OI = fitted_weight(old_OI, gram_II, old_OI.to(cross_II.device) @ cross_II, self.damping, path)
            linear = linear_at(self.pruned.model, path)
            with self.pruned.editing(linear):
                linear.weight.copy_(new_OI)

    def _targets(self, of_output: list[Tensor], old: Tensor, lacking: list[Tensor] | None) -> Iterator[Tensor]:
        """What the map out of the block is to put out, for each sequence: with what the stream lacks, where known."""
        if lacking is not None:
            yield from lacking
            return
        for x_TI in of_output:
            yield functional.linear(x_TI.to(old.device), old)

    def _input_of(self, path: str, position: int) -> Tensor:
        module = linear_at(self.pruned.model, path)
        return finite(self.stream.input_of(module, self.index, position), path)

    def _products(self, entered: list[Tensor], targets: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Σ w z zᵀ and Σ w y zᵀ over all tokens, shapes (K, K) and (O, K), fp32; y: the targets, shape (T, O) each."""
        gram_KK = cross_OK = None
        for z_TK, y_TO, weight_T in zip(entered, targets, self.weights_NS, strict=True):
            z_TK = z_TK.to(self.stream.device).float()
            weighed_TK = z_TK * weight_T.to(z_TK.device)[:, None]
            y_TO = y_TO.to(z_TK.device).float()
            if gram_KK is None or cross_OK is None:
                gram_KK, cross_OK = weighed_TK.T @ z_TK, y_TO.T @ weighed_TK
            else:
                gram_KK.addmm_(weighed_TK.T, z_TK)
                cross_OK.addmm_(y_TO.T, weighed_TK)
        if gram_KK is None or cross_OK is None:
            raise ValueError("there is nothing to fit to")
        return gram_KK, cross_OK
