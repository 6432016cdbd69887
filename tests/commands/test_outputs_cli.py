"""Outputs through the command line and `save`: what is read stays, what is foreign stays, and no work is lost."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, load_pruned_model
from optimum_grasprune.errors import CheckpointError, OptionError
from optimum_grasprune.export.checkpoint import read_plan
from optimum_grasprune.record.describe import public_name
from tests.commands.conftest import Outcome
from tests.conftest import make_model

Cli = Callable[..., Outcome]
PRUNE = ("--method", "magnitude", "--keep-ratio", "0.7")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
    assert message in outcome.error_lines[0]


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: as Trainer leaves it, with the corpus, an older checkpoint, a plan and notes in it."""
    place = tmp_path / "place"
    for checkpoint in ("checkpoint-500", "checkpoint-1000", "."):
        shutil.copytree(model_folder, place / checkpoint, dirs_exist_ok=True)
    shutil.copy(corpus_file, place / "corpus.txt")
    (place / "notes.txt").write_text("mine")
    monkeypatch.chdir(place)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return place


@pytest.fixture
def pruned(tokenizer: PreTrainedTokenizerFast, place: Path) -> Path:
    """An older checkpoint of ours, cloned from a hub and written about."""
    pruner = GRASPPruner(GRASPConfig(method="random", compensation="none"))
    pruner.prune_model(make_model(), tokenizer)
    pruner.save(place / "pruned", max_shard_size="20KB")
    for name in (".git/HEAD", ".gitattributes", "runs/events.out", "results.json"):
        (place / "pruned" / name).parent.mkdir(exist_ok=True)
        (place / "pruned" / name).write_text("mine")
    return place / "pruned"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    ("model", "options", "output", "message"),
    [
        ("checkpoint-500", (), ".", "the output folder . contains the model that is to be pruned, "),
        ("checkpoint-500", (), "../place", "the output folder ../place contains the model that is to be pruned, "),
        ("checkpoint-500", (), "checkpoint-500", "the output folder checkpoint-500 is the model that is to be pruned"),
        ("checkpoint-500", (), "checkpoint-500/pruned", "lies inside the model that is to be pruned, "),
        (".", (), "new", "the output folder new lies inside the model that is to be pruned, "),
        ("../dense", ("--dataset", "corpus.txt"), ".", "the output folder . contains the corpus, "),
        ("../dense", ("--dataset", "../more.txt,corpus.txt"), "../place", "contains the corpus, "),
        ("../dense", ("--plan", "pruned"), "pruned", "the output folder pruned is the plan"),
        ("../dense", ("--plan", "pruned/grasp_config.json"), "pruned", "the output folder pruned contains the plan, "),
        ("../dense", (), "link", "link is a link to nothing"),
        ("../dense", (), "/proc/nowhere/out", "cannot be written: "),
    ],
)
def test_exports_that_would_lose_something(
    cli: Cli,
    model_folder: Path,
    pruned: Path,
    place: Path,
    model: str,
    options: tuple[str, ...],
    output: str,
    message: str,
    overwrite: tuple[str, ...],
) -> None:
    shutil.copytree(model_folder, place.parent / "dense")
    (place.parent / "more.txt").write_text("more")
    (place / "link").symlink_to("nowhere")
    before = snapshot(place.parent)
    refused(cli("export", "-m", model, *PRUNE, *options, *overwrite, output), message)
    assert snapshot(place.parent) == before


def test_a_foreign_model_is_not_overwritten(cli: Cli, model_folder: Path, place: Path) -> None:
    before = snapshot(place)
    outcome = cli("export", "-m", model_folder, *PRUNE, "--overwrite", place / "checkpoint-500")
    refused(outcome, "holds something other than a model that was pruned: config.json, generation_config.json, ")
    assert snapshot(place) == before


def test_overwriting_a_clone(cli: Cli, model_folder: Path, pruned: Path, tmp_path: Path) -> None:
    outcome = cli("export", "-m", model_folder, *PRUNE, "--overwrite", pruned)
    assert outcome.code == 0, outcome.error_lines
    mine = {".git/HEAD", ".gitattributes", "runs/events.out", "results.json"}
    assert {name for name, content in snapshot(pruned).items() if content == b"mine"} == mine
    assert cli("export", "-m", model_folder, *PRUNE, tmp_path / "fresh").code == 0
    assert {name: content for name, content in snapshot(pruned).items() if content != b"mine"} == snapshot(
        tmp_path / "fresh"
    )


def test_a_link_to_a_folder_gets_the_checkpoint(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "volume")
    assert cli("export", "-m", model_folder, *PRUNE, tmp_path / "out").code == 0
    assert (tmp_path / "out").is_symlink()
    load_pruned_model(tmp_path / "volume")


@pytest.mark.parametrize("file", ["corpus.txt", "checkpoint-500/config.json", "pruned/grasp_config.json", "out", "."])
def test_result_files_that_would_replace_what_is_read(cli: Cli, pruned: Path, place: Path, file: str) -> None:
    before = snapshot(place)
    options = ("--dataset", "corpus.txt", "--plan", "pruned", "--json", file)
    refused(cli("export", "-m", "checkpoint-500", *PRUNE, *options, "out"), f"--json {file}: ")
    assert snapshot(place) == before
    if file in ("corpus.txt", "pruned/grasp_config.json"):
        refused(
            cli("evaluate", "-m", "pruned", "--dataset", "corpus.txt", "--seq-len", 16, "--json", file),
            f"--json {file}: ",
        )
        assert snapshot(place) == before
    if file == "pruned/grasp_config.json":
        refused(cli("inspect", "-m", "pruned", "--json", file), f"--json {file}: lies inside a model that is inspected")


def test_comparisons_and_benchmarks_stay_apart(cli: Cli, pruned: Path, place: Path) -> None:
    (place / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    before = snapshot(place)
    compare = ("compare", "-m", "checkpoint-500", "--methods", "random", "--keep-ratios", "0.8", "--no-plot")
    for options, output, message in (
        ((), "checkpoint-500/comparison", "lies inside the model that is to be pruned"),
        (("--evaluate", "held=corpus.txt[90%:]"), "corpus.txt", "is the corpus"),
        (("--evaluate", "held=corpus.txt[90%:]", "--json", "corpus.txt"), "new", "--json corpus.txt: is the corpus"),
        (("--dataset", "corpus.txt"), ".", "contains the model"),
    ):
        refused(cli(*compare, *options, output), message)
    benchmark = ("benchmark", "--dense", "checkpoint-500", "--pruned", "x=pruned", "--mode", "generate", "--no-plot")
    for options, output, message in (
        ((), "pruned/benchmark", "lies inside a checkpoint that is measured"),
        ((), ".", "contains the dense model"),
        (("--json", "pruned/config.json"), "new", "--json pruned/config.json: lies inside a checkpoint"),
    ):
        refused(cli(*benchmark, *options, output), message)
    assert snapshot(place) == before


@pytest.mark.parametrize("size", ["5G", "abc", "0", "-1", "0GB", "", "nanGB", "infGB", "5000000"])
def test_shard_sizes_are_checked_first(cli: Cli, tmp_path: Path, size: str) -> None:
    outcome = cli("export", "-m", "/nowhere/model", f"--max-shard-size={size}", tmp_path / "out")
    refused(outcome, f"--max-shard-size {size}: should be a size like 2GB")


@pytest.mark.parametrize("size", ["5G", 0, -1, None])
def test_shard_sizes_in_python(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, size: object) -> None:
    pruner = GRASPPruner(GRASPConfig(method="magnitude"))
    pruner.prune_model(make_model(), tokenizer)
    with pytest.raises(OptionError, match="should be a size like 2GB"):
        pruner.save(tmp_path / "out", max_shard_size=size)  # type: ignore[arg-type]
    pruner.save(tmp_path / "out", max_shard_size=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2


def test_generation_settings_as_vicuna_ships_them(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "dense")
    settings = {"temperature": 0.9, "top_p": 0.6, "length_penalty": 2.0, "pad_token_id": -1}
    (tmp_path / "dense" / "generation_config.json").write_text(json.dumps(settings))
    outcome = cli("export", "-m", tmp_path / "dense", *PRUNE, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: value for name, value in written.items() if name != "transformers_version"} == settings


def test_work_outlives_a_move_that_fails(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    real = os.replace

    def busy(source: str, destination: str) -> None:
        if Path(destination).parent == tmp_path / "out":
            raise OSError(16, "Device or resource busy", str(source), None, str(destination))
        real(source, destination)

    monkeypatch.setattr(os, "replace", busy)
    outcome = cli("export", "-m", model_folder, *PRUNE, tmp_path / "out")
    refused(outcome, "Device or resource busy: model.safetensors; the whole checkpoint is in ")
    load_pruned_model(outcome.error_lines[0].rpartition(" is in ")[2])


def test_work_outlives_a_disk_that_is_full(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        outcome = cli("export", "-m", model_folder, *PRUNE, tmp_path / "out")
    refused(outcome, "cannot be written: No space left on device; --plan ")
    assert not (tmp_path / "out").exists()
    plan = outcome.error_lines[0].partition("--plan ")[2].partition(" makes")[0]
    assert cli("export", "-m", model_folder, "--plan", plan, tmp_path / "replayed").code == 0
    assert cli("export", "-m", model_folder, *PRUNE, tmp_path / "fresh").code == 0
    for name in ("model.safetensors", "config.json", "grasp_config.json"):
        assert (tmp_path / "replayed" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


def test_save_stays_apart_from_what_the_model_was_made_from(
    tokenizer: PreTrainedTokenizerFast, place: Path, pruned: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained("checkpoint-500")
    pruner = GRASPPruner(GRASPConfig(method="fasp", dataset="corpus.txt", num_samples=1, seq_len=8))
    once = pruner.prune_model(model, tokenizer)
    twice = GRASPPruner(GRASPConfig(method="magnitude"))
    twice.prune_model(once, tokenizer)
    replayed = GRASPPruner(GRASPConfig(method="magnitude"))
    replayed.replay(model, tokenizer, *read_plan("pruned"))
    before = snapshot(place)
    os.chdir(place.parent)  # names are those of the moment when they were read
    for each, output, message in (
        (pruner, place / "checkpoint-500", "is the model that was pruned"),
        (pruner, place / "checkpoint-500" / "deeper", "lies inside the model that was pruned"),
        (pruner, place, "contains the model that was pruned"),
        (twice, place / "checkpoint-500", "is the model that was pruned"),
        (replayed, pruned, "contains the plan"),
    ):
        with pytest.raises(CheckpointError, match=message) as failure:
            each.save(output, overwrite=True)
        kept = str(failure.value).partition("--plan ")[2].partition(" makes")[0]
        assert read_plan(kept)[0] == each.plan
    assert snapshot(place) == before


def test_save_stays_apart_from_the_corpus(tokenizer: PreTrainedTokenizerFast, place: Path) -> None:
    (place / "texts").mkdir()
    (place / "corpus.txt").rename(place / "texts" / "corpus.txt")
    config = GRASPConfig(method="fasp", dataset="texts/corpus.txt", num_samples=1, seq_len=8)
    pruner = GRASPPruner(config)
    pruner.prune_model(make_model(), tokenizer)
    with pytest.raises(CheckpointError, match="contains the corpus"):
        pruner.save("texts", overwrite=True)
    pruner.prune_model(make_model(), tokenizer, texts=["Something else. " * 20])
    with pytest.raises(CheckpointError, match="is not empty"):
        pruner.save("texts")
    pruner.save("new")


def test_cards_and_records_name_no_place_of_this_machine(
    cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    quick = ("--method", "fasp", "--num-samples", 1, "--seq-len", 8, "--dataset", corpus_file)
    assert cli("export", "-m", model_folder, *quick, tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n# dense, pruned\n" in card and "`corpus.txt`" in card
    assert str(model_folder.parent) not in card and str(corpus_file.parent) not in card
    assert json.loads((tmp_path / "out" / "grasp_config.json").read_text())["base_model"]["name"] == "dense"
    once = GRASPPruner(GRASPConfig(method="magnitude")).prune_model(
        AutoModelForCausalLM.from_pretrained(model_folder), tokenizer
    )
    twice = GRASPPruner(GRASPConfig(method="magnitude"))
    twice.prune_model(once, tokenizer)
    assert twice.record.base_model.name == "dense"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("gpt2", "gpt2"),
        ("/home/me/models/llama/", "llama"),
        ("./llama", "llama"),
        ("~/llama", "llama"),
        ("models/old/llama", "llama"),
        (r"C:\Users\me\llama", "llama"),
        ("/home/me/hub/models--meta-llama--Llama-3.2-1B/snapshots/0123abc", "meta-llama/Llama-3.2-1B"),
        ("", ""),
    ],
)
def test_public_names(source: str, name: str) -> None:
    assert public_name(source) == name


def test_a_folder_that_looks_like_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    assert public_name(".") == "models" and public_name("../models/llama") == "llama"
    monkeypatch.chdir(tmp_path)
    assert public_name("models/llama") == "llama" and public_name("other/llama") == "other/llama"
