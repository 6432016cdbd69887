"""What a stopped run has kept, damaged: refused, or as good as the whole, never another result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from optimum_grasprune.execution import run_state
from tests.fuzz.cases import Fuzz, contents, fuzzed
from tests.fuzz.strategies import damaged, json_files, safetensors_files

_SMALL = (
    *("export", "-m", "llama", "--dataset", "corpus.txt", "--num-samples", 2, "--seq-len", 16, "--held-out", 1),
    *("--epochs", 1, "--snapshots", 2, "--diagonal-epochs", 1, "out"),
)
_STATE = ".out.grasprune-state"


class _Killed(BaseException):
    pass


@pytest.fixture
def stopped(
    fuzz: Fuzz, dense: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, bytes | None]]:
    """What a run kept that was killed when all was chosen, and the checkpoint that it would have written."""
    monkeypatch.setattr(run_state, "STATE_EVERY", 0.0)
    with fuzz.case(dense["llama"], corpus) as work:
        assert fuzz.run(*_SMALL).code == 0
        whole = contents(work / "out")
        shutil.rmtree(work / "out")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(_Killed):
            patch.setattr("optimum_grasprune.pruned.PrunedModel.save", _killed)
            fuzz.run(*_SMALL)
        shutil.copytree(work / _STATE, tmp_path / _STATE)
    return tmp_path / _STATE, whole


@fuzzed(150, data=st.data())
def test_states(
    fuzz: Fuzz,
    dense: dict[str, Path],
    corpus: Path,
    stopped: tuple[Path, dict[str, bytes | None]],
    data: st.DataObject,
) -> None:
    state, whole = stopped
    with fuzz.case(dense["llama"], corpus, state) as work:
        name = data.draw(st.sampled_from(sorted(path.name for path in state.iterdir())))
        content = (state / name).read_bytes()
        made = json_files(content) if name.endswith(".json") else safetensors_files(content) | damaged(content)
        (work / _STATE / name).write_bytes(data.draw(made))
        before = contents(work)
        outcome = fuzz.cli(*_SMALL)
        if outcome.code == 0:
            assert contents(work / "out") == whole
        else:
            assert outcome.code == 2 and len(outcome.error_lines) == 1, outcome.error_lines
            assert not (work / "out").exists()
            assert {name: before[name] for name in before if not name.startswith(_STATE)} == {
                name: content for name, content in contents(work).items() if not name.startswith(_STATE)
            }


def _killed(*arguments: object, **options: object) -> None:
    raise _Killed
