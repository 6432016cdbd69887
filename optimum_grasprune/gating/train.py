"""Training of gates, or of any one number per unit, while the model is fixed.

(GRASPrune, arXiv 2604.19398, section 3.2.) Shape suffixes: N sequences, B batch, S sequence, U units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..budget import Budget, project
from ..config import GRASPConfig
from ..errors import GraspruneError
from ..families import Family
from ..loss import next_token_loss
from ..masks import UnitMask
from ..numerics import precision_advice
from ..progress import bar
from ..units import UnitInventory
from .gates import frozen, gated, straight_through

BETAS = (0.9, 0.99)
"""AdamW's betas, as published."""


@dataclass(frozen=True)
class Schedule:
    """Length and course of one training. steps: optimiser steps in all.  kind: `GateOptions.schedule`."""

    steps: int
    kind: str

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, between 0 and 1."""
        return 1.0 if self.kind == "constant" else 0.5 * (1 + math.cos(math.pi * step / self.steps))


def batches(tokens_NS: Tensor, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Sequences in batches of shape (B, S): each epoch takes all of them once, in a new random order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(epochs):
        for indices in torch.randperm(len(tokens_NS), generator=generator, device="cpu").split(batch_size):
            yield tokens_NS[indices]


def training_steps(sequences: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps in all."""
    return epochs * -(-sequences // batch_size)


def gate_learning_rate(asked: float | None, cut: float) -> float:
    """AdamW's learning rate for the gate scores: what was asked, else one that grows with the cut.

    cut: share of the parameters, or of the KV cache if that is larger, that has to go. The way that scores travel is
    the rate times the steps. A mild cut needs few changes of the start's order, and the further gates travel beyond
    them, the more they suit the calibration text alone. So it is 1e-2 for a cut of a fifth, 2e-2 for a half, as
    measured, and 2e-2 · (2 · cut)^¾ elsewhere, in two significant digits, so that it can be written down and asked for.
    """
    return float(f"{2e-2 * (2 * cut) ** 0.75:.1e}") if asked is None else asked


def budget_at(budget: Budget, whole: int, warmup: float, progress: float) -> Budget:
    """The budget in force during training: it shrinks from the whole model to what was asked.

    whole: parameters of all units.  warmup: share of the training after which the full cut is reached.  progress:
    share of the training that is done. The cost falls geometrically, so that early masks are close to the dense model
    and gradients are taken where they still mean something. A cap on the KV cache holds from the start.
    """
    if progress >= warmup or budget.cost >= whole:
        return budget
    return replace(budget, cost=int(whole * (budget.cost / whole) ** (progress / warmup)))


def learn(
    model: PreTrainedModel,
    family: Family,
    inventory: UnitInventory,
    parameter_U: Tensor,
    multipliers: Callable[[float], Tensor],
    tokens_NS: Tensor,
    config: GRASPConfig,
    *,
    epochs: int,
    learning_rate: float,
    label: str,
    status: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Fit one number per unit in place with AdamW on shuffled batches, behind a bar that shows loss and status.

    multipliers: what the units are multiplied by, shape (units,), as a function of the progress through the training
    (0 at the first step, 1 after the last) and of `parameter_U`.
    """
    steps = training_steps(len(tokens_NS), epochs, config.batch_size)
    optimizer = torch.optim.AdamW([parameter_U], lr=learning_rate, betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(steps, config.schedule).factor)
    smooth = math.nan
    with (
        torch.enable_grad(),
        frozen(model, gradient_checkpointing=config.gradient_checkpointing),
        gated(model, family, inventory) as gates,
        bar(steps, label) as stage,
    ):
        for step, tokens_BS in enumerate(batches(tokens_NS, epochs, config.batch_size, config.seed), start=1):
            gates.values_U = multipliers((step - 1) / steps)
            tokens_BS = tokens_BS.to(model.device)
            loss = next_token_loss(model(tokens_BS, use_cache=False).logits, tokens_BS)
            if not math.isfinite(value := loss.item()):
                raise GraspruneError(f"{label}: the loss is {value} at step {step}; {precision_advice(model.dtype)}")
            (parameter_U.grad,) = torch.autograd.grad(loss, [parameter_U])
            optimizer.step()
            schedule.step()
            smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
            stage.status(", ".join([f"loss {smooth:.3f}", *status()]))
            stage.update()


def train_gates(
    model: PreTrainedModel,
    family: Family,
    inventory: UnitInventory,
    budget: Budget,
    tokens_NS: Tensor,
    config: GRASPConfig,
    start_U: Tensor | None = None,
) -> list[Tensor]:
    """Gate scores trained through the hard, budget-feasible mask of every step.  (Section 3.2)

    tokens_NS: calibration sequences, shape (N, S), int64.  start_U: scores at the start, shape (units,); zeros if None,
    and equal scores are kept evenly over layers and kinds. Returns the scores of `config.snapshots` moments of the
    training, evenly spaced, the final ones last; each of shape (units,), fp32, on the CPU; their projection is a mask.
    """
    start_U = torch.zeros(inventory.num_units, dtype=torch.float32, device="cpu") if start_U is None else start_U
    scores_U = start_U.to(model.device, torch.float32).clone().requires_grad_()
    mask = project(scores_U, inventory, budget)
    snapshots: list[Tensor] = []

    def multipliers(progress: float) -> Tensor:
        nonlocal mask
        if progress >= (len(snapshots) + 1) / config.snapshots:
            snapshots.append(scores_U.detach().cpu().clone())
        probabilities_U = torch.sigmoid(scores_U / config.temperature)
        # Projected by score, not by probability: the same order, but no ties where the sigmoid saturates.
        mask = project(scores_U, inventory, budget_at(budget, inventory.total_cost, config.budget_warmup, progress))
        return straight_through(mask.kept_U.to(model.device), probabilities_U)

    learn(
        model,
        family,
        inventory,
        scores_U,
        multipliers,
        tokens_NS,
        config,
        epochs=config.epochs,
        learning_rate=gate_learning_rate(config.learning_rate, budget.share_cut(inventory)),
        label="gates",
        status=lambda: _shares(mask),
    )
    return [*snapshots, scores_U.detach().cpu()]


def _shares(mask: UnitMask) -> tuple[str, str]:
    return f"ffn {mask.share('ffn'):.1%}", f"kv {mask.share('kv'):.1%}"
