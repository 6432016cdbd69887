"""`-c FILE`: options in a file, and the recipe of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_grasprune.config.option_file import LARGEST_FILE, read_option_file
from optimum_grasprune.errors import OptionError
from tests.commands.conftest import Outcome
from tests.commands.test_own_options import toy

Cli = Callable[..., Outcome]
__all__ = ["toy"]  # a fixture

QUICK = {"method": "fasp", "num_samples": 2, "seq_len": 24, "held-out": 0}


def written(folder: Path, options: object) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(options if isinstance(options, str) else yaml.safe_dump(options), encoding="utf-8")
    return file


def refused(outcome: Outcome, command: str, line: str) -> None:
    assert outcome.code == 2 and not outcome.out.strip()
    assert len(outcome.error_lines) == 1, outcome.error_lines
    assert outcome.error_lines[0].startswith(f"optimum-cli grasprune {command}: error: --config "), outcome.error_lines
    assert line in outcome.error_lines[0], outcome.error_lines


def test_a_file_does_what_flags_do_and_so_does_the_checkpoint(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    options = {"model": str(model_folder), "dataset": str(corpus_file), "keep-ratio": 0.6, "seed": 7, **QUICK}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert cli("export", *flags, tmp_path / "flags").code == 0
    file = written(tmp_path, {**options, "output": str(tmp_path / "file"), "kv_keep_ratio": None})
    outcome = cli("export", "-c", file)
    assert outcome.code == 0, outcome.error_lines
    for recipe, output in ((tmp_path / "flags", "folder"), (tmp_path / "flags" / "grasp_config.json", "record")):
        outcome = cli("export", "--config", recipe, "-m", model_folder, tmp_path / output)
        assert outcome.code == 0, outcome.error_lines
    for name in ("model.safetensors", "grasp_config.json"):
        first = (tmp_path / "flags" / name).read_bytes()
        assert [
            output for output in ("file", "folder", "record") if (tmp_path / output / name).read_bytes() != first
        ] == []


def test_the_command_line_goes_before_the_file(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    options = {
        "model": "./nowhere",
        "output": str(tmp_path / "file"),
        "keep_ratio": [0.9, 0.8],
        "dataset": "./none.txt",
    }
    file = written(tmp_path, options)
    assert "the model folder ./nowhere does not exist" in cli("export", "-c", file).error_lines[0]
    outcome = cli("export", "-c", file, "-m", model_folder, "--seed", 1, "--keep-ratio", 0.7, tmp_path / "out")
    refused(outcome, "export", "recipe.yaml: dataset ./none.txt: no such file")
    outcome = cli("export", "-m", model_folder, "--keep-ratio", 2, "-c", file)
    assert outcome.error_lines == [
        "optimum-cli grasprune export: error: --keep-ratio 2: input should be less than or equal to 1"
    ]
    # A list of the command line takes the place of the file's, and its last word may be the folder all the same.
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    outcome = cli("export", "-c", file, "-m", model_folder, "--keep-ratio", 0.7, 0.6, tmp_path / "taken")
    assert "is not empty" not in outcome.error_lines[0]  # of several ratios it is a folder of folders
    outcome = cli("export", "-c", file, "-m", model_folder, "--keep-ratio", 0.7, tmp_path / "taken")
    assert f"the output folder {tmp_path / 'taken'} is not empty" in outcome.error_lines[0]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("keep_ration: 0.5", "there is no option keep_ration; the nearest: keep_ratio, "),
        ("learning-rat: 1", "there is no option learning-rat; the nearest: learning_rate, "),
        ("config: other.yaml", "there is no option config"),
        ("help: true", "there is no option help"),
        ("keep_ratio: 2", "recipe.yaml: keep_ratio 2: input should be less than or equal to 1"),
        ("keep-ratio: half", "recipe.yaml: keep-ratio half: input should be a valid number"),
        ("seed: 1.5", "recipe.yaml: seed 1.5: input should be a valid integer"),
        ("pattern: 2:9", "pattern 2:9: input should be 'units', 'unstructured', '2:4' or '4:8'"),
        ("recipe: slow", "recipe.yaml: recipe slow: no such recipe; there are quick, default"),
        ("max_shard_size: no", "recipe.yaml: max_shard_size no: should be a size like 2GB or 500MB"),
        ("nested: maybe", "nested: maybe should be true or false"),
        ("device: [cpu, cuda]", "device: takes one value, not a list"),
        ("seed: 1\n\nseed: 2", "line 3: seed is set twice"),
        ('dataset: "a\\0b"', "dataset: holds a zero byte"),
        ("keep_ratio: 0.5\nkeep-ratio: 0.5", "line 2: keep-ratio is set twice"),
        ("seed:\n  a: 1", "line 2: seed should be text, a number, or a list of them"),
        ("keep_ratio: [[0.5]]", "line 1: keep_ratio should be text, a number, or a list of them"),
        ("keep_ratio: []", "line 1: keep_ratio should be text, a number, or a list of them"),
        ("[1]: 2", "line 1: the name of an option should be text"),
        ("0.5", "should hold options, one a line"),
        ("- keep_ratio", "should hold options, one a line"),
        ("seed: [", "is not YAML: line 1: "),
        ("seed: 1\n---\nseed: 2", "is not YAML: line 2: "),
        ("seed: \x00", "is not YAML: "),
        ("seed: *there", "is not YAML: line 1: found undefined alias 'there'"),
        ("seed: " + "[" * 3000, "is not YAML that holds options: it is nested too deeply"),
        ("dataset: " + "x" * LARGEST_FILE, "holds more than 65,536 bytes, too many for a recipe"),
        ("model: !!python/name:os.system", "line 1: model should be text"),
        ("model: !!python/object/apply:os.abort []", "line 1: model should be text"),
        ("!!python/object/apply:os.abort []", "should hold options, one a line"),
        ("trust_remote_code: True", "trust_remote_code: stands on the command line alone"),
        ("toy_option: 1", "there is no option toy_option"),
    ],
)
def test_bad_files_are_one_line(cli: Cli, model_folder: Path, tmp_path: Path, content: str, line: str) -> None:
    refused(cli("export", "-m", model_folder, "-c", written(tmp_path, content), tmp_path / "out"), "export", line)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes("dataset: caf\xe9".encode("latin-1"))
    (tmp_path / "record.json").write_text('{"recipe": 3, "base_model": {}}')
    for name, line in (
        ("none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("empty", "empty: is a folder without grasp_config.json"),
        ("latin.yaml", "latin.yaml: is not UTF-8: byte 12 cannot be read"),
    ):
        refused(cli("export", "-m", model_folder, "-c", tmp_path / name, tmp_path / "out"), "export", line)
    outcome = cli("export", "-m", model_folder, "-c", tmp_path / "record.json", tmp_path / "out")
    assert outcome.code == 2 and "record.json: recipe: input should be a valid" in outcome.error_lines[0]
    assert cli("export", "-m", model_folder, "-c").code == 2


def test_a_bomb_of_aliases_is_refused_at_once(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    file = written(tmp_path, "\n".join(["a0: &a0 [x, x]", *levels]))
    refused(cli("inspect", "-m", model_folder, "-c", file), "inspect", "line 2: a1 should be text, a number")


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    file = written(tmp_path, "model: &where ./llama\noutput: *where\nkeep-ratio: [0.50, 1e-1]\nbos: true\nseed: ~\n")
    assert read_option_file(str(file)).values == {
        "model": "./llama",
        "output": "./llama",
        "keep_ratio": ["0.50", "1e-1"],
        "bos": "true",
        "seed": None,
    }
    assert read_option_file(str(written(tmp_path, "# nothing yet\n"))).values == {}


NAMES = st.text("ab_", min_size=1, max_size=4)
TEXTS = st.text("a1:-#'\"[]{}&*!|>%@`, \\\n~é", max_size=6) | st.sampled_from(
    ["null", "true", "2:4", "1e-2", "0x1", "<<", "no"]
)
UNHURRIED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(st.dictionaries(NAMES, TEXTS | st.lists(TEXTS, min_size=1, max_size=2), max_size=3))
def test_text_comes_through_as_it_is(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    assert read_option_file(str(file)).values == options


@UNHURRIED
@given(st.binary(max_size=20) | st.text("a:- []{}\n&*!'\"0", max_size=20).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        values = read_option_file(str(file)).values
    except OptionError as error:
        assert "\n" not in str(error)
    else:
        assert all(value is None or isinstance(value, str | list) for value in values.values())


def test_every_command_takes_a_file(cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    sizes = {"gpu_memory": "1GiB", "overhead": "64MiB", "context": 100, "json": str(result)}
    outcome = cli("inspect", "-c", written(tmp_path, {"model": str(model_folder), **sizes}))
    assert outcome.code == 0, outcome.error_lines
    assert json.loads(result.read_text())["deployment"]["context"] == 100

    options = {"model": [str(model_folder)], "dataset": str(corpus_file), "seq-len": 32, "num_samples": 3}
    outcome = cli("evaluate", "-c", written(tmp_path, options), "--num-samples", 2)
    assert outcome.code == 0 and "2 windows of 32 tokens" in outcome.out, outcome.error_lines

    methods = {"model": str(model_folder), "methods": "flap", "keep_ratios": ["0.5", "2"], "no_plot": True}
    outcome = cli("compare", "-c", written(tmp_path, methods), tmp_path / "out")
    refused(outcome, "compare", "recipe.yaml: keep_ratios 2: input should be less than or equal to 1")
    outcome = cli("compare", "-c", written(tmp_path, {**methods, "methods": ["flop"]}), tmp_path / "out")
    refused(outcome, "compare", "recipe.yaml: methods flop: no such recipe or method")
    outcome = cli("compare", "-c", written(tmp_path, {**methods, "output": str(model_folder)}), "--keep-ratios", 0.5)
    assert "the output folder" in outcome.error_lines[0] and "is the model" in outcome.error_lines[0]

    speed = {
        "dense": str(model_folder),
        "pruned": f"other={model_folder}",
        "mode": "generate",
        "lengths": ["12:30", "x"],
    }
    outcome = cli("benchmark", "-c", written(tmp_path, speed), tmp_path / "out")
    refused(outcome, "benchmark", "recipe.yaml: lengths x: ")
    trusting = written(tmp_path, {**speed, "serve_flags": "--enforce-eager --trust_remote_code"})
    refused(
        cli("benchmark", "-c", trusting, tmp_path / "out"), "benchmark", "serve_flags: stands on the command line alone"
    )
    assert not (tmp_path / "out").exists()


def test_required_options_are_still_asked_for(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("export", "-c", written(tmp_path, "model: null\nkeep_ratio: 0.5"), tmp_path / "out")
    assert outcome.code == 2 and "the following arguments are required: -m/--model" in outcome.error_lines[-1]
    outcome = cli("export", "-c", written(tmp_path, "model: ./llama"))
    assert outcome.error_lines == ["optimum-cli grasprune export: error: the following arguments are required: OUTPUT"]


def test_options_of_a_method_may_stand_in_a_file(toy: Path, cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    arguments = ("export", "-m", model_folder, "--dataset", "./none.txt", tmp_path / "out")
    outcome = cli(*arguments, "-c", written(tmp_path, "method: toy\ntoy_option: 0"))
    refused(outcome, "export", "recipe.yaml: toy_option 0: input should be greater than or equal to 1")
    outcome = cli(*arguments, "-c", written(tmp_path, "method: flap\ntoy_option: 3"))
    refused(outcome, "export", "recipe.yaml: toy_option 3: is an option of the method toy alone")
    outcome = cli(*arguments, "-c", written(tmp_path, "method: toy\ntoy_option: 3"))
    assert "--dataset ./none.txt: no such file" in outcome.error_lines[0]


def test_the_recipe_of_a_checkpoint_is_a_whole_one(
    toy: Path, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--num-samples", 2, "--seq-len", 24, "--compensation", "none")
    made = tmp_path / "made"
    assert cli("export", "-m", model_folder, *data, "--method", "toy", "--toy-option", 3, made).code == 0
    outcome = cli("export", "-c", made, tmp_path / "out")
    assert "required: -m/--model" in outcome.error_lines[-1]  # which one it was made from is not taken
    outcome = cli("export", "-c", made, "-m", model_folder, "--overwrite", made)
    assert f"the output folder {made} is the recipe" in outcome.error_lines[0]
    outcome = cli("export", "-c", made, "-m", model_folder, "--method", "random", tmp_path / "other")
    assert outcome.code == 0, outcome.error_lines  # toy's own option goes with it
    recipe = json.loads((tmp_path / "other" / "grasp_config.json").read_text())["recipe"]
    assert recipe["method"] == "random" and "toy_option" not in recipe and recipe["compensation"] == "none"
    refused(cli("evaluate", "-c", made, "-m", model_folder), "evaluate", "made: there is no option ")
