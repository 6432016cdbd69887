from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_grasprune import Budget, GRASPConfig
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import family_of
from optimum_grasprune.gates import gate_snapshots_at, train_gates
from optimum_grasprune.gates.mask_watch import MaskWatch, share_changed, share_kept
from optimum_grasprune.units import FFN, KV
from tests.conftest import make_model

TOKENS = torch.randint(258, (8, 12), generator=torch.Generator().manual_seed(0))


def mask(*kept: int) -> torch.Tensor:
    return torch.tensor(kept, dtype=torch.bool)


def test_shares_by_hand() -> None:
    before, after = mask(1, 1, 0, 0, 1, 1), mask(1, 0, 1, 0, 1, 0)
    channels, heads = mask(1, 1, 1, 1, 0, 0), mask(0, 0, 0, 0, 1, 1)
    assert share_kept(after, channels) == 0.5 and share_kept(after, heads) == 0.5
    # Two of four channels: one went, one came. One of two heads.
    assert share_changed(before, after, channels) == 0.5 and share_changed(before, after, heads) == 0.5
    assert share_changed(after, after, channels) == 0


def test_masks_are_held_against_the_last_one() -> None:
    inventory = family_of(make_model().config).inventory(make_model())
    budget = Budget(1, options=BudgetOptions(keep_ratio=0.8))
    everything = torch.ones(inventory.num_units, dtype=torch.bool)
    channels = inventory.is_kind_U[FFN]
    watch = MaskWatch(inventory, budget)

    def read(kept_U: torch.Tensor) -> dict[str, float]:
        watch.see(kept_U)
        return {name: round(float(value), 4) for name, value in watch.readings.items()}

    assert watch.noted() == {}
    first = read(everything)
    assert (first["keep_ratio"], first["kept.ffn"], first["kept.kv"]) == (0.8, 1.0, 1.0)
    assert all(torch.isnan(watch.readings[name]) for name in ("changed.ffn", "changed.kv"))
    again = read(channels)
    assert (again["kept.ffn"], again["kept.kv"], again["changed.ffn"], again["changed.kv"]) == (1, 0, 0, 1)
    later = MaskWatch(inventory, budget)
    later.take_up(watch.noted())
    for each in (watch, later):
        each.see(~everything)
        assert each.readings["changed.ffn"] == 1 and each.readings["changed.kv"] == 0
    assert read(~everything)["changed.ffn"] == 0 and inventory.is_kind_U[KV].any()


def test_the_curves_of_a_training_are_those_of_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[torch.Tensor] = []
    see = MaskWatch.see

    def seen(self: MaskWatch, kept_U: torch.Tensor) -> None:
        masks.append(kept_U.clone())
        see(self, kept_U)

    monkeypatch.setattr(MaskWatch, "see", seen)
    runner = WholeModel(make_model())
    config = GRASPConfig(keep_ratio=0.5, batch_size=1, learning_rate=0.5, epochs=2)
    budget = Budget.resolve(config, runner.inventory, 0)
    train_gates(runner, budget, TOKENS, config)
    (traced,) = runner.trainings
    curves = traced.curves(0.5)
    assert curves is not None and curves.steps == len(masks) == 16
    for kind in (FFN, KV):
        own = [kept_U[runner.inventory.is_kind_U[kind]].double() for kept_U in masks]
        kept = [float(f"{float(each.mean()):.6g}") for each in own]
        changed = [float((one - other).abs().mean()) for one, other in zip(own[1:], own, strict=False)]
        assert list(curves.readings[f"kept.{kind.name}"]) == pytest.approx(kept, rel=1e-5)
        assert curves.readings[f"changed.{kind.name}"][0] is None
        assert list(curves.readings[f"changed.{kind.name}"][1:]) == pytest.approx(changed, rel=1e-5)
    assert max(curves.readings["changed.ffn"][1:]) > 0  # type: ignore[type-var]


def test_of_several_ratios_the_smallest_has_the_steps() -> None:
    runner, config = WholeModel(make_model()), GRASPConfig(batch_size=1)
    options: list[Any] = [BudgetOptions(keep_ratio=ratio) for ratio in (0.8, 0.5)]
    budgets = [Budget.resolve(each, runner.inventory, 0) for each in options]
    gate_snapshots_at(runner, budgets, TOKENS, config, torch.zeros(runner.inventory.num_units))
    (traced,) = runner.trainings
    curves = traced.curves(0.5)
    assert curves is not None and curves.steps == len(TOKENS) and traced.curves(0.8) is None
