from __future__ import annotations

import pytest
from pydantic import ValidationError

from optimum_grasprune import GRASPConfig
from optimum_grasprune.config import RECIPES
from optimum_grasprune.corpora.sequences import CALIBRATION_TOKENS
from optimum_grasprune.errors import OptionError
from optimum_grasprune.loading import CALIBRATION_LENGTH
from optimum_grasprune.methods import get_method
from optimum_grasprune.recovery.least_squares import FITS


def test_round_trip() -> None:
    config = GRASPConfig(keep_ratio=0.7, dataset="corpus.txt", kv_keep_ratio=0.5, seed=3)
    assert GRASPConfig.from_dict(config.to_dict()) == config


def test_paper_recipe_is_the_published_one() -> None:
    paper = GRASPConfig.paper(keep_ratio=0.8)
    assert (paper.keep_ratio, paper.epochs, paper.num_samples, paper.seq_len) == (0.8, 4, 512, 512)
    assert (paper.learning_rate, paper.schedule, paper.temperature) == (1e-2, "constant", 1.5)
    assert (paper.compensation, paper.scale_epochs, paper.scale_learning_rate) == ("scales", 1, 1e-2)
    assert paper.scale_samples == paper.num_samples
    assert (paper.start, paper.budget_warmup, paper.snapshots, paper.search_trials) == ("zero", 0, 1, 0)
    assert paper.held_out == 0  # nothing is chosen, all of the corpus is calibrated on
    assert (paper.dataset, paper.dataset_split, paper.dtype) == ("wikitext2", "train", "bfloat16")


def cost(config: GRASPConfig) -> float:
    """Tokens run forward and backward; a forward pass alone counts half, weights being fixed."""
    statistics = get_method("grasprune").statistic_samples_for(config) * (config.start == "fisher")
    search = config.search_trials * config.search_samples / 2
    held_out = get_method(config.method).held_out_for(config)
    judged = held_out * (2 * len(FITS["weighted"].dampings) + config.snapshots + 2) / 2
    length = config.seq_len or CALIBRATION_LENGTH
    number = config.num_samples or CALIBRATION_TOKENS // length
    return (statistics + number * config.epochs + search + judged + recovery_cost(config, number)) * length


def recovery_cost(config: GRASPConfig, number: int) -> float:
    """Sequences run forward and backward for scales, or for diagonals and their teacher; all are rehearsed or there."""
    if config.compensation == "scales":
        return config.scale_epochs * min(number, config.scale_samples)
    return (config.diagonal_epochs + 0.5) * config.diagonal_sequences(number, config.seq_len or CALIBRATION_LENGTH)


def test_default_costs_less_than_the_paper_and_recipes_are_in_order() -> None:
    paper = cost(GRASPConfig.paper())
    assert cost(GRASPConfig.quick()) < cost(GRASPConfig()) < paper < cost(GRASPConfig.thorough())
    assert cost(GRASPConfig()) < 0.5 * paper


@pytest.mark.parametrize("name", RECIPES)
def test_overrides_go_on_top_of_every_recipe(name: str) -> None:
    config = RECIPES[name](keep_ratio=0.3, num_samples=7)
    assert (config.keep_ratio, config.num_samples) == (0.3, 7)


@pytest.mark.parametrize("ratio", [0, 1.2, -1, float("nan"), float("inf"), "half", None])
def test_bad_keep_ratio_is_one_line_that_names_option_and_value(ratio: object) -> None:
    with pytest.raises(OptionError) as caught:
        GRASPConfig(keep_ratio=ratio)
    assert str(caught.value).startswith(f"keep_ratio={ratio!r}: input should be")
    assert "\n" not in str(caught.value)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(OptionError, match="keep_ration=0.5: extra inputs are not permitted"):
        GRASPConfig(keep_ration=0.5)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        GRASPConfig().keep_ratio = 0.9  # type: ignore[misc]


def test_every_option_is_described() -> None:
    assert [name for name, field in GRASPConfig.model_fields.items() if not field.description] == []
