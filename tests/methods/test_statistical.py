from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from optimum_grasprune import Budget, GRASPConfig
from optimum_grasprune.errors import GraspruneError, OptionError
from optimum_grasprune.execution import WholeModel
from optimum_grasprune.families import linears
from optimum_grasprune.methods import Problem, get_method
from optimum_grasprune.methods.statistical import element_scores, kept_elements, unit_scores
from optimum_grasprune.recovery.energy import energy_factors, row_energy

WEIGHT = torch.tensor([[1.0, -2, 3], [0, 4, -1]])
VARIANCE = torch.tensor([1.0, 4, 9])  # deviations 1, 2, 3; their mean is 2


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        (0.0, [[1, 2, 3], [0, 4, 1]]),
        (1.0, [[0.5, 2, 4.5], [0, 4, 1.5]]),
        (2.0, [[0.25, 2, 6.75], [0, 4, 2.25]]),
    ],
)
def test_score_by_hand(kappa: float, expected: list[list[float]]) -> None:
    assert element_scores(WEIGHT, VARIANCE, kappa).tolist() == expected


def test_score_of_units_sums_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_grasprune.methods.statistical.KAPPA", 1.0)
    assert unit_scores(WEIGHT, VARIANCE, 3).tolist() == [0.5, 6, 6]
    assert unit_scores(WEIGHT, VARIANCE, 1).tolist() == [12.5]


def test_channel_that_never_varies() -> None:
    assert element_scores(WEIGHT, torch.tensor([0.0, 4, 9]), 0.5)[:, 0].tolist() == [0, 0]
    assert torch.equal(element_scores(WEIGHT, torch.zeros(3), 0.5), WEIGHT.abs())
    assert torch.isfinite(element_scores(WEIGHT, torch.tensor([0.0, 0, 1e-300]), 0.5)).all()


def test_energies_and_factors_by_hand() -> None:
    # Rows (1, 2) and (1, −1); μ = (1, 1), σ² = (2, 3): (1+2)² + 2 + 12 = 23 and 0² + 2 + 3 = 5.
    weight, mean, variance = torch.tensor([[1.0, 2], [1, -1]]), torch.ones(2), torch.tensor([2.0, 3])
    before = row_energy(weight, mean, variance)
    # Without the first column: 2² + 12 = 16 and 1 + 3 = 4.
    after = row_energy(weight * torch.tensor([0.0, 1]), mean, variance)
    assert before.tolist() == [23, 5] and after.tolist() == [16, 4]
    assert energy_factors(before, after).tolist() == pytest.approx([(23 / 16) ** 0.5, (5 / 4) ** 0.5])


def make_problem(model: LlamaForCausalLM, **options: object) -> Problem:
    config = GRASPConfig(method="statistical", **options)
    runner = WholeModel(model)
    tokens = torch.arange(60).view(3, 20)
    budget = Budget(runner.inventory.total_cost)
    return get_method("statistical").problem(runner, budget, tokens, tokens[:0], config)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_masks_are_exactly_n_of_m(model: LlamaForCausalLM, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    mask = get_method("statistical").select_elements(make_problem(model, pattern=pattern))
    assert set(mask.kept) == set(linears(model, WholeModel(model).blocks))
    for path, kept in mask.kept.items():
        assert kept.shape == model.get_submodule(path).weight.shape
        assert (kept.unflatten(1, (-1, m)).sum(2) == n).all(), path
    assert mask.kept_count * 2 == mask.total


@pytest.mark.parametrize(("ratio", "of_32", "of_48"), [(0.29, 9, 13), (0.5, 16, 24), (0.75, 24, 36), (1.0, 32, 48)])
def test_every_row_keeps_the_same_number(model: LlamaForCausalLM, ratio: float, of_32: int, of_48: int) -> None:
    mask = get_method("statistical").select_elements(make_problem(model, pattern="unstructured", keep_ratio=ratio))
    for path, kept in mask.kept.items():
        assert set(kept.sum(1).tolist()) == {of_48 if path.endswith("down_proj") else of_32}


@given(st.integers(1, 100), st.integers(1, 400))
def test_ratio_is_the_decimal_that_was_written(percent: int, width: int) -> None:
    config = GRASPConfig(method="statistical", pattern="unstructured", keep_ratio=percent / 100)
    assert kept_elements(torch.rand(2, width), config).sum(1).tolist() == [percent * width // 100] * 2


def test_channels_that_vary_more_stay(model: LlamaForCausalLM) -> None:
    # The norm's weight scales the channels that q, k and v read.
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[::2] = 100.0
    mask = get_method("statistical").select_elements(make_problem(model, pattern="unstructured"))
    kept = mask.kept["model.layers.0.self_attn.q_proj"].float().mean(0)
    assert kept[::2].mean() > 2 * kept[1::2].mean()


def test_dead_channels_go_first_and_nothing_breaks(build_model: Callable[..., LlamaForCausalLM]) -> None:
    model = build_model()
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[:8] = 0.0
        model.model.layers[2].self_attn.v_proj.weight.zero_()  # o_proj then reads nothing but zeros
    method, problem = get_method("statistical"), make_problem(model, pattern="unstructured")
    mask = method.select_elements(problem)
    assert not mask.kept["model.layers.1.mlp.up_proj"][:, :8].any()
    assert mask.kept["model.layers.2.self_attn.o_proj"].sum(1).tolist() == [16] * 32
    assert torch.isfinite(method.score(problem)).all()


def test_activations_that_are_not_finite(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(GraspruneError, match="the input of model.layers.1.mlp.down_proj is not finite"):
        get_method("statistical").select_elements(make_problem(model, pattern="2:4"))


def test_width_that_is_no_multiple(build_model: Callable[..., LlamaForCausalLM]) -> None:
    model = build_model(intermediate_size=44)
    message = "pattern='4:8': model.layers.0.mlp.down_proj has 44 input channels, no multiple of 8"
    with pytest.raises(OptionError, match=message):
        get_method("statistical").select_elements(make_problem(model, pattern="4:8"))
    assert get_method("statistical").select_elements(make_problem(model, pattern="2:4")).kept_count


def test_ratio_that_leaves_an_empty_row(model: LlamaForCausalLM) -> None:
    with pytest.raises(OptionError, match="keep_ratio=0.03: keeps none of the 32 weights in a row of model.layers.0"):
        get_method("statistical").select_elements(make_problem(model, pattern="unstructured", keep_ratio=0.03))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.6}, "keep_ratio=0.6: pattern 2:4 keeps exactly half of the weights"),
        ({"budget": "total"}, "budget='total': is for whole units; pattern 2:4 cuts single weights"),
        ({"kv_keep_ratio": 0.5}, "kv_keep_ratio=0.5: is for whole units"),
        ({"min_ffn_channels": 8}, "min_ffn_channels=8: is for whole units"),
        ({"min_kv_groups": 2}, "min_kv_groups=2: is for whole units"),
        ({"ffn_multiple_of": 64}, "ffn_multiple_of=64: is for whole units"),
        ({"kv_multiple_of": 2}, "kv_multiple_of=2: is for whole units"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2: is for whole units"),
        ({"compensation": "scales"}, "compensation='scales': pattern 2:4 supports only none and energy"),
        ({"compensation": "bias"}, "compensation='bias': pattern 2:4 supports only none and energy"),
        ({"allocation": "global"}, "allocation='global': pattern 2:4 keeps the same share of every row"),
        ({"held_out": 4}, "held_out=4: pattern 2:4 leaves nothing to choose"),
    ],
)
def test_options_that_make_no_sense_for_single_weights(options: dict[str, object], message: str) -> None:
    method = get_method("statistical")
    with pytest.raises(OptionError, match=message):
        method.check(GRASPConfig(method="statistical", pattern="2:4", **options))
    method.check(GRASPConfig(method="statistical", pattern="2:4"))


def test_units_take_all_budget_options() -> None:
    options = {"budget": "total", "kv_keep_ratio": 0.5, "ffn_multiple_of": 8, "keep_ratio": 0.6, "allocation": "global"}
    get_method("statistical").check(GRASPConfig(method="statistical", **options))
