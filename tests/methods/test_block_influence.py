"""Whole layers: what they score, which go, and the stock checkpoint that comes out."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.errors import BudgetError, OptionError, PlanError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.export.checkpoint import read_plan, read_record
from optimum_grasprune.families import family_of
from optimum_grasprune.methods import get_method
from optimum_grasprune.methods.block_influence import block_influence, fitting, influence
from optimum_grasprune.surgery import build_pruned_model
from optimum_grasprune.surgery.depth import layers_that_stay, shallower_config
from optimum_grasprune.units import FFN, KV, GroupPlan, PruningPlan, UnitMask
from tests.conftest import logits_of, make_model, make_tokenizer
from tests.contracts.test_methods import problem_of
from tests.tiny_models import VARIANTS, some_mask, tiny_model

TOKENS = torch.arange(2, 42).view(2, 20)


def by_hand(model: PreTrainedModel, tokens: torch.Tensor) -> list[float]:
    """From the hidden states that transformers gives; the last one is behind the final norm, and left out."""
    with torch.no_grad():
        hidden = model(tokens, output_hidden_states=True).hidden_states[:-1]
    cosines = [torch.cosine_similarity(x, y, dim=-1).mean() for x, y in pairwise(hidden)]
    return [1 - cosine.item() for cosine in cosines]


def pruned(model: PreTrainedModel, keep_ratio: float, corpus_file: Path, **options: object) -> GRASPPruner:
    data = {"dataset": str(corpus_file), "num_samples": 4, "seq_len": 24}
    pruner = GRASPPruner(GRASPConfig(method="block_influence", keep_ratio=keep_ratio, **data, **options))
    pruner.prune_model(model, make_tokenizer())
    return pruner


def test_influence_is_one_minus_the_mean_cosine() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[0.0, 3.0], [0.0, 1.0]])  # a right angle, and no change of direction
    assert influence(before, after) == pytest.approx(0.5)
    assert influence(before, -before) == pytest.approx(2)


def test_every_layer_is_scored_by_what_enters_and_leaves_it() -> None:
    model = make_model(num_hidden_layers=5)
    found = block_influence(WholeModel(model), TOKENS)
    assert found[:4].tolist() == pytest.approx(by_hand(model, TOKENS), abs=1e-6)


def test_the_most_influential_layers_that_fit_stay() -> None:
    problem = problem_of(make_model(num_hidden_layers=5), GRASPConfig(method="block_influence", keep_ratio=0.65))
    layers = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4])
    groups = problem.inventory.groups
    scores = layers[problem.inventory.per_unit([group.layer for group in groups])]
    mask = get_method("block_influence").select(problem, scores)
    kept = {group.layer for group in groups if mask.kept(group.address)}
    assert kept == {0, 2, 4} and mask.whole_layers  # three of five are 0.6
    assert all(len(mask.kept(group.address)) in (0, group.count) for group in groups)


def test_layers_are_taken_in_order_while_they_fit() -> None:
    costs, kv_widths = {0: 5, 1: 3, 2: 2}, {0: 4, 1: 4, 2: 0}
    assert fitting([0, 1, 2], costs, kv_widths, 7, 8) == [0, 2]
    assert fitting([1, 0, 2], costs, kv_widths, 10, 4) == [1, 2]
    assert fitting([0, 1], costs, kv_widths, 1, 8) == []


def without_attention_in(layers: set[int]) -> PreTrainedModel:
    model = make_model()
    mask = some_mask(model, share=1)
    kept_U = mask.kept_U.clone()
    for group, (start, stop) in zip(mask.inventory.groups, mask.inventory.spans(), strict=True):
        if group.kind == KV and group.layer in layers:
            kept_U[start:stop] = False
    plan = PruningPlan.from_mask(UnitMask(mask.inventory, kept_U))
    return build_pruned_model(model, plan, family_of(model.config))


def test_a_layer_with_attention_stays_even_where_others_matter_more() -> None:
    # Costs of the layers: 4,608 of the FFN each, and 3,072 of attention in the second.
    config = GRASPConfig(method="block_influence", keep_ratio=0.5)
    problem = problem_of(without_attention_in({0, 2}), config)
    groups, method = problem.inventory.groups, get_method("block_influence")
    layers_U = problem.inventory.per_unit([group.layer for group in groups])
    mask = method.select(problem, torch.tensor([0.5, 0.1, 0.4])[layers_U])
    assert {group.layer for group in groups if mask.kept(group.address)} == {1}

    gone_U = layers_U != 1  # a larger budget of a nested run has left no such layer
    nested = problem.at(problem.budget.within(UnitMask(problem.inventory, gone_U)), config)
    with pytest.raises(BudgetError, match="keep_ratio=0.5: too small for any layer that is left"):
        method.select(nested, torch.tensor([0.5, 0.1, 0.4])[layers_U])
    with pytest.raises(BudgetError, match="nearest feasible value is 0.4546"):  # 7,680 of 16,896, rounded up
        problem_of(without_attention_in({0, 2}), GRASPConfig(method="block_influence", keep_ratio=0.4))


@pytest.mark.parametrize("family", VARIANTS)
def test_what_comes_out_is_the_models_own_class_with_the_layers_that_stay(
    family: str, corpus_file: Path, tmp_path: Path
) -> None:
    model = tiny_model(family)
    pruner = pruned(model, 0.7, corpus_file)
    assert type(pruner.model) is type(model)
    assert pruner.plan is not None
    kept = layers_that_stay(pruner.plan, 3)
    assert len(kept) == pruner.model.config.num_hidden_layers == 2
    own, types = pruner.model.config, getattr(model.config, "layer_types", None)
    if types is not None:
        assert own.layer_types == [types[layer] for layer in kept]
    for place, layer in enumerate(kept):
        dense = family_of(model.config).decoder_layers(model)[layer].state_dict()
        found = family_of(own).decoder_layers(pruner.model)[place].state_dict()
        assert dense.keys() == found.keys() and all(torch.equal(dense[name], found[name]) for name in dense)
    pruner.save(tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["model_type"] == model.config.model_type and values["architectures"] == [type(model).__name__]
    assert "auto_map" not in values and not list((tmp_path / "out").glob("*.py"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(loaded, TOKENS), logits_of(pruner.model, TOKENS))
    card = (tmp_path / "out" / "README.md").read_text()
    (gone,) = {0, 1, 2} - set(kept)
    assert f"Of its 3 layers, number {gone} went" in card and "nothing but transformers is needed" in card
    record = read_record(tmp_path / "out")
    assert record is not None and record.budget.kept.prunable == pytest.approx(2 / 3)


def test_a_plan_replays_and_nothing_else_is_done_to_it(corpus_file: Path, tmp_path: Path) -> None:
    model = make_model()
    pruner = pruned(model, 0.7, corpus_file)
    pruner.save(tmp_path / "out")
    plan, record = read_plan(tmp_path / "out")
    again = GRASPPruner(GRASPConfig()).replay(model, make_tokenizer(), plan, record)
    assert torch.equal(logits_of(again.model, TOKENS), logits_of(pruner.model, TOKENS))
    with pytest.raises(OptionError, match="compensation='scales': nothing makes up for whole layers"):
        GRASPPruner(GRASPConfig(compensation="scales")).replay(model, make_tokenizer(), plan, record)


def test_a_pruned_model_loses_layers_too_and_a_shallower_one_widths(corpus_file: Path, tmp_path: Path) -> None:
    widths = {"method": "magnitude", "keep_ratio": 0.6, "allocation": "global"}
    once = GRASPPruner(GRASPConfig(**widths)).prune_model(make_model(), make_tokenizer())
    twice = pruned(once, 0.8, corpus_file)
    assert type(twice.model) is type(once)
    kept = layers_that_stay(twice.plan, 3)  # type: ignore[arg-type]
    for place, layer in enumerate(kept):
        for name in ("intermediate_size", "num_key_value_heads"):
            found, expected = (c.per_layer_config[n] for c, n in ((twice.model.config, place), (once.config, layer)))
            assert getattr(found, name) == getattr(expected, name)
    twice.save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(loaded, TOKENS), logits_of(twice.model, TOKENS))
    thrice = GRASPPruner(GRASPConfig(**widths)).prune_model(
        pruned(make_model(), 0.7, corpus_file).model, make_tokenizer()
    )
    assert thrice.config.model_type == "grasp_llama" and logits_of(thrice, TOKENS).isfinite().all()


def test_what_is_of_widths_is_refused() -> None:
    for option, value, reason in (
        ("compensation", "scales", "block_influence supports only none"),
        ("allocation", "uniform", "block_influence supports only global"),
        ("min_kv_groups", 0, "is for widths; block_influence drops whole layers"),
        ("ffn_multiple_of", 8, "is for widths; block_influence drops whole layers"),
        ("tensor_parallel_size", 2, "is for widths; block_influence drops whole layers"),
    ):
        with pytest.raises(OptionError, match=f"{option}={value!r}: {reason}"):
            GRASPPruner(GRASPConfig(method="block_influence", **{option: value}))


def test_a_budget_below_one_layer_is_refused_before_anything_is_read() -> None:
    for option, ratios in (("keep_ratio", {"keep_ratio": 0.3}), ("kv_keep_ratio", {"kv_keep_ratio": 0.3})):
        with pytest.raises(BudgetError, match=f"{option}=0.3: too small for one whole layer; .* value is 0.3334"):
            problem_of(make_model(), GRASPConfig(method="block_influence", **ratios))
        feasible = {name: 0.3334 for name in ratios}
        problem_of(make_model(), GRASPConfig(method="block_influence", **feasible))


def test_a_total_budget_counts_all_of_the_layers_that_go(corpus_file: Path) -> None:
    model = make_model(attention_bias=True)
    whole = sum(parameter.numel() for parameter in model.parameters())
    # Units of a layer: 3,072 of attention, 64 of its biases, 4,608 of the FFN; beside them one bias and two norms.
    layer = 3072 + 64 + 4608 + 32 + 2 * 32
    assert whole == 2 * 258 * 32 + 32 + 3 * layer
    just = (whole - layer + 1.5) / whole  # room for two layers, and one parameter more
    total = pruned(model, just, corpus_file, budget="total")
    assert total.plan is not None and len(layers_that_stay(total.plan, 3)) == 2
    kept = total.record.budget.pruned.parameters
    assert kept == sum(parameter.numel() for parameter in total.model.parameters()) == whole - layer
    assert total.record.budget.asked is not None and total.record.budget.asked.cost == 2 * layer + 1
    below = pruned(model, (whole - layer - 0.5) / whole, corpus_file, budget="total")
    assert below.plan is not None and len(layers_that_stay(below.plan, 3)) == 1
    nearest = math.ceil((whole - 2 * layer) / whole * 10_000) / 10_000
    with pytest.raises(BudgetError, match=f"too small for one whole layer; the nearest feasible value is {nearest}$"):
        pruned(model, nearest - 1e-3, corpus_file, budget="total")
    assert pruned(model, nearest, corpus_file, budget="total").model.config.num_hidden_layers == 1


def test_plans_say_so_and_are_checked() -> None:
    groups = (GroupPlan(0, KV, 2, ()), GroupPlan(0, FFN, 4, ()), GroupPlan(1, KV, 2, (0, 1)))
    plan = PruningPlan(groups, whole_layers=True)
    assert PruningPlan.from_dict(plan.to_dict()) == plan
    assert layers_that_stay(plan, 3) == [1, 2]  # the last one had no units before
    values = PruningPlan((*groups, GroupPlan(1, FFN, 4, (1,))), whole_layers=True).to_dict()
    with pytest.raises(PlanError, match="it drops whole layers and cuts others"):
        PruningPlan.from_dict(values)


def test_the_dense_configuration_stays_as_it_was() -> None:
    config = tiny_model("Gemma 3").config
    before = config.to_dict()
    assert shallower_config(config, [2], family_of(config)).layer_types == ["sliding_attention"]
    assert config.to_dict() == before


def test_from_the_command_line_it_is_compared(
    model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.commands.optimum_cli import main

    data = ["--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--eval-samples", 2, "--eval-seq-len", 24]
    arguments = ["compare", "-m", model_folder, "--methods", "random", "block_influence", "--keep-ratios", 0.7, 0.4]
    run = [*arguments, *data, "--evaluate", f"text={corpus_file}", "--no-plot", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["optimum-cli", "grasprune", *map(str, run)])
    main()
    assert "block_influence" in (tmp_path / "out" / "comparison.md").read_text()
