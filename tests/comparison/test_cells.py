from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_grasprune import GRASPConfig
from optimum_grasprune.comparison import Cell, cells_of, read_corpora
from optimum_grasprune.config import RECIPES
from optimum_grasprune.errors import OptionError
from optimum_grasprune.methods import method_names

QUICK = {"num_samples": 4, "seq_len": 24, "epochs": 1}


def test_cells_are_every_entry_at_every_ratio() -> None:
    cells = cells_of(["default", "flap+none", "default"], ["0.5", 0.8, "0.50"], QUICK)
    assert [(cell.entry, cell.config.keep_ratio) for cell in cells] == [
        ("default", 0.8),
        ("default", 0.5),
        ("flap+none", 0.8),
        ("flap+none", 0.5),
    ]
    assert {cell.config.epochs for cell in cells} == {1}
    assert cells[3].config.method == "flap" and cells[3].config.compensation == "none"
    assert cells[3].name == "flap+none at 0.5" and cells[3].file_name == "flap+none-0.5.json"


def test_an_entry_is_a_recipe_or_a_method_of_the_default_recipe() -> None:
    for name in RECIPES:
        (cell,) = cells_of([name], [0.5], {"dataset": "builtin", "dataset_split": None})
        assert cell.config == RECIPES[name](dataset="builtin", dataset_split=None, keep_ratio=0.5)
    for name in method_names():
        (cell,) = cells_of([name], [0.5], {})
        assert cell.config == RECIPES["default"](method=name, keep_ratio=0.5)


def test_pattern_and_compensation_of_an_entry() -> None:
    (cell,) = cells_of(["statistical+none:2:4"], [0.5], {"compensation": "energy"})
    assert (cell.config.pattern, cell.config.compensation) == ("2:4", "none")
    assert cell.file_name == "statistical+none-2-4-0.5.json"


def test_options_of_an_entry() -> None:
    robust, plain = cells_of(["fasp@least_squares=robust,held-out=32", "fasp"], [0.5], QUICK)
    assert (robust.config.least_squares, robust.config.held_out) == ("robust", 32)
    assert (plain.config.least_squares, plain.config.held_out) == ("auto", None)
    assert robust.file_name == "fasp-least_squares-robust-held-out-32-0.5.json"
    (cell,) = cells_of(["statistical+none:2:4@num_samples=8"], [0.5], QUICK)
    assert (cell.config.pattern, cell.config.compensation, cell.config.num_samples) == ("2:4", "none", 8)


def test_all_cells_have_the_same_data_and_seed() -> None:
    assert RECIPES["paper"]().dataset != RECIPES["default"]().dataset
    cells = cells_of(["default", "paper", "flap"], [0.5], {"seed": "3"})
    assert len({(c.config.dataset, c.config.dataset_split, c.config.text_column, c.config.seed) for c in cells}) == 1
    cells = cells_of(["default", "paper"], [0.5], {"dataset": "corpus.txt"})
    assert {(c.config.dataset, c.config.dataset_split) for c in cells} == {("corpus.txt", None)}


@pytest.mark.parametrize(
    ("entries", "ratios", "options", "line"),
    [
        (["magic"], [0.5], {}, "--methods magic: no such recipe or method; there are the recipes "),
        (["flap+magic"], [0.5], {}, "--methods flap+magic: input should be 'auto', 'none'"),
        (["flap:2:4"], [0.5], {}, "--methods flap:2:4: flap supports only units"),
        (
            ["flap@"],
            [0.5],
            {},
            "--methods flap@: should look like NAME, NAME+COMPENSATION, NAME:PATTERN or NAME@",
        ),
        (["flap@held_out"], [0.5], {}, "--methods flap@held_out: should look like"),
        (["flap@magic=1"], [0.5], {}, "--methods flap@magic=1: there is no option magic"),
        (["flap@seed=1"], [0.5], {}, "--methods flap@seed=1: seed is the same for the whole comparison"),
        (
            ["flap@recover=lora,resume=no"],
            [0.5],
            {},
            "--methods flap@recover=lora,resume=no: there is no option resume",
        ),
        (["flap@damping=0"], [0.5], {}, "--methods flap@damping=0: input should be greater than 0"),
        (["statistical:3:7"], [0.5], {}, "--methods statistical:3:7: input should be 'units'"),
        (["statistical:2:4"], [0.5, 0.8], {}, "--keep-ratios 0.8: pattern 2:4 keeps exactly half"),
        (["+none"], [0.5], {}, "--methods +none: should look like NAME"),
        (["flap"], [0.5, 1.2], {}, "--keep-ratios 1.2: input should be less than or equal to 1"),
        (["flap"], ["half"], {}, "--keep-ratios half: input should be a valid number"),
        (["flap"], [0.5], {"epochs": "many"}, "--epochs many: input should be a valid integer"),
        (["flap"], [0.5], {"compensation": "magic"}, "--compensation magic: input should be"),
    ],
)
def test_bad_cells(entries: list[str], ratios: list[object], options: dict[str, Any], line: str) -> None:
    with pytest.raises(OptionError) as caught:
        cells_of(entries, ratios, options)
    assert caught.value.flag_line.startswith(line)


def test_data_free_cells_do_not_depend_on_the_corpus() -> None:
    assert not Cell("random", GRASPConfig(method="random")).calibrated
    assert Cell("random+scales", GRASPConfig(method="random", compensation="scales")).calibrated
    assert Cell("flap+none", GRASPConfig(method="flap", compensation="none")).calibrated


def test_reading_corpora(corpus_file: Path) -> None:
    corpora = read_corpora([f"all={corpus_file}", f"end={corpus_file}[90%:]"], "text")
    assert list(corpora) == ["all", "end"]
    assert corpora["all"].text.endswith(corpora["end"].text) and corpora["end"].split == "[90%:]"
    (builtin,) = read_corpora(["x=builtin[test]"], "text").values()
    assert builtin.split == "test"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["corpus.txt"], "should look like NAME=PATH"),
        (["a=/nowhere.txt"], "no such file"),
        (["a=builtin[test]", "a=sampled"], "another corpus has this name"),
        (["a b=builtin[test]", "a/b=sampled"], "another corpus has this name"),
        (["a=sampled[9:x]"], "should look like"),
    ],
)
def test_bad_corpora(entries: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_corpora(entries, "text")
    assert caught.value.option == "evaluate"
