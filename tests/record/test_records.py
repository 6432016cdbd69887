"""Records of other versions: what they say is replayed as it was meant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.errors import CheckpointError, PlanError
from optimum_grasprune.export.checkpoint import read_plan, read_record
from optimum_grasprune.loading import load_model, load_tokenizer
from optimum_grasprune.record import RECORD_FORMAT, Record
from tests.conftest import TINY_LLAMA

OLD = Path(__file__).parents[1] / "data" / "version-0.1"


def stored(name: str = "fasp", **values: Any) -> dict[str, Any]:
    return {**json.loads((OLD / f"{name}.json").read_text()), **values}


def read(values: object) -> Record:
    return Record.from_dict(values, "grasp_config.json")


def test_version_0_1_had_no_bos_and_one_kind_of_least_squares() -> None:
    config = read(stored(recipe={"method": "fasp"})).config
    assert (config.bos, config.least_squares, config.method) == (False, "robust", "fasp")


def test_before_format_3_nothing_was_rehearsed() -> None:
    def option(name: str, number: int, **recipe: object) -> object:
        return getattr(read(stored(format=number, recipe=recipe)).config, name)

    assert option("rehearsal", 2, compensation="refit") == option("rehearsal", 2, compensation="diagonals") == 0
    assert option("rehearsal", 3, compensation="refit") == option("rehearsal", 2, method="fasp") == 0.25
    for number in (1, 2):  # and gates learnt from the dense model where they were told to
        assert option("gate_kl_weight", number, method="grasprune") == 0
        assert option("gate_kl_weight", number, method="grasprune", kl_weight=0.75) == 0.75
        assert option("gate_kl_weight", number, method="fasp") is None
    assert option("gate_kl_weight", 3, method="grasprune") is None


def test_before_format_4_diagonals_had_no_more_of_the_corpus_than_there_were_calibration_sequences() -> None:
    def samples(number: int, calibrated: int, rehearsed: int, **recipe: object) -> object:
        calibration = {**stored()["calibration"], "sequences": [calibrated, 512], "rehearsed_sequences": rehearsed}
        recipe = {"method": "grasprune", "compensation": "refit", "diagonal_samples": None, **recipe}
        return read(stored(format=number, recipe=recipe, calibration=calibration)).config.diagonal_samples

    assert samples(2, 256, 0, diagonal_samples=192) == 192 and samples(2, 96, 0, diagonal_samples=192) == 96
    assert samples(3, 256, 128, rehearsal=0.4) == 320 and samples(3, 96, 64, rehearsal=0.4) == 160
    assert samples(3, 192, 90, rehearsal=0.4, diagonal_samples=224) == 224
    assert samples(3, 256, 0, rehearsal=0.4) == 256  # of 'sampled', of which nothing was rehearsed
    assert samples(4, 96, 24, diagonal_samples=192) == 192
    for count, share in [(count, share) for count in (1, 7, 48, 96) for share in (0.1, 0.25, 0.4, 0.6)]:
        rehearsed = round(count * share / (1 - share))  # as it was when there were few
        again = GRASPConfig(diagonal_samples=samples(3, count, rehearsed, rehearsal=share), rehearsal=share)  # type: ignore[arg-type]
        assert again.rehearsed_sequences(count, 512) == rehearsed


def test_a_recovery_that_says_nothing_of_it_did_not_rehearse() -> None:
    def share(**recipe: object) -> object:
        return read(stored(format=3, recipe={"method": "fasp", **recipe})).config.recover_rehearsal

    assert share(recover="lora") == 0 and share(recover="lora", recover_rehearsal=0.5) == 0.5
    assert share() == share(recover="none") == 0.25  # what a training after it takes, unless it is told


def test_a_recovery_that_says_nothing_of_it_kept_all_that_it_changed() -> None:
    def share(record_format: int, **recipe: object) -> float:
        recipe = {"method": "fasp", **recipe}
        return read(stored(format=record_format, recipe=recipe)).config.recover_interpolation

    assert share(5, recover="lora") == share(1, recover="distill") == 1
    assert share(5, recover="lora", recover_interpolation=0.5) == 0.5
    assert share(6, recover="lora") == share(5) == 0.8


def test_before_format_8_several_ratios_were_trained_in_another_way() -> None:
    other = {"plan": stored()["plan"], "compensation": ["least_squares"], "damping": 4.0}
    for number in (5, 6, 7, 8):
        record = read(stored(format=number, trained_with=[other]))
        today, before = record.trained_with, record.trained_before
        assert (today is None, before is None) == ((True, False) if number < 8 else (False, True))
        assert [each.settings for each in today or before or ()] == [{"damping": 4.0}]


def test_records_of_today_stay_as_they_are() -> None:
    calibration = {**stored()["calibration"], "first_tokens": [1], "rehearsed_sequences": 3}
    choice = [{"candidate": "fasp", "compensation": "least_squares", "damping": 1.0, "loss": 2.5}]
    today = stored(format=RECORD_FORMAT, recipe={"method": "fasp"}, calibration=calibration, choice=choice)
    again = read(today).to_dict()
    assert again == today and set(again) == set(today)
    assert read(again) == read(today)
    assert read(stored(format=RECORD_FORMAT, calibration=None, plan=None)).to_dict()["calibration"] is None


def test_a_mixture_of_version_0_1_is_known() -> None:
    mixed = {**stored()["calibration"], "source": "a.txt,b.txt"}
    assert read(stored(calibration=mixed)).mixed_as_one_text
    assert not read(stored(calibration=mixed, format=RECORD_FORMAT)).mixed_as_one_text
    assert not read(stored()).mixed_as_one_text and not read(stored(calibration=None)).mixed_as_one_text


def test_what_a_later_version_adds_stops_no_reading() -> None:
    base = {**stored()["base_model"], "experts": 8}
    later = read(stored(base_model=base, signed_by={"name": "somebody"}, reviewed=True, sharpness=0.5))
    assert later.base_model == read(stored()).base_model
    # A number may be the setting of a stage that does not exist here: it stays with the record.
    assert later.settings == {"damping": 4.0, "sharpness": 0.5} and later.to_dict()["sharpness"] == 0.5


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    *path, last = names
    inner = values
    for name in path:
        inner = inner[name]
    del inner[last]
    return values


DAMAGED: list[tuple[object, str]] = [
    ([], "should be an object"),
    (stored(format=9), "the format is 9, which a later version wrote; this one reads formats up to 8"),
    (without(stored(), "recipe"), "recipe: field required"),
    (without(stored(), "budget", "dense", "parameters"), "budget.dense.parameters: field required"),
    (stored(budget="half"), "budget: should be an object"),
    (stored(compensation="scales"), "compensation: input should be a valid tuple"),
    (stored(calibration={**stored()["calibration"], "sequences": [24]}), "calibration.sequences.1: field required"),
    (stored(choice=[{"candidate": "fasp", "loss": 1.0}]), "choice.0.compensation: field required"),
    (stored(plan={"groups": []}), "plan: not a pruning plan: it has no groups"),
]


@pytest.mark.parametrize(("values", "line"), DAMAGED, ids=[line for _, line in DAMAGED])
def test_a_damaged_record_names_the_file_and_the_field(values: object, line: str, tmp_path: Path) -> None:
    file = tmp_path / "grasp_config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        read_record(tmp_path)
    assert str(caught.value) == f"{file}: {line}"
    with pytest.raises(PlanError) as refused:
        read_plan(tmp_path)
    assert str(refused.value) == f"{file} holds no pruning plan: {line}"


@pytest.mark.parametrize("name", ["gates", "flap", "fasp"])
def test_checkpoints_of_version_0_1_are_made_again(name: str, tmp_path: Path) -> None:
    pruner = GRASPPruner(GRASPConfig())
    model, tokenizer = load_model(str(TINY_LLAMA)), load_tokenizer(str(TINY_LLAMA))
    pruner.replay(model, tokenizer, *read_plan(OLD / f"{name}.json"))
    pruner.save(tmp_path / name)
    file, expected = tmp_path / name / "model.safetensors", json.loads((OLD / "weights.json").read_text())[name]
    norms = {key: float(tensor.double().norm()) for key, tensor in load_file(file).items()}
    assert norms == pytest.approx(expected["norms"], rel=1e-3, abs=1e-6)  # bf16, on another processor
    if name == "gates":  # nothing is added up, so that no processor and no number of threads makes a difference
        assert hashlib.sha256(file.read_bytes()).hexdigest() == expected["sha256"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[" * 99_999, "is not JSON: it is nested too deeply"),
        (json.dumps(stored(judged_at=float("nan"))), "is not JSON: NaN is no finite number"),
        (json.dumps(stored(judged_at=7)).replace('"judged_at": 7', '"judged_at": 1e999'), "1e999 is no finite number"),
    ],
    ids=["nested", "NaN", "overflow"],
)
def test_json_that_could_not_be_written_again(content: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "grasp_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=line):
        read_record(tmp_path)
    with pytest.raises(PlanError, match=f"holds no pruning plan: .*{line}"):
        read_plan(tmp_path)
