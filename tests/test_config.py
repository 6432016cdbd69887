from __future__ import annotations

import pytest
from pydantic import ValidationError

from optimum_grasprune import GRASPConfig
from optimum_grasprune.errors import OptionError


def test_round_trip() -> None:
    config = GRASPConfig(keep_ratio=0.7, dataset="corpus.txt", kv_keep_ratio=0.5, seed=3)
    assert GRASPConfig.from_dict(config.to_dict()) == config


def test_paper_recipe_is_the_published_one() -> None:
    paper = GRASPConfig.paper(keep_ratio=0.8)
    assert (paper.keep_ratio, paper.epochs, paper.num_samples, paper.seq_len) == (0.8, 4, 512, 512)
    assert (paper.learning_rate, paper.schedule, paper.temperature) == (1e-2, "constant", 1.5)
    assert (paper.scales, paper.scale_epochs, paper.scale_learning_rate) == (True, 1, 1e-2)
    assert (paper.dataset, paper.dataset_split, paper.dtype) == ("wikitext2", "train", "bfloat16")


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
