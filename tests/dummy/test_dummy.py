from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import LlamaConfig

from optimum_grasprune import Budget, PruningPlan, UnitGroup, UnitInventory, UnitMask, load_pruned_model
from optimum_grasprune.config import BudgetOptions
from optimum_grasprune.dummy import (
    SHAPES,
    Dummy,
    chosen_mask,
    dummy_tokenizer,
    profile,
    shape_config,
    shares_of,
    uniform_mask,
    write_dummy,
)
from optimum_grasprune.errors import OptionError
from optimum_grasprune.export.checkpoint import read_plan, read_record
from optimum_grasprune.families import family_of
from optimum_grasprune.loading import count_parameters, empty_model, load_model, load_tokenizer
from optimum_grasprune.selection.width_search import widths_of
from optimum_grasprune.units import FFN, KV, Address, GroupPlan

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "tinyllama-1.1b": 1_100_048_384,
    "open-llama-3b": 3_426_473_600,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
}
"""As published."""


@cache
def inventory_of(name: str) -> UnitInventory:
    model = empty_model(shape_config(name))
    return family_of(model.config).inventory(model)


def pruned(name: str = "tiny", uniform: bool = False, **options: object) -> Dummy:
    config = shape_config(name)
    inventory = inventory_of(name)
    budget = Budget.resolve(BudgetOptions(**options), inventory, inventory.total_cost)
    mask = chosen_mask(profile(config.num_hidden_layers), inventory, budget)
    plan = PruningPlan.from_mask(uniform_mask(mask, budget) if uniform else mask)
    return Dummy(name, config, plan, budget, "a test's")


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
    assert count_parameters(empty_model(shape_config(name))) == PARAMETERS[name]


def test_every_shape_but_the_tiny_one_is_held_against_its_model() -> None:
    assert {*PARAMETERS, "tiny"} == set(SHAPES)


def test_unknown_shape() -> None:
    with pytest.raises(OptionError, match="no such shape; there are tiny, "):
        shape_config("llama-9")


def test_random_tokens_survive_as_text() -> None:
    tokenizer = dummy_tokenizer(shape_config("tiny"))
    tokens = torch.randint(3, 2048, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    assert tokenizer(tokenizer.decode(tokens)).input_ids == tokens
    assert len(tokenizer) == 2048
    assert tokenizer("hello w5").input_ids == [0, 5]


def test_shares_of_a_plan_are_read_at_the_same_depth() -> None:
    # Two layers stand at depths 1/4 and 3/4, four at 1/8, 3/8, 5/8 and 7/8: a quarter of the way from one to the other.
    groups = [GroupPlan(layer, FFN, 100, tuple(range(kept))) for layer, kept in ((0, 20), (1, 60))] + [
        GroupPlan(layer, KV, 4, tuple(range(kept))) for layer, kept in ((0, 4), (1, 2))
    ]
    shares = shares_of(PruningPlan(tuple(groups)), 4)
    assert shares[FFN] == pytest.approx([0.2, 0.3, 0.5, 0.6])
    assert shares[KV] == pytest.approx([1.0, 0.875, 0.625, 0.5])


def test_of_a_block_that_was_gone_before_a_plan_keeps_nothing() -> None:
    groups = [GroupPlan(layer, FFN, 100, tuple(range(50))) for layer in range(2)] + [GroupPlan(1, KV, 4, (0, 1, 2))]
    shares = shares_of(PruningPlan(tuple(groups)), 2)
    assert shares == {KV: [0.0, 0.75], FFN: [0.5, 0.5]}
    for steps in ({}, {"ffn_multiple_of": 4}):
        inventory = two_layers()
        budget = Budget.resolve(BudgetOptions(keep_ratio=0.5, min_kv_groups=0, **steps), inventory, 160)
        none, _, heads, _ = widths_of(chosen_mask(shares, inventory, budget))
        assert none == 0 and heads >= 3


def two_layers() -> UnitInventory:
    return UnitInventory(
        tuple(group for layer in range(2) for group in (UnitGroup(layer, KV, 4, 10, 2), UnitGroup(layer, FFN, 40, 1)))
    )


def test_widths_are_in_the_proportion_of_the_shares() -> None:
    inventory = two_layers()
    budget = Budget.resolve(BudgetOptions(keep_ratio=0.5), inventory, 160)
    mask = chosen_mask({KV: [1.0, 1.0], FFN: [1.5, 0.5]}, inventory, budget)
    # All shares stretched by one half: two heads each, and 30 and 10 channels.
    assert widths_of(mask) == (2, 30, 2, 10)
    assert mask.kept_cost == 80


def test_control_has_all_layers_alike() -> None:
    inventory = two_layers()
    budget = Budget.resolve(BudgetOptions(keep_ratio=0.55), inventory, 160)
    control = uniform_mask(chosen_mask({KV: [1.0, 1.0], FFN: [1.5, 0.5]}, inventory, budget), budget)
    assert widths_of(control) == (2, 24, 2, 24)  # 88 allowed


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["tiny", "smollm2-135m"]),
    st.floats(0.3, 1),
    st.sampled_from([1, 8, 64]),
    st.booleans(),
)
def test_budget_is_met_from_below(name: str, ratio: float, step: int, uniform: bool) -> None:
    dummy = pruned(name, uniform, keep_ratio=round(ratio, 3), ffn_multiple_of=step)
    inventory = inventory_of(name)
    assert dummy.plan is not None and dummy.budget is not None
    dummy.plan.check(inventory)
    costs = {group.address: group.cost for group in inventory.groups}
    cost = sum(len(group.kept) * costs[group.address] for group in dummy.plan.groups)
    block = step * costs[Address(0, FFN)] * (dummy.plan.num_layers if uniform else 1)
    full = all(len(group.kept) + step > group.count for group in dummy.plan.groups if group.kind == FFN)
    assert cost <= dummy.budget.cost
    assert dummy.budget.cost - cost < block or full
    assert all(len(group.kept) % step == 0 for group in dummy.plan.groups if group.kind == FFN)
    if uniform:
        assert len({len(group.kept) for group in dummy.plan.groups}) <= 2


def test_llama_2_70b_for_eight_gpus() -> None:
    dummy = pruned("llama-2-70b", keep_ratio=0.5, tensor_parallel_size=8)
    assert dummy.plan is not None
    assert all(len(group.kept) % 8 == 0 for group in dummy.plan.groups)


def test_pruned_checkpoint_loads(tmp_path: Path) -> None:
    dummy = pruned(keep_ratio=0.5)
    write_dummy(dummy, tmp_path / "out", max_shard_size="2MB", seed=3)
    model = load_pruned_model(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    record = read_record(tmp_path / "out")
    assert record is not None and record.dummy is not None and record.budget.asked is not None
    assert "meaningless for quality" in record.dummy
    assert "meaningless for quality" in (tmp_path / "out" / "README.md").read_text()
    assert record.budget.pruned.parameters == count_parameters(model)
    assert record.budget.asked.cost >= record.budget.pruned.prunable
    assert read_plan(tmp_path / "out")[0] == dummy.plan
    assert load_tokenizer(str(tmp_path / "out"))("w7").input_ids == [7]
    logits = model(torch.arange(3, 40)[None]).logits
    assert torch.isfinite(logits).all() and logits.std() > 0
    sizes = [file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) < 2.1e6


def test_dense_checkpoint_is_a_stock_one(tmp_path: Path) -> None:
    config = LlamaConfig.from_dict({**shape_config("tiny", "float32").to_dict(), "tie_word_embeddings": True})
    write_dummy(Dummy("tied", config), tmp_path / "out")
    model = load_model(str(tmp_path / "out"))
    assert model.config.model_type == "llama" and model.dtype == torch.float32
    assert read_record(tmp_path / "out") is None and not list((tmp_path / "out").glob("*.py"))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118 - safe_open is no mapping
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.06, rel=0.05)
    assert (model.model.norm.weight == 1).all()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_dummy(pruned(keep_ratio=0.4), tmp_path / name, seed=seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_configuration_only(tmp_path: Path) -> None:
    write_dummy(pruned(keep_ratio=0.5), tmp_path / "out", config_only=True)
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    assert "--load-format dummy" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "modeling_grasp.py").is_file()


def test_bad_shard_size_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="max_shard_size='big': should be a size like 2GB"):
        write_dummy(pruned(keep_ratio=0.5), tmp_path / "out", max_shard_size="big")
    assert not list(tmp_path.iterdir())


def test_a_mask_is_filled_from_the_first_unit_on() -> None:
    inventory = two_layers()
    budget = Budget.resolve(BudgetOptions(keep_ratio=0.5), inventory, 160)
    mask = chosen_mask(profile(2), inventory, budget)
    assert isinstance(mask, UnitMask)
    assert all(mask.kept(group.address) == list(range(len(mask.kept(group.address)))) for group in inventory.groups)
