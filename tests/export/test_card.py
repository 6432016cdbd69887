"""The model card: what the Hub reads of it, and what people do."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_grasprune.config import GRASPConfig, by_recipe
from optimum_grasprune.config.flags import add_advanced_options, add_everyday_options
from optimum_grasprune.config.flags import given as given_in
from optimum_grasprune.export import base_card as base_card_module
from optimum_grasprune.export.base_card import BaseCard, base_card
from optimum_grasprune.export.card import CardFacts, model_card
from optimum_grasprune.export.command import command_of
from optimum_grasprune.export.results import MeasuredText
from optimum_grasprune.export.widths import bar
from optimum_grasprune.record import SharedRun
from tests.conftest import make_record

LICENSED = BaseCard(
    "org/llama", license="other", license_name="own", license_link="https://a.b/c", language=("en", "de")
)
MEASURED = MeasuredText(
    name="WikiText", source="wikitext2", split="test", windows=3, window=64, dense=math.log(20), pruned=math.log(25)
)


def of_hub(card: str) -> dict[str, Any]:
    """What the Hub's own classes read of a card; they write the same again, so that nothing of it is lost."""
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData)
    assert ModelCard(str(ModelCard(card))).data.to_dict() == data.to_dict()
    return data.to_dict()


def test_metadata_of_the_base_model_is_taken_over() -> None:
    data = of_hub(model_card(make_record(), CardFacts(LICENSED, (1, 2))))
    assert (data["base_model"], data["base_model_relation"]) == ("org/llama", "finetune")
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "own", "https://a.b/c")
    assert data["language"] == ["en", "de"]
    assert data["tags"] == ["optimum-grasprune", "pruned", "fasp"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "model-index" not in data and "datasets" not in data


def test_the_precision_of_results() -> None:
    for dtypes, precision in (
        (None, "fp32"),  # of an earlier version
        (("bfloat16", "bfloat16"), "bf16"),
        (("float32", "bfloat16"), "fp32 and bf16"),
    ):
        card = model_card(make_record(), CardFacts(), (replace(MEASURED, dtypes=dtypes),))
        assert f"Measured in {precision} on windows that do not overlap." in card


def test_nothing_is_said_that_is_not_known() -> None:
    data = of_hub(model_card(make_record()))
    assert set(data) == {"library_name", "pipeline_tag", "tags"}


def test_results_are_there_for_people_and_for_the_hub() -> None:
    beyond = replace(MEASURED, name="noise", source="noise.txt", split=None, pruned=800.0)
    card = model_card(make_record(), CardFacts(), (MEASURED, beyond))
    assert "| WikiText | 20.000 | 25.000 | 1.250 | 3 × 64 |" in card and "| noise | 20.000 | e^800.0 | " in card
    (result,) = of_hub(card)["model-index"][0]["results"]
    assert result["metrics"] == [
        {"type": "perplexity", "value": 25.0, "name": "perplexity per token, windows of 64"},
    ]
    assert result["dataset"] == {
        "name": "WikiText",
        "type": "Salesforce/wikitext",
        "config": "wikitext-2-raw-v1",
        "split": "test",
    }
    (own,) = of_hub(model_card(make_record(), CardFacts(), [replace(MEASURED, name="my text", source="a.txt")]))[
        "model-index"
    ][0]["results"]
    assert own["dataset"] == {"name": "my text", "type": "my-text"}


def test_datasets_of_the_hub_are_named_and_files_are_not() -> None:
    record = make_record()
    assert record.calibration is not None
    source = "c4, org/data:part, /home/me/org/own.txt, own.txt, org/own.txt, builtin, wikitext2, wikitext-2"
    card = model_card(replace(record, calibration=replace(record.calibration, source=source)))
    assert of_hub(card)["datasets"] == ["allenai/c4", "org/data", "Salesforce/wikitext"]
    assert "/home" not in card


def test_it_tells_how_to_serve_what_it_is_and_its_limits() -> None:
    card = model_card(make_record(), CardFacts(BaseCard(), (1, 2, 4)))
    assert "Tensor-parallel sizes that split every layer: 1, 2, 4." in card and "vllm serve" in card
    assert (
        "optimum-cli grasprune export -m examples/tiny-llama --keep-ratio 0.6 --method fasp --dataset sampled" in card
    )
    assert "Versions: optimum-grasprune 0.1.0, torch 2.13.0+cpu" in card
    assert "## Limits" in card and "Its weights were not fine-tuned after the cut" in card


def test_widths_are_a_picture_and_numbers() -> None:
    record = make_record()
    card = model_card(record)
    assert record.plan is not None
    picture = card.partition("```text\n")[2].partition("\n```")[0].splitlines()
    assert picture[0].split() == ["layer", "FFN", "channels", "KV", "heads"] and len(picture) == 7
    assert all(len(line) < 70 for line in picture)
    layer = next(group for group in record.plan.groups if (group.layer, group.kind.name) == (3, "ffn"))
    assert bar(len(layer.kept), layer.count) in picture[4]
    assert f"| 3 | {len(layer.kept)} of {layer.count} |" in card


@pytest.mark.parametrize(
    ("kept", "count", "cells", "number"),
    [(0, 4, 0, " gone"), (4, 4, 20, "100 %"), (1, 1000, 1, "  1 %"), (999, 1000, 19, " 99 %"), (1, 2, 10, " 50 %")],
)
def test_bars(kept: int, count: int, cells: int, number: str) -> None:
    assert bar(kept, count) == "█" * cells + "░" * (20 - cells) + " " + number


RECIPES = st.sampled_from(["default", "quick", "thorough", "paper"])
OPTIONS = st.fixed_dictionaries(
    {"keep_ratio": st.sampled_from([0.3, 0.75])},
    optional={
        "method": st.sampled_from(["flap", "grasprune"]),
        "bos": st.booleans(),
        "deterministic": st.booleans(),
        "seed": st.integers(0, 5),
        "damping": st.floats(0.01, 1),
        "dataset_split": st.sampled_from(["train[:50%]", "test"]),
        "num_samples": st.integers(1, 9),
        "pattern": st.just("units"),
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES, OPTIONS)
def test_the_command_says_the_recipe(recipe: str, options: dict[str, Any]) -> None:
    config = by_recipe(recipe, **options)
    command = command_of(replace(make_record(), recipe=config.to_dict()), "org/llama")
    assert command is not None and command.startswith("optimum-cli grasprune export -m org/llama --keep-ratio ")
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="default")
    add_everyday_options(parser.add_argument_group())
    add_advanced_options(parser)
    parser.add_argument("output")
    args = parser.parse_args(shlex.split(command)[5:])
    assert args.output == "OUTPUT"
    assert by_recipe(args.recipe, **given_in(args, GRASPConfig.model_fields)) == config
    assert len(command.split()) <= 13 + 2 * len(options)  # the nearest recipe, not all options of it


def test_the_command_names_no_place_of_a_machine_and_all_ratios() -> None:
    record = make_record()
    recipe = {**record.recipe, "dataset": "/home/me/my text.txt, wikitext2", "recover": "lora"}
    recipe["recover_watch"] = "/home/me/watched.txt[:50%]"
    shared = replace(record, recipe=recipe, shared=SharedRun(keep_ratios=(0.8, 0.6), nested=True))
    command = command_of(shared, "my llama")
    assert command is not None and "/home" not in command
    assert "-m 'my llama' --keep-ratio 0.8 0.6 --nested " in command
    assert "--dataset 'my text.txt,wikitext2'" in command and "--recover-watch 'watched.txt[:50%]'" in command
    assert command_of(replace(record, recipe={**record.recipe, "of_a_plugin": 3}), "llama") is None
    assert "## How it was made" in model_card(replace(record, recipe={**record.recipe, "of_a_plugin": 3}))


def front_matter(folder: Path, text: str) -> str:
    (folder / "README.md").write_text(text, encoding="utf-8")
    return str(folder)


def test_card_of_a_folder(tmp_path: Path) -> None:
    text = "---\nlicense: [mit]\nlanguage: [en]\nlicense_link: LICENSE\nbase_model: org/other\n---\n# A model\n"
    assert base_card(front_matter(tmp_path, text)) == BaseCard(license="mit", language="en")
    for damaged in ("no metadata", "---\na: [\n---\n", "---\n- 1\n---\n", "---\nlicense: {a: 1}\nlanguage: 3\n---\n"):
        assert base_card(front_matter(tmp_path, damaged)) == BaseCard()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert (
        base_card(str(tmp_path)) == base_card(str(tmp_path / "none")) == base_card("") == base_card(None) == BaseCard()
    )


def test_card_of_the_hub_is_read_from_the_cache_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    front_matter(tmp_path, "---\nlicense: other\nlicense_link: LICENSE\nlanguage:\n- en\n- fr\n---\n")

    def cached(name: str, file: str) -> str | None:
        asked.append((name, file))
        return str(tmp_path / file) if name == "org/llama" else None

    monkeypatch.setattr(base_card_module, "try_to_load_from_cache", cached)
    found = base_card("org/llama")
    link = "https://huggingface.co/org/llama/blob/main/LICENSE"
    assert found == BaseCard("org/llama", license="other", license_link=link, language=("en", "fr"))
    assert base_card("org/unknown") == BaseCard("org/unknown")
    assert base_card(f"{tmp_path}/hub/models--org--llama/snapshots/0a1b") == found  # what transformers calls it
    assert asked == [("org/llama", "README.md"), ("org/unknown", "README.md"), ("org/llama", "README.md")]


def test_a_card_may_come_of_any_record() -> None:
    for name in ("gates", "flap", "weights"):
        file = Path(__file__).parent.parent / "data" / "version-0.1" / f"{name}.json"
        of_hub(model_card(make_record(**json.loads(file.read_text(encoding="utf-8")))))
