"""Where a model is while it is pruned: as it is asked for on the command line, or chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from optimum_grasprune.dispatched import is_offloaded
from optimum_grasprune.estimate import Estimate, Job, Machine
from optimum_grasprune.estimate.verdict import Shortage
from optimum_grasprune.execution import placed
from optimum_grasprune.execution.free_memory import FreeMemory
from optimum_grasprune.layer_store import LayerStore
from optimum_grasprune.pruner import GRASPPruner
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]
GIB = 2**30
FASP = ("--method", "fasp", "--num-samples", "4", "--seq-len", "16", "--keep-ratio", "0.5", "--runner")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2.5 MB, most of it in its layers."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(intermediate_size=2048).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel]:
    """The models that are given to the pruner."""
    given: list[PreTrainedModel] = []
    for name in ("prune", "replay"):
        inner = getattr(GRASPPruner, name)

        def noted(self: GRASPPruner, model: PreTrainedModel, *others: Any, inner: Any = inner, **options: Any) -> Any:
            given.append(model)
            return inner(self, model, *others, **options)

        monkeypatch.setattr(GRASPPruner, name, noted)
    return given


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_offloaded_and_whole_write_the_same(
    cli: Cli, wide: Path, corpus_file: Path, tmp_path: Path, pruned: list[PreTrainedModel]
) -> None:
    pytest.importorskip("accelerate")
    asked = ("export", "-m", wide, "--dataset", corpus_file, *FASP)
    outcome = cli(*asked, "offloaded", "--max-memory", "cpu=1MiB", tmp_path / "offloaded")
    assert outcome.code == 0 and outcome.error_lines == []  # nothing that accelerate or transformers say
    assert cli(*asked, "whole", tmp_path / "whole").code == 0
    assert [is_offloaded(model) for model in pruned] == [True, False]
    assert files_of(tmp_path / "offloaded") == files_of(tmp_path / "whole")
    assert "offloaded" not in json.dumps(json.loads((tmp_path / "offloaded" / "grasp_config.json").read_text()))
    replayed = cli(*asked, "offloaded", "--max-memory", "cpu=1MiB", "--plan", tmp_path / "whole", tmp_path / "again")
    assert replayed.code == 0 and is_offloaded(pruned[-1])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == files_of(tmp_path / "whole")["model.safetensors"]


def test_what_is_chosen_is_told_unless_it_is_the_plain_one(
    cli: Cli,
    wide: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruned: list[PreTrainedModel],
) -> None:
    pytest.importorskip("accelerate")
    asked = ("export", "-m", wide, "--dataset", corpus_file, *FASP, "auto")
    assert cli(*asked, tmp_path / "whole").error_lines == []
    there = Machine(host=GIB, output=GIB, temporary=GIB, device=2**20, devices=2**20, name="cuda:0")
    monkeypatch.setattr(Machine, "here", lambda *_, **__: there)
    monkeypatch.setattr(Job, "is_on_host", False)  # a GPU with too little memory for a whole model
    too_little = [Shortage("device", 3 * 2**20, 2**20)]
    for what in ("tight", "shortages"):
        missing = property(lambda estimate: too_little if estimate.needs.runner == "whole" else [])
        monkeypatch.setattr(Estimate, what, missing)
    monkeypatch.setattr(placed, "free_memory", lambda device: FreeMemory({0: 0}, 4 * 2**20))
    outcome = cli(*asked, tmp_path / "offloaded")
    assert outcome.code == 0
    assert outcome.error_lines == ["runner: offloaded, since whole needs 3 MiB on cuda:0, and 1 MiB are free"]
    assert files_of(tmp_path / "offloaded") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("elsewhere",), "--runner elsewhere: input should be 'auto', 'whole', 'offloaded', 'sharded' or 'streamed'"),
        (("auto", "--max-memory", "0"), "--max-memory 0: should be each device with a size, as in 0=20GiB"),
        (("auto", "--max-memory", "99=20GiB"), "--max-memory 99: is no GPU here, of which there are "),
        (("whole", "--max-memory", "cpu=1GiB"), "--runner whole: has no meaning beside --max-memory"),
        (("auto", "--max-memory", "cpu=1GiB", "--device", "cpu"), "--device cpu: has no meaning beside --max-memory"),
        (("offloaded", "--device", "abacus"), "--device abacus: "),
    ],
)
def test_refusals(cli: Cli, wide: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    outcome = cli("export", "-m", wide, "--method", "magnitude", "--runner", *options, tmp_path / "out")
    assert outcome.code == 2 and len(outcome.error_lines) == 1 and message in outcome.error_lines[0]
    assert not (tmp_path / "out").exists()


def test_without_accelerate(cli: Cli, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed, "find_spec", lambda name: None)
    outcome = cli("export", "-m", wide, "--method", "magnitude", "--runner", "offloaded", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.error_lines[0].endswith("--runner offloaded: needs accelerate: pip install accelerate")


def test_perplexity_is_measured_layer_by_layer(
    cli: Cli, wide: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dense and a pruned model, on one corpus, on several, by position."""
    assert cli("export", "-m", wide, "--method", "magnitude", "--keep-ratio", 0.5, tmp_path / "pruned").code == 0
    fetched: list[int] = []
    fetch = LayerStore.fetch
    monkeypatch.setattr(LayerStore, "fetch", lambda store, layer: fetched.append(layer) or fetch(store, layer))
    windows = ("--seq-len", 32, "--num-samples", 3, "--batch-size", 2)
    for what in (("--dataset", corpus_file), ("--ppl", f"one={corpus_file}", f"two={corpus_file}[:50%]"), ()):
        by_position = () if what else ("--by-position", "--dataset", corpus_file)
        asked = ("evaluate", "-m", tmp_path / "pruned", "--dense", wide, *what, *by_position, *windows)
        assert cli(*asked, "--json", tmp_path / "whole.json").code == 0 and not fetched
        assert cli(*asked, "--runner", "streamed", "--json", tmp_path / "streamed.json").code == 0
        assert {0, 1, 2} == set(fetched)
        assert (tmp_path / "streamed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
        fetched.clear()


@pytest.mark.parametrize("what", [("--needles", "novels.txt"), ("--tasks", "arc_easy")])
def test_what_needs_a_whole_model_is_not_streamed(
    cli: Cli, wide: Path, corpus_file: Path, what: tuple[str, ...]
) -> None:
    outcome = cli("evaluate", "-m", wide, "--dataset", corpus_file, "--runner", "streamed", *what)
    assert outcome.code == 2 and "--runner streamed: measures perplexity alone" in outcome.error_lines[0]
