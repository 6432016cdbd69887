"""`export --evaluate` and `--push-to-hub`: what follows when the checkpoint is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from optimum_grasprune.export import hub
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]


@dataclass
class Hub:
    """What stands in the place of the Hub's API: it notes what it is told."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    fails: str = ""

    def whoami(self) -> dict[str, str]:
        return self._noted("whoami", None, {"name": "me"})

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        return self._noted("create_repo", (repository, private), Address(repository))

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        names = sorted(path.name for path in folder_path.iterdir())
        sent = [name for name in names if any(fnmatchcase(name, pattern) for pattern in allow_patterns)]
        self._noted("upload_folder", (repo_id, sent), None)

    def _noted(self, name: str, what: Any, answer: Any) -> Any:
        if name == self.fails:
            raise ConnectionError(f"{name}: no route\nto the host")
        self.calls.append((name, what))
        return answer


@dataclass
class Address:
    repo_id: str

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repo_id}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Hub:
    api = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return api


@pytest.fixture
def described_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A dense model with a card of its own."""
    folder = tmp_path / "described"
    shutil.copytree(model_folder, folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# A model\n")
    return folder


def test_results_go_to_the_card_the_terminal_and_the_json(
    cli: Cli, described_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    output, result = tmp_path / "out", tmp_path / "result.json"
    options = ("--method", "magnitude", "--compensation", "none", "--keep-ratio", 0.7, "--json", result)
    texts = (
        "--eval-seq-len",
        32,
        "--eval-samples",
        3,
        "--evaluate",
        f"count={corpus_file}[:50%]",
        f"all={corpus_file}",
    )
    outcome = cli("export", "-m", described_folder, *options, *texts, output)
    assert outcome.code == 0, outcome.error_lines
    first, second = json.loads(result.read_text())["measured"]
    assert (first["name"], first["source"], first["split"]) == ("count", "corpus.txt", "[:50%]")
    assert (second["windows"], second["window"]) == (3, 32)

    options_of_evaluate = ("--dataset", corpus_file, "--seq-len", 32, "--num-samples", 3)
    evaluated = tmp_path / "evaluated.json"
    assert cli("evaluate", "-m", described_folder, output, *options_of_evaluate, "--json", evaluated).code == 0
    losses = [model["loss"] for model in json.loads(evaluated.read_text())["models"]]
    assert [second["dense"], second["pruned"]] == losses

    card = ModelCard.load(output / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["language"]) == ("mit", "en") and "base_model" not in data
    names = [found["dataset"]["name"] for found in data["model-index"][0]["results"]]
    assert names == ["count", "all"]
    row = f"| all | {2.718281828459045 ** losses[0]:.3f} | {2.718281828459045 ** losses[1]:.3f} |"
    assert row in card.text and "model card" in outcome.out
    assert str(tmp_path) not in str(card) and "Tensor-parallel sizes that split every layer: 1" in card.text


def test_each_ratio_is_measured_and_sent(
    api: Hub, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    result, output = tmp_path / "result.json", tmp_path / "out"
    sent = ("--push-to-hub", "me/pruned", "--private", "--json", result)
    texts = ("--eval-seq-len", 16, "--eval-samples", 1, "--evaluate", f"count={corpus_file}")
    method = ("--method", "magnitude", "--compensation", "none", "--keep-ratio", 0.8, 0.6)
    outcome = cli("export", "-m", model_folder, *method, *sent, *texts, output)
    assert outcome.code == 0, outcome.error_lines
    larger, smaller = json.loads(result.read_text())["checkpoints"]
    assert larger["measured"][0]["dense"] == smaller["measured"][0]["dense"]
    assert larger["measured"][0]["pruned"] != smaller["measured"][0]["pruned"]
    assert [name for name, _ in api.calls] == ["whoami", *["create_repo", "upload_folder"] * 2]
    assert api.calls[1] == ("create_repo", ("me/pruned-keep-0.8", True))
    assert api.calls[4][1] == ("me/pruned-keep-0.6", sorted(path.name for path in (output / "keep-0.6").iterdir()))
    assert "sent to https://huggingface.co/me/pruned-keep-0.6" in outcome.out


def test_no_file_but_those_of_the_checkpoint_is_sent(api: Hub, cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    options = ("export", "-m", model_folder, "--method", "magnitude", "--compensation", "none")
    assert cli(*options, tmp_path / "out").code == 0
    (tmp_path / "out" / "secret.txt").touch()
    assert cli(*options, "--overwrite", "--push-to-hub", "me/pruned", tmp_path / "out").code == 0
    (repository, names) = api.calls[-1][1]
    assert repository == "me/pruned" and "config.json" in names and "secret.txt" not in names
    assert api.calls[1] == ("create_repo", ("me/pruned", None))
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from_pretrained("me/pruned")' in card and "vllm serve me/pruned " in card and "path/to" not in card


def test_what_fails_at_the_end_loses_nothing(
    api: Hub, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("export", "-m", model_folder, "--method", "magnitude", "--compensation", "none")
    api.fails = "upload_folder"
    outcome = cli(*options, "--push-to-hub", "me/pruned", tmp_path / "unsent")
    assert outcome.code == 2
    assert f"whole in {tmp_path / 'unsent'}, but cannot be sent to me/pruned: upload_folder" in outcome.error_lines[-1]
    assert f"; hf upload me/pruned {tmp_path / 'unsent'} tries again" in outcome.error_lines[-1]
    assert cli("inspect", "-m", tmp_path / "unsent").code == 0

    texts = ("--evaluate", f"count={corpus_file}", "--eval-samples", 1)
    monkeypatch.setattr("optimum_grasprune.comparison.beside.perplexity", _fails)
    outcome = cli(*options, *texts, tmp_path / "unmeasured")
    assert outcome.code == 2
    assert f"whole in {tmp_path / 'unmeasured'}, but cannot be measured: no finite loss" in outcome.error_lines[-1]
    assert cli("inspect", "-m", tmp_path / "unmeasured").code == 0


def _fails(*arguments: object) -> None:
    from optimum_grasprune.errors import GraspruneError

    raise GraspruneError("no finite loss")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--push-to-hub", "a/b/c"), "--push-to-hub a/b/c: is no name of a repository: "),
        (("--push-to-hub", "a b"), "--push-to-hub a b: is no name of a repository: "),
        (("--private",), "--private: is of use only with --push-to-hub"),
        (("--eval-samples", 3), "--eval-samples 3: is of use only with --evaluate"),
        (("--eval-seq-len", 32), "--eval-seq-len 32: is of use only with --evaluate"),
        (("--evaluate", "none.txt"), "the following arguments are required: OUTPUT"),
        (("--evaluate", "x=./none.txt"), "--evaluate x=./none.txt: no such file"),
        (
            ("--evaluate", "x=sampled", "--eval-seq-len", 4096),
            "--eval-seq-len 4096: the model reads at most 128 tokens",
        ),
        (("--evaluate", "x=sampled", "--eval-samples", "1,2"), "--eval-samples 1,2: should be one number, or 1"),
    ],
)
def test_refused_before_the_work(
    api: Hub, cli: Cli, model_folder: Path, tmp_path: Path, options: tuple[object, ...], line: str
) -> None:
    output = () if "OUTPUT" in line else (tmp_path / "out",)
    outcome = cli("export", "-m", model_folder, *options, "--method", "magnitude", *output)
    assert outcome.code == 2 and len(outcome.error_lines) == 1 and line in outcome.error_lines[0], outcome.error_lines
    assert not (tmp_path / "out").exists() and not outcome.out.strip()


def test_no_token_and_no_hub_are_refused_before_the_work(
    api: Hub, cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", "-m", model_folder, "--push-to-hub", "me/pruned", tmp_path / "out")
    api.fails = "whoami"
    outcome = cli(*command)
    line = "--push-to-hub me/pruned: the Hub cannot be reached: whoami: no route"
    assert outcome.error_lines == [f"optimum-cli grasprune export: error: {line}"]
    monkeypatch.setattr(hub, "get_token", lambda: None)
    outcome = cli(*command)
    line = "--push-to-hub me/pruned: there is no token for the Hub: hf auth login, or set HF_TOKEN"
    assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune export: error: {line}"]
    assert not api.calls and not (tmp_path / "out").exists()
