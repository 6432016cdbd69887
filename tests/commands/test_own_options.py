"""A method with an option of its own: one file and its line in the registry, no other edit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_grasprune import GRASPConfig, GRASPPruner
from optimum_grasprune.config import MethodOptions, StageOptions
from optimum_grasprune.config.flags import add_own_options
from optimum_grasprune.errors import OptionError
from optimum_grasprune.methods import Method, Problem
from optimum_grasprune.methods.selection import SelectionCache
from optimum_grasprune.recovery.base import WeightStage
from optimum_grasprune.recovery.reference import Reference, Trial
from optimum_grasprune.registry import CHAINS, METHODS, STAGES, Registry
from tests.commands.conftest import Outcome
from tests.conftest import make_model, make_tokenizer

Cli = Callable[..., Outcome]

TOY = '''
import torch
from pydantic import Field

from optimum_grasprune.config import MethodOptions
from optimum_grasprune.methods import Method, register


@register("toy")
class Toy(Method):
    """Keeps the units whose number, times the toy option, leaves the largest remainder."""

    class Options(MethodOptions):
        toy_option: int = Field(default=1, ge=1, description="what unit numbers are multiplied by")

    def score(self, problem):
        factor = problem.config.own(self.Options).toy_option
        return torch.arange(problem.inventory.num_units).mul(factor).remainder(17).float()
'''
LINE = 'METHODS.declare("toy", "toy_method", own_options=True)'


def forget(registry: Registry[Any], name: str) -> None:
    registry._classes.pop(name, None)
    registry._modules.pop(name, None)
    registry._with_options.discard(name)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Add the file and the line; the folder that the file is in."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(folder)
    METHODS.declare("toy", "toy_method", own_options=True)
    yield folder
    forget(METHODS, "toy")
    sys.modules.pop("toy_method", None)


def test_python(toy: Path) -> None:
    config = GRASPConfig(method="toy", toy_option=3)
    assert (config.to_dict()["toy_option"], config.toy_option) == (3, 3)  # type: ignore[attr-defined]
    assert GRASPConfig.from_dict(config.to_dict()) == config != GRASPConfig(method="toy")
    assert GRASPConfig(method="toy").to_dict()["toy_option"] == 1
    assert config.model_copy(update={"toy_option": 4, "seed": 2}).to_dict() == {
        **config.to_dict(),
        "toy_option": 4,
        "seed": 2,
    }
    assert "toy_option" not in config.model_copy(update={"method": "random"}).to_dict()
    assert "toy_option" not in GRASPConfig().to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "toy", "toy_option": 0}, "toy_option=0: input should be greater than or equal to 1"),
        ({"method": "toy", "toy_option": "many"}, "toy_option='many': input should be a valid integer"),
        ({"method": "flap", "toy_option": 3}, "toy_option=3: is an option of the method toy alone"),
        ({"method": "toy", "toy_options": 3}, "toy_options=3: extra inputs are not permitted"),
        ({"method": "no such", "toy_option": 3}, "toy_option=3: is an option of the method toy alone"),
    ],
)
def test_bad_values(toy: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        GRASPConfig(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


@pytest.fixture
def export(cli: Cli, model_folder: Path, corpus_file: Path) -> Callable[..., Outcome]:
    data = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24)
    return lambda *options: cli("export", "-m", model_folder, *data, *options)


def test_command_line_record_and_replay(
    toy: Path, cli: Cli, export: Callable[..., Outcome], model_folder: Path, tmp_path: Path
) -> None:
    weights = {}
    for option in (1, 3):
        output = tmp_path / str(option)
        fitted = ("--method", "toy", "--compensation", "least_squares")
        outcome = export(*fitted, "--toy-option", option, output)
        assert outcome.code == 0, outcome.error_lines
        assert json.loads((output / "grasp_config.json").read_text())["recipe"]["toy_option"] == option
        weights[option] = (output / "model.safetensors").read_bytes()
    assert weights[1] != weights[3]

    outcome = cli("export", "-m", model_folder, "--plan", tmp_path / "3", tmp_path / "replayed")
    assert outcome.code == 0, outcome.error_lines
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == weights[3]
    recipe = json.loads((tmp_path / "replayed" / "grasp_config.json").read_text())["recipe"]
    assert (recipe["method"], recipe["toy_option"]) == ("toy", 3)


def test_bad_value_on_the_command_line(toy: Path, export: Callable[..., Outcome], tmp_path: Path) -> None:
    for options, line in (
        (("--method", "toy", "--toy-option", 0), "--toy-option 0: input should be greater than or equal to 1"),
        (("--method", "flap", "--toy-option", 3), "--toy-option 3: is an option of the method toy alone"),
    ):
        outcome = export(*options, tmp_path / "out")
        assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune export: error: {line}"]
        assert not (tmp_path / "out").exists()


def test_compare(toy: Path, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    options = ("--keep-ratios", 0.5, "--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--no-plot")
    evaluation = ("--evaluate", f"corpus={corpus_file}", "--eval-seq-len", 24, "--eval-samples", 2)
    result = tmp_path / "result.json"
    common = (*options, *evaluation, "--epochs", 1, "--json", result)
    methods = ("toy", "toy@toy_option=3", "flap")
    outcome = cli("compare", "-m", model_folder, "--methods", *methods, *common, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    cells = {cell["entry"]: cell for cell in json.loads(result.read_text())["cells"]}
    assert [cells[entry]["recipe"].get("toy_option") for entry in methods] == [1, 3, None]
    assert cells["toy"]["loss"] != cells["toy@toy_option=3"]["loss"]

    for entry in ("flap@toy_option=3", "toy@toy_option=0"):
        outcome = cli("compare", "-m", model_folder, "--methods", entry, *common, tmp_path / "refused")
        assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
        assert f"--methods {entry}: " in outcome.error_lines[0]


def test_an_option_in_compare_is_of_the_cells_that_have_it(
    toy: Path, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--dataset", corpus_file, "--num-samples", 4, "--seq-len", 24, "--no-plot")
    evaluation = ("--evaluate", f"corpus={corpus_file}", "--eval-seq-len", 24, "--eval-samples", 2)
    common = ("compare", "-m", model_folder, "--keep-ratios", 0.5, *data, *evaluation)
    methods = ("toy", "toy@toy_option=5", "random")
    outcome = cli(*common, "--methods", *methods, "--toy-option", 3, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [cell["recipe"].get("toy_option") for cell in cells] == [3, 5, None]

    for option, line in (
        (3, "--toy-option 3: is an option of the method toy alone, which is not compared"),
        (0, "--toy-option 0: is an option of the method toy alone, which is not compared"),
    ):
        outcome = cli(*common, "--methods", "random", "--toy-option", option, tmp_path / "refused")
        assert outcome.code == 2 and outcome.error_lines == [f"optimum-cli grasprune compare: error: {line}"]
    outcome = cli(*common, "--methods", "random", "toy", "--toy-option", 0, tmp_path / "refused")
    assert outcome.code == 2
    (line,) = outcome.error_lines
    assert line.endswith("--toy-option 0: input should be greater than or equal to 1")
    assert not (tmp_path / "refused").exists()


def test_help_of_compare_says_how_to_see_an_option(toy: Path, cli: Cli) -> None:
    page = " ".join(cli("compare", "--help").out.split())
    assert "Options of the method toy: shown by --methods toy --help" in page
    page = " ".join(cli("compare", "--methods", "flap", "toy+none@toy_option=2", "--help").out.split())
    assert "--toy-option N what unit numbers are multiplied by (default: 1)" in page


def test_help_names_the_options_of_methods_and_shows_those_of_the_chosen_one(toy: Path) -> None:
    code = (
        "import sys; sys.argv = ['optimum-cli', 'grasprune', 'export', *{arguments!r}]\n"
        f"from optimum_grasprune.registry import METHODS; {LINE}\n"
        "from optimum.commands.optimum_cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)\n"
    )
    pages = []
    for arguments in (["--help"], ["--method=toy", "--help"]):
        command = [sys.executable, "-c", code.format(arguments=arguments)]
        path = ":".join([str(toy), *sys.path])
        done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": path}, check=True)
        pages.append(" ".join(done.stdout.split()))
    assert "Options of the method toy: shown by --method toy --help" in pages[0] and pages[0].endswith("False")
    assert "--toy-option N what unit numbers are multiplied by (default: 1)" in pages[1]


def test_names_are_taken_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.get("toy")
    with pytest.raises(ValueError, match="an option named 'seed' exists already, common to all methods"):

        class Seed(MethodOptions):
            seed: int = 1

    with pytest.raises(ValueError, match="an option named 'plan' exists already"):

        class Plan(MethodOptions):
            plan: int = 1

    with pytest.raises(ValueError, match="an option named 'evaluate' exists already"):

        class Evaluate(MethodOptions):
            evaluate: int = 1

    class Same(MethodOptions):
        toy_option: int = 1

    with pytest.raises(ValueError, match="an option named 'toy_option' exists already, of the method toy"):
        METHODS.register("another")(type("Another", (), {"Options": Same}))
    assert "another" not in METHODS.names()


def test_the_line_has_to_say_that_there_are_options(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_with_options", set())
    with pytest.raises(ValueError, match="toy has options of its own, which its line in .*registry has to say"):
        METHODS.get("toy")


@pytest.fixture
def stages() -> Iterator[None]:
    yield
    forget(STAGES, "toy_stage")


def test_a_recovery_stage_brings_options_along_too(cli: Cli, stages: None) -> None:
    @STAGES.register("toy_stage")
    class ToyStage:
        class Options(StageOptions):
            strength: float = 0.5

    assert GRASPConfig(compensation="toy_stage").to_dict()["strength"] == 0.5
    assert GRASPConfig(strength="0.25").own(ToyStage.Options).strength == 0.25  # type: ignore[call-arg]
    assert "strength" not in GRASPConfig(compensation="bias").to_dict()
    assert GRASPConfig().own(ToyStage.Options).strength == 0.5
    assert "--strength X" in cli("export", "--help").out


def test_a_chain_brings_the_options_of_its_stages(
    stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_stage.py").write_text(
        "from optimum_grasprune.config import StageOptions\n"
        "from optimum_grasprune.registry import STAGES\n"
        "@STAGES.register('toy_stage')\n"
        "class ToyStage:\n"
        "    class Options(StageOptions):\n"
        "        strength: float = 0.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_stage", raising=False)
    STAGES.declare("toy_stage", "toy_stage", own_options=True)
    monkeypatch.setitem(CHAINS, "pair", ("toy_stage", "scales"))
    assert "strength" not in add_own_options(argparse.ArgumentParser(), ["--compensation", "scales"])
    assert "strength" in add_own_options(argparse.ArgumentParser(), ["--compensation", "pair"])


class Fade(WeightStage):
    """Multiplies the output projections by a strength."""

    name = "fade"
    sentence = "The output projections were faded"

    class Options(StageOptions):
        strength: float = 0.5

    def __init__(self, strength: float) -> None:
        self.strength = strength

    @classmethod
    def from_config(cls, config: GRASPConfig) -> Fade:
        return cls(config.own(cls.Options).strength)

    def refit(self, reference: Reference, trial: Trial, pruned: Any) -> None:
        for linear in reference.family.output_projections(pruned).values():
            linear.weight.data.mul_(self.strength)


class Faded(Method):
    """Whose own compensation is the stage above."""

    needs_calibration = False
    compensation = "fade"

    def score(self, problem: Problem) -> torch.Tensor:
        return torch.arange(problem.inventory.num_units).float()


@pytest.fixture
def faded() -> Iterator[None]:
    STAGES.register("fade")(Fade)
    METHODS.register("faded")(Faded)
    yield
    forget(STAGES, "fade")
    forget(METHODS, "faded")


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"method": "faded"}, 0.5),  # it is the method that chooses the stage
        ({"method": "faded", "strength": 0.25}, 0.25),
        ({"method": "random", "compensation": "fade"}, 0.5),
        ({"method": "faded", "compensation": "none"}, None),
    ],
)
def test_a_stages_options_are_recorded_where_it_is_in_the_recipe(
    faded: None, options: dict[str, Any], recorded: float | None
) -> None:
    pruned = GRASPPruner(GRASPConfig(**options)).prune(make_model(), make_tokenizer())
    assert pruned.record.recipe.get("strength") == recorded
    again = GRASPPruner(GRASPConfig()).replay(make_model(), make_tokenizer(), pruned.record.plan, pruned.record)
    assert again.record == pruned.record
    state = pruned.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


def test_options_of_a_stage_choose_no_other_units(faded: None, toy: Path) -> None:
    cache, model = SelectionCache(), make_model()
    config = GRASPConfig(method="faded")
    pruned = GRASPPruner(config).prune(model, make_tokenizer())
    cache.keep(config, pruned.selection)
    for same in ({"strength": 0.25}, {"compensation": "scales"}, {"compensation": "fade"}, {"damping": 2.0}):
        assert cache.for_recipe(config.model_copy(update=same)) == pruned.selection
    scores = cache.for_recipe(config.model_copy(update={"keep_ratio": 0.7, "strength": 0.25}))
    assert scores is not None and scores.scores_U is not None and not scores.candidates
    for other in ({"seed": 1}, {"method": "toy"}, {"statistic_samples": 3}):
        assert cache.for_recipe(config.model_copy(update=other)) is None


def test_compare_selects_once_for_all_options_of_a_stage(
    faded: None, cli: Cli, model_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    methods = ("faded", "faded@strength=0.25", "faded+none")
    data = ("--dataset", corpus_file, "--no-plot", "--evaluate", f"corpus={corpus_file}", "--eval-seq-len", 24)
    common = ("-m", model_folder, "--keep-ratios", 0.5, *data, "--eval-samples", 2)
    outcome = cli("compare", "--methods", *methods, *common, tmp_path / "out")
    assert outcome.code == 0, outcome.error_lines
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert [cell["recipe"].get("strength") for cell in cells] == [0.5, 0.25, None]
    assert [cell["choice_reused"] for cell in cells] == [False, True, True]
    assert len({cell["loss"]["corpus"] for cell in cells}) == 3

    outcome = cli("compare", "--methods", "faded+none", "random", *common, "--strength", 0.75, tmp_path / "refused")
    assert outcome.code == 2 and not (tmp_path / "refused").exists()
    assert outcome.error_lines[0].endswith(
        "--strength 0.75: is an option of the stage fade alone, which is not compared"
    )
