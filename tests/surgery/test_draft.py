from __future__ import annotations

import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from optimum_grasprune import PruningPlan
from optimum_grasprune.errors import GraspruneError
from optimum_grasprune.families import family_of, linear_at, linears
from optimum_grasprune.surgery import Draft, Narrower, OnDisk, Rebuilt, build_pruned_model, drafted, in_memory
from optimum_grasprune.units import FFN, KV, Address, UnitMask
from tests.conftest import logits_of, make_model
from tests.tiny_models import CASES, some_plan, tiny_model

TOKENS = torch.arange(2, 62).view(2, 30)


def draft_of(model: PreTrainedModel, plan: PruningPlan, **options: bool) -> Draft:
    def read(name: str) -> Tensor:
        return model.get_parameter(name).detach()

    return drafted(model, plan, family_of(model.config), read, **options)


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=CASES, ids=" ".join)
def dense(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(*request.param)


def edited(draft: Draft, model: PreTrainedModel) -> None:
    """Another weight in every map that leads out of a block."""
    for block in family_of(model.config).blocks(model):
        linear = linear_at(draft.model, block.output)
        with in_memory(linear):
            linear.weight.data.mul_(0.5)


@pytest.mark.parametrize("lean", [False, True])
def test_a_draft_computes_what_the_built_model_does_and_leaves_the_dense_one(
    dense: PreTrainedModel, lean: bool
) -> None:
    plan, before = some_plan(dense), state_of(dense)
    whole = logits_of(dense, TOKENS)
    draft = draft_of(dense, plan, output_bias=True, lean=lean)
    bare = logits_of(draft.model, TOKENS)
    torch.testing.assert_close(logits_of(build_pruned_model(dense, plan, family_of(dense.config)), TOKENS), bare)
    edited(draft, dense)
    halved = logits_of(draft.model, TOKENS)
    assert not torch.allclose(halved, bare, rtol=1e-2)
    draft.rest()
    assert torch.equal(logits_of(draft.model, TOKENS), halved)
    draft.rest()
    built = draft.build()
    torch.testing.assert_close(logits_of(built, TOKENS), halved)
    assert same(state_of(dense), before) and torch.equal(logits_of(dense, TOKENS), whole)
    with pytest.raises(ValueError, match="used up"):
        _ = draft.model


def test_in_the_place_of_the_dense_model_the_same_comes_out_and_no_weight_of_its_layers_is_left(
    dense: PreTrainedModel,
) -> None:
    plan, family = some_plan(dense), family_of(dense.config)
    expected = state_of(build_pruned_model(dense, plan, family))
    shapes, total = family.inventory(dense), sum(part.numel() for part in dense.parameters())
    through = [name for block in family.blocks(dense) for name in (slot.parameter for slot in block.slots)]
    left = [weakref.ref(dense.get_parameter(name)) for name in through]
    built = draft_of(dense, plan).build(inplace=True)
    assert same(state_of(built), expected)
    assert not any(reference() is not None for reference in left)
    assert all(dense.get_parameter(name).is_meta for name in through)
    assert family.inventory(dense) == shapes and sum(part.numel() for part in dense.parameters()) == total
    assert dense.device == built.device


def plan_of(model: PreTrainedModel, gone: list[Address]) -> PruningPlan:
    inventory = family_of(model.config).inventory(model)
    kept = torch.ones(inventory.num_units, dtype=torch.bool)
    for address, part in zip(
        (group.address for group in inventory.groups),
        torch.arange(inventory.num_units).split([group.count for group in inventory.groups]),
        strict=True,
    ):
        if address in gone:
            kept[part] = False
    return PruningPlan.from_mask(UnitMask(inventory, kept))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_that_go_altogether_leave_their_bias(inplace: bool, bias: bool) -> None:
    model = make_model(attention_bias=bias, mlp_bias=bias)
    draft = draft_of(model, plan_of(model, [Address(0, FFN), Address(1, KV)]), output_bias=True)
    linear_at(draft.model, "model.layers.0.mlp.down_proj").bias.data.add_(0.25)
    expected = logits_of(draft.model, TOKENS)
    built = draft.build(inplace=inplace)
    torch.testing.assert_close(logits_of(built, TOKENS), expected)
    assert "model.layers.0.mlp.up_proj.weight" not in built.state_dict()
    assert linear_at(built, "model.layers.0.mlp.down_proj").bias.mean() > 0


@pytest.mark.parametrize("inplace", [False, True])
def test_whole_layers_that_go_are_the_dense_ones_until_it_is_built(inplace: bool) -> None:
    model = make_model()
    plan = replace(plan_of(model, [Address(1, KV), Address(1, FFN)]), whole_layers=True)
    weight = model.get_parameter("model.layers.2.mlp.up_proj.weight")
    draft = draft_of(model, plan)
    assert draft.model.get_parameter("model.layers.1.mlp.up_proj.weight").data_ptr() == weight.data_ptr()
    expected = logits_of(draft.model, TOKENS)
    built = draft.build(inplace=inplace)
    assert torch.equal(logits_of(built, TOKENS), expected)
    mine = built.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert (mine.data_ptr() == weight.data_ptr()) == inplace
    assert model.get_parameter("model.layers.1.mlp.up_proj.weight").is_meta == inplace


def test_what_rests_is_on_the_disk_and_gone_with_its_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = make_model()
    draft = draft_of(model, some_plan(model))
    weight = weakref.ref(linear_at(draft.model, "model.layers.0.mlp.down_proj").weight)
    draft.rest()
    assert weight() is None and len(list(tmp_path.rglob("*.safetensors"))) == 6
    draft.drop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lean", [False, True])
def test_what_was_rebuilt_is_built_again(
    dense: PreTrainedModel, lean: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All maps of the layers differ from what they were; the draft beneath is as it was, and the dense model too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, draft = state_of(dense), draft_of(dense, some_plan(dense), lean=lean)
    assert isinstance(draft, Narrower)
    built = draft.build(again=True)
    bare = state_of(built)
    torch.manual_seed(0)
    for path in linears(built, family_of(built.config).blocks(built)):
        weight = linear_at(built, path).weight
        weight.data = weight.data + 0.1 * torch.randn_like(weight)  # it may be the dense model's, where nothing was cut
    state, logits = state_of(built), logits_of(built, TOKENS)
    rebuilt = Rebuilt(draft, built, lambda name: built.get_parameter(name).detach())
    for again in (True, False):
        model = rebuilt.build(again=again)
        assert same(state_of(model), state) and torch.equal(logits_of(model, TOKENS), logits)
    with pytest.raises(ValueError, match="is run when it is built"):
        _ = rebuilt.model
    assert same(state_of(draft.build()), bare) and same(state_of(dense), before)
    del rebuilt, draft, model
    assert not list(tmp_path.iterdir())


def test_a_lean_draft_has_one_of_its_maps_in_memory_at_a_time() -> None:
    model = make_model(mlp_bias=True)
    draft = draft_of(model, some_plan(model), lean=True)
    maps = [linear_at(draft.model, block.output) for block in family_of(model.config).blocks(model)]
    awake: list[int] = []
    for linear in maps:
        linear.register_forward_pre_hook(lambda *_: awake.append(sum(not each.weight.is_meta for each in maps)))
    logits_of(draft.model, TOKENS)
    assert awake == [1] * len(maps) and all(each.weight.is_meta for each in maps)
    with in_memory(maps[1]):
        assert not maps[1].weight.is_meta and not maps[1].bias.is_meta and maps[0].weight.is_meta


def test_tensors_on_the_disk_are_what_was_written() -> None:
    kept = OnDisk()
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        kept["a/b"] = tensor = torch.randn(3, 5, generator=torch.Generator().manual_seed(number)).to(dtype).T
        assert torch.equal(kept["a/b"], tensor) and kept["a/b"].dtype == dtype
    kept["empty"] = torch.zeros(4, 0)
    assert list(kept) == ["a/b", "empty"] and kept["empty"].shape == (4, 0)
    del kept["a/b"]
    assert list(kept) == ["empty"] and "a/b" not in kept


def test_a_temporary_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(GraspruneError, match=r"temporary folder .*none.*cannot be written.*TMPDIR"):
        OnDisk()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = OnDisk()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optimum_grasprune.surgery.spill.save_file", full)
    with pytest.raises(GraspruneError, match="No space left on device"):
        kept["a"] = torch.zeros(2)
