"""Records of other versions: what they say is replayed as it was meant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.checkpoint import read_plan
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.record import RECORD_FORMAT, in_todays_words, mixed_as_one_text
from tests.conftest import TINY_LLAMA

OLD = Path(__file__).parent / "data" / "version-0.1"


def record(**values: Any) -> dict[str, Any]:
    return {"format": 1, "recipe": {"method": "fasp"}, "calibration": {"source": "a.txt"}, **values}


def test_version_0_1_had_no_bos_and_one_kind_of_least_squares() -> None:
    recipe = GRASPConfig.from_dict(in_todays_words(record())["recipe"])
    assert (recipe.bos, recipe.least_squares, recipe.method) == (False, "robust", "fasp")


def test_records_of_today_stay_as_they_are() -> None:
    today = record(format=RECORD_FORMAT)
    assert in_todays_words(today) == today


def test_a_mixture_of_version_0_1_is_known() -> None:
    assert mixed_as_one_text(record(calibration={"source": "a.txt,b.txt"}))
    assert not mixed_as_one_text(record(calibration={"source": "a.txt,b.txt"}, format=RECORD_FORMAT))
    assert not mixed_as_one_text(record()) and not mixed_as_one_text(record(calibration=None))


@pytest.mark.parametrize("name", ["gates", "flap", "fasp"])
def test_checkpoints_of_version_0_1_are_made_again(name: str, tmp_path: Path) -> None:
    pruner = GRASPPruner(GRASPConfig())
    model, tokenizer = load_model(str(TINY_LLAMA)), load_tokenizer(str(TINY_LLAMA))
    pruner.replay(model, tokenizer, *read_plan(OLD / f"{name}.json"))
    pruner.save(tmp_path / name)
    file, expected = tmp_path / name / "model.safetensors", json.loads((OLD / "weights.json").read_text())[name]
    norms = {key: float(tensor.double().norm()) for key, tensor in load_file(file).items()}
    assert norms == pytest.approx(expected["norms"], rel=1e-4, abs=1e-6)
    if name == "gates":  # nothing is added up, so that no processor and no number of threads makes a difference
        assert hashlib.sha256(file.read_bytes()).hexdigest() == expected["sha256"]
