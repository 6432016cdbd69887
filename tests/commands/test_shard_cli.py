"""`compare --shard`: one comparison by several processes, through the command line."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPPruner
from optimum_grasprune.comparison.claims import Claim, claim_on
from optimum_grasprune.errors import GraspruneError
from tests.commands.children import Children
from tests.commands.conftest import Outcome

Cli = Callable[..., Outcome]
Arguments = Callable[..., list[object]]
METHODS = ("flap", "flap+none", "random")


@pytest.fixture
def arguments(model_folder: Path, corpus_file: Path) -> Arguments:
    """The command line of a comparison of six cells, or of others."""

    def make(output: Path, *options: object, methods: tuple[str, ...] = METHODS) -> list[object]:
        quick = ("--num-samples", 4, "--seq-len", 24, "--epochs", 1, "--eval-seq-len", 32, "--eval-samples", 4)
        corpora = ("--dataset", corpus_file, "--dataset-split", "[:90%]", "--evaluate", f"end={corpus_file}[90%:]")
        chosen = ("--methods", *methods, "--keep-ratios", "0.8", "0.5", "--no-plot")
        return ["compare", "-m", model_folder, *chosen, *quick, *corpora, *options, output]

    return make


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    started = Children()
    assert started.wait(started.start(["compare", "--help"])) == 0  # by now it has imported everything
    yield started
    started.close()


def tables(output: Path) -> tuple[list[dict[str, str]], list[str], list[dict[str, Any]]]:
    """What the tables say, but for the time that it took and what was computed twice for it."""
    with (output / "comparison.csv").open() as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    page = [re.sub(r"[\d,]+ \|$", "", line) for line in (output / "comparison.md").read_text().splitlines()]
    cells = json.loads((output / "comparison.json").read_text())["cells"]
    left_out = {"seconds", "scores_reused", "choice_reused"}
    return rows, page, [{name: value for name, value in cell.items() if name not in left_out} for cell in cells]


def hidden(output: Path) -> list[str]:
    return [file.name for file in output.rglob(".*")]


def test_two_processes_do_one_comparison(cli: Cli, children: Children, arguments: Arguments, tmp_path: Path) -> None:
    assert cli(*arguments(tmp_path / "whole")).code == 0
    out, logs = tmp_path / "out", [tmp_path / "1.txt", tmp_path / "2.txt"]
    started = [
        children.start(arguments(out, "--shard", f"{number}/2", "--json", tmp_path / "copy.json"), log)
        for number, log in enumerate(logs, start=1)
    ]
    assert [children.wait(child) for child in started] == [0, 0]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    assert sorted(line for line in lines if line.endswith("running")) == [
        f"cell {number} of 6, {method} at {ratio}: running"
        for number, (method, ratio) in enumerate(((m, r) for m in METHODS for r in (0.8, 0.5)), start=1)
    ]
    assert lines.count("dense: measuring") == 1
    assert tables(out) == tables(tmp_path / "whole") and (out / "comparison.html").is_file()
    assert (tmp_path / "copy.json").read_bytes() == (out / "comparison.json").read_bytes()
    assert not hidden(out)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, cli: Cli, children: Children, arguments: Arguments, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert children.wait(children.start(arguments(tmp_path / "whole"))) == 0
    seconds, moments, out = time.monotonic() - begun, random.Random(kills), tmp_path / "out"
    for number in range(kills):
        child = children.start(arguments(out, "--shard", f"{1 + number % 2}/2"))
        time.sleep(moments.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        children.wait(child)
    assert cli(*arguments(out)).code == 0
    assert tables(out) == tables(tmp_path / "whole") and not hidden(out)


def test_the_last_one_writes_the_tables(cli: Cli, arguments: Arguments, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    (out / "cells").mkdir(parents=True)
    with Claim.take(out / "cells" / "random-0.5.json") or pytest.fail("is held") as claim:
        outcome = cli(*arguments(out, "--shard", "1/3", "--json", copy))
    assert outcome.code == 0, outcome.error_lines
    assert f"not finished: random at 0.5 ({claim.holder}); the process that is last writes the tables" in outcome.out
    assert "the cells so far" in outcome.out and "flap+none" in outcome.out
    assert sorted(file.name for file in out.iterdir()) == ["cells", "dense.json"] and not copy.exists()
    outcome = cli(*arguments(out, "--shard", "1/3", "--json", copy))
    assert outcome.code == 0 and outcome.out.count(": running") == 1 and "not finished" not in outcome.out
    assert len(json.loads(copy.read_text())["cells"]) == 6 and (out / "comparison.md").exists()


def test_without_a_shard_claims_do_not_matter(cli: Cli, arguments: Arguments, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    claimed = out / "cells" / "random-0.5.json"
    with Claim.take(claimed) or pytest.fail("is held"):
        assert cli(*arguments(out, methods=("random",))).code == 0
        assert (out / "comparison.json").exists() and hidden(out) == [claim_on(claimed).name]


def test_gates_that_ratios_share_are_trained_by_one_process(cli: Cli, arguments: Arguments, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    options = ("--share-gates", "--shard", "2/2")
    with Claim.take(out / "cells" / "default-0.8.json") or pytest.fail("is held") as claim:
        outcome = cli(*arguments(out, *options, methods=("default", "random")))
    assert outcome.code == 0, outcome.error_lines
    assert f"not finished: default at 0.8 ({claim.holder}), default at 0.5 ({claim.holder});" in outcome.out
    assert sorted(file.name for file in (out / "cells").iterdir()) == ["random-0.5.json", "random-0.8.json"]
    assert cli(*arguments(out, *options, methods=("default", "random"))).code == 0
    cells = json.loads((out / "comparison.json").read_text())["cells"]
    assert [cell["shared"]["keep_ratios"] for cell in cells if "shared" in cell] == [[0.8, 0.5]] * 2


def test_a_terminated_process_leaves_its_cell_to_the_others(
    cli: Cli, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def terminated(*given: object, **options: object) -> None:
        assert hidden(tmp_path / "out") == [".random-0.8.json.claim"]
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(GRASPPruner, "prune", terminated)
        outcome = cli(*arguments(tmp_path / "out", "--shard", "1/2", methods=("random",)))
    line = "interrupted; the same command goes on with the cells that are not finished"
    assert (outcome.code, outcome.error_lines) == (143, [line]) and not hidden(tmp_path / "out")
    assert cli(*arguments(tmp_path / "out", "--shard", "2/2", methods=("random",))).code == 0


def test_a_cell_that_fails_is_said_by_whoever_ran_it_and_by_the_last(
    cli: Cli, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prune, out = GRASPPruner.prune, tmp_path / "out"
    (out / "cells").mkdir(parents=True)

    def fails(self: GRASPPruner, *given: Any, **options: Any) -> Any:
        if self.config.keep_ratio == 0.8:
            raise GraspruneError("the loss is not finite")
        return prune(self, *given, **options)

    monkeypatch.setattr(GRASPPruner, "prune", fails)
    methods = ("random", "magnitude")
    with Claim.take(out / "cells" / "magnitude-0.5.json") or pytest.fail("is held"):
        outcome = cli(*arguments(out, "--shard", "1/2", methods=methods))
    assert outcome.code == 2 and "2 of 3 cells failed: random at 0.8, magnitude at 0.8" in outcome.error_lines[0]
    outcome = cli(*arguments(out, "--shard", "2/2", methods=methods))
    assert outcome.out.count(": running") == 2  # what is left, and the failure in its own share
    assert outcome.code == 2 and "2 of 4 cells failed" in outcome.error_lines[0]
    assert (out / "comparison.json").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b", "1"])
def test_bad_shards(cli: Cli, arguments: Arguments, tmp_path: Path, text: str) -> None:
    outcome = cli(*arguments(tmp_path / "out", "--shard", text))
    assert outcome.code == 2 and len(outcome.error_lines) == 1
    line = f"optimum-cli grasprune compare: error: --shard {text}: should be I/N, the I-th of N processes"
    assert outcome.error_lines[0].startswith(line) and not (tmp_path / "out").exists()


def test_a_refused_model_leaves_no_folder(
    cli: Cli, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(model: Any) -> None:
        raise GraspruneError("the model is not fit to be pruned")

    monkeypatch.setattr("optimum_grasprune.comparison.run.check_model", refuses)
    outcome = cli(*arguments(tmp_path / "out", "--shard", "1/2"))
    assert outcome.code == 2 and "is not fit" in outcome.error_lines[0] and not (tmp_path / "out").exists()
