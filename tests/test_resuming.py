"""A run that is stopped and started again comes to the same bytes as one that never was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from optimum_grasprune import GRASPConfig, GRASPPruner, RunState
from optimum_grasprune.errors import GraspruneError, Stopped
from optimum_grasprune.execution.run_state import Piece
from optimum_grasprune.export.checkpoint import read_plan
from tests.conftest import make_model

SMALL = {"num_samples": 4, "seq_len": 24, "held_out": 2, "snapshots": 2, "keep_ratio": 0.6}
LORA = {"recover": "lora", "recover_tokens": 96, "recover_rank": 2, "recover_watch": f"{__file__}[:50%]"}
SEARCH = {"search_trials": 3, "search_samples": 1, "search_seconds": 1e6}
RECIPES: dict[str, dict[str, Any]] = {
    "every stage": {**LORA, **SEARCH},
    "gates with a teacher and multipliers": {"kl_weight": 0.5, "multipliers": "joint", "compensation": "none"},
    "ddp": {"method": "ddp", "compensation": "scales", "epochs": 2},
    "moments": {"method": "flap", "compensation": "bias"},
}
Prune = Callable[[RunState | None], dict[str, bytes]]


def files(folder: Path) -> dict[str, Any]:
    """What a checkpoint consists of; how long it took is left out."""
    found: dict[str, Any] = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(found["grasp_config.json"])
    (record.get("recovery") or {}).pop("minutes", None)
    return {**found, "grasp_config.json": record}


def prune_by(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Prune:
    runs = iter(range(1000))

    def prune(state: RunState | None) -> dict[str, Any]:
        pruned = GRASPPruner(config).prune(make_model(), tokenizer, state=state)
        pruned.save(output := folder / f"run-{next(runs)}")
        return files(output)

    return prune


def prune_many_by(config: GRASPConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Prune:
    runs = iter(range(1000))

    def prune(state: RunState | None) -> dict[str, Any]:
        run = GRASPPruner(config).prune_many(make_model(), tokenizer, [0.8, 0.6], nested=True, state=state)
        output = folder / f"run-{next(runs)}"
        for pruned in run:
            pruned.save(output / f"{pruned.record.recipe['keep_ratio']}")
        return {each.name: files(each) for each in output.iterdir()}  # type: ignore[misc]

    return prune


def until_done(
    prune: Prune, folder: Path, events: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], int]:
    """What comes out in the end, and how many runs it took, each stopped after so many things were worked out."""
    write_when_due = RunState.write_when_due
    left = 0

    def stop(state: RunState, *given: Any) -> None:
        nonlocal left
        write_when_due(state, *given)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "write_when_due", stop)
    for runs in range(1, 100):
        left = events
        try:
            return prune(RunState(folder, every=0.0)), runs
        except KeyboardInterrupt:
            continue
    pytest.fail("it never ends")


@pytest.mark.parametrize(("recipe", "events"), list(zip(RECIPES, (13, 5, 5, 2), strict=True)))
def test_stopped_again_and_again(
    recipe: str,
    events: int,
    tokenizer: PreTrainedTokenizerFast,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = GRASPConfig(dataset=str(corpus_file), **{**SMALL, **RECIPES[recipe]})
    prune = prune_by(config, tokenizer, tmp_path)
    expected = prune(None)
    found, runs = until_done(prune, tmp_path / "state", events, monkeypatch)
    assert found == expected and runs > 1


IN_PLACE: dict[str, dict[str, Any]] = {
    "rebuilt, and trained": {},
    "trained alone": {"compensation": "diagonals"},
    "refitted, and trained": {"compensation": "refit"},
}


@pytest.mark.parametrize("recipe", IN_PLACE)
def test_stopped_when_the_dense_model_is_gone(
    recipe: str, tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is first written on the way out, when the weights by which a model is known are no longer there."""
    config = GRASPConfig(dataset=str(corpus_file), **{**SMALL, "held_out": 1, **IN_PLACE[recipe]})
    write_when_due, given = RunState.write_when_due, []

    def stop(state: RunState, *event: Any) -> None:
        write_when_due(state, *event)
        if any(tensor.is_meta for tensor in given[-1].state_dict().values()) and state.every:
            raise KeyboardInterrupt

    def prune(state: RunState) -> dict[str, Any]:
        given.append(make_model())
        with state.stoppable():
            pruned = GRASPPruner(config).prune(given[-1], tokenizer, state=state, inplace=True)
        pruned.save(output := tmp_path / f"run-{len(given)}")
        return files(output)

    monkeypatch.setattr(RunState, "write_when_due", stop)
    with pytest.raises(Stopped, match="the same command goes on from there"):
        prune(RunState(tmp_path / "state", every=1e9))
    found = prune(RunState(tmp_path / "state", every=0))
    assert found == prune_by(config, tokenizer, tmp_path)(None)


def test_several_ratios_stopped_again_and_again(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = prune_many_by(GRASPConfig(dataset=str(corpus_file), **SMALL), tokenizer, tmp_path)
    expected = prune(None)
    found, runs = until_done(prune, tmp_path / "state", 6, monkeypatch)  # in the midst of a round of turns
    assert found == expected and runs > 2


@pytest.fixture(scope="module")
def whole(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GRASPConfig, dict[str, Any]]:
    from tests.conftest import make_tokenizer

    config = GRASPConfig(dataset=str(corpus_file), **{**SMALL, **LORA})
    return config, prune_by(config, make_tokenizer(), tmp_path_factory.mktemp("whole"))(None)


@pytest.mark.parametrize(
    ("what", "steps"), [("statistics", 3), ("gates", 2), ("gates", 4), ("diagonals", 3), ("lora", 2), ("lora", 4)]
)
def test_stopped_at_a_step_it_goes_on_after_the_last_that_was_written(
    what: str,
    steps: int,
    whole: tuple[GRASPConfig, dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, expected = whole
    prune, step_done, taken = prune_by(config, tokenizer, tmp_path), Piece.step_done, []

    def watched(piece: Piece, content: Callable[[], Any]) -> None:
        taken.append(piece.what)
        if taken.count(what) == steps:
            raise KeyboardInterrupt
        step_done(piece, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Piece, "step_done", watched)
        prune(RunState(tmp_path / "state", every=0.0))
    first, taken = taken, []
    monkeypatch.setattr(
        Piece, "step_done", lambda piece, content: taken.append(piece.what) or step_done(piece, content)
    )
    assert prune(RunState(tmp_path / "state", every=0.0)) == expected
    # The step that was not written is done again, and none before it.
    assert taken[0] == what and {name: (first + taken).count(name) for name in ("statistics", "gates", "lora")} == {
        name: expected_steps + (name == what)
        for name, expected_steps in {"statistics": 3, "gates": 4, "lora": 4}.items()
    }


def test_a_replay_goes_on(
    whole: tuple[GRASPConfig, dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, expected = whole
    GRASPPruner(config).prune(make_model(), tokenizer).save(tmp_path / "first")
    saved, outputs = read_plan(tmp_path / "first"), iter(range(100))

    def replay(state: RunState | None) -> dict[str, Any]:
        pruned = GRASPPruner().replay(make_model(), tokenizer, *saved, state=state)
        pruned.save(output := tmp_path / f"again-{next(outputs)}")
        return files(output)

    found, runs = until_done(replay, tmp_path / "state", 6, monkeypatch)
    assert found == expected and runs > 1


def test_a_state_is_that_of_one_run_alone(
    tokenizer: PreTrainedTokenizerFast, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_text = tmp_path / "other.txt"
    other_text.write_text(corpus_file.read_text().replace("child", "adult"))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(corpus_file.read_text())
    config = GRASPConfig(dataset=str(corpus), method="wanda_sp", **SMALL)
    model = make_model()

    def prune(config: GRASPConfig = config, seed: int = 0, **options: Any) -> None:
        state = RunState(tmp_path / "state", every=0.0)
        GRASPPruner(config).prune(make_model(seed), tokenizer, state=state, **options)

    prune()
    for change, line in (
        ({"config": config.model_copy(update={"seed": 1})}, "its seed is 0, not 1"),
        ({"seed": 1}, "its model is "),
    ):
        with pytest.raises(GraspruneError, match=f"holds the state of another run: {line}"):
            prune(**change)
    with pytest.raises(GraspruneError, match="its keep_ratios is "):
        GRASPPruner(config).prune_many(model, tokenizer, [0.6, 0.5], state=RunState(tmp_path / "state"))
    with pytest.raises(GraspruneError, match="a run that starts from what an earlier one found keeps no state"):
        prune(earlier=GRASPPruner(config).prune(model, tokenizer).selection)
    corpus.write_text(other_text.read_text())
    with pytest.raises(GraspruneError, match="holds the state of another run: its text is "):
        prune()
