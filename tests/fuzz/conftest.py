"""Folders that the cases damage, and how commands are run on them."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import optimum.commands.optimum_cli
import pytest
from hypothesis import settings

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.errors import GraspruneError, GraspruneWarning
from optimum_grasprune.serving.plan import Plan
from tests.commands.conftest import Outcome, cli, remote_code
from tests.conftest import make_tokenizer
from tests.fuzz.cases import PROFILE, Fuzz, ran
from tests.tiny_models import tiny_model

__all__ = ["cli", "remote_code"]  # fixtures

settings.register_profile(PROFILE, print_blob=True)

FAMILIES = {"llama": "LLaMA", "opt": "OPT", "phi3": "Phi-3", "gemma3": "Gemma 3"}
"""Names of folders -> families that differ in what they are configured by, and in how their tensors lie."""

_AUTO = {name: f"evil.Evil{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Our own warnings are lines of the command line here, as they are for users."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(f"always::{GraspruneWarning.__module__}.GraspruneWarning"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases there were."""
    if ran:
        terminalreporter.write_line(f"fuzz: {sum(ran.values()):,} cases of {len(ran)} kinds")


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is there once code of a checkpoint has run."""
    return tmp_path_factory.mktemp("canary") / "canary"


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory, canary: Path) -> dict[str, Path]:
    """A dense model of each family, which brings code along."""
    home = tmp_path_factory.mktemp("dense")
    for name, family in FAMILIES.items():
        folder = home / name
        tiny_model(
            family, num_hidden_layers=2, **({"layer_types": ["full_attention"] * 2} if name == "gemma3" else {})
        ).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        for file, entries in (
            ("config.json", _AUTO),
            ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]}),
        ):
            written = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({**written, "auto_map": entries}))
        (folder / "evil.py").write_text(_traitor(canary))
    return {name: home / name for name in FAMILIES}


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory, dense: dict[str, Path], canary: Path) -> dict[str, Path]:
    """A pruned checkpoint of each, whose code files are not the ones that we wrote."""
    from optimum_grasprune.loading import load_model, load_tokenizer

    home = tmp_path_factory.mktemp("pruned")
    for name, source in dense.items():
        pruner = GRASPPruner(GRASPConfig(method="magnitude", keep_ratio=0.7))
        pruner.prune(load_model(str(source)), load_tokenizer(str(source))).save(home / name)
        for file in (home / name).glob("*.py"):
            file.write_text(_traitor(canary))
    return {name: home / name for name in FAMILIES}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some hundred tokens."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("".join(f"Number {n} comes before {n + 1}.\n" for n in range(60)))
    return file


@pytest.fixture
def fuzz(
    cli: Callable[..., Outcome],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    canary: Path,
    remote_code: None,
) -> Iterator[Fuzz]:
    """What runs the cases of a test. No Hub is there, and the packages that bring commands are looked for once."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(optimum.commands.optimum_cli, "load_subpackages", lambda: None)
    yield Fuzz(request.node.name, cli, tmp_path, canary)
    gc.collect()  # what a library left open is told of here, and not in another test
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def nothing_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work ends where it would begin, in a line of its own: what is fuzzed is what comes before it."""
    checked = GRASPPruner._work

    def refuse(*arguments: object, **options: object) -> None:
        raise GraspruneError("the work would begin here")

    def check_and_refuse(self: GRASPPruner, *arguments: object, **options: object) -> None:
        checked(self, *arguments, **options)  # type: ignore[arg-type]
        refuse()

    monkeypatch.setattr(GRASPPruner, "_work", check_and_refuse)

    def remove_and_refuse(plan: Plan, **options: object) -> None:
        plan.logs.rmdir()
        with suppress(OSError):  # it is no folder of this case
            plan.logs.parent.rmdir()
        refuse()

    monkeypatch.setattr("optimum_grasprune.comparison.Comparison._dense", refuse)
    monkeypatch.setattr("optimum_grasprune.serving.measure.benchmark", remove_and_refuse)


@pytest.fixture
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness reads thousands of task files of its own for a name that is in none of ours: a minute each time."""
    try:
        from lm_eval import tasks
    except ModuleNotFoundError:  # which the command then says
        return
    manager = tasks.TaskManager

    def made(**options: Any) -> Any:
        return manager(**{**options, "include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", made)


def _traitor(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()\nraise RuntimeError('code of a checkpoint runs')\n"
