"""The files that travel in checkpoints stand alone, so each family has its own: all of one text but for names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from optimum_grasprune.families import FAMILIES, Family

ROOT = Path(__file__).parents[2] / "optimum_grasprune" / "families"
FILES = ("configuration_grasp.py", "modeling_grasp.py")
OWN = {
    ("Phi-3", "GRASPDecoderLayer"),  # attention keeps its own configuration, so that the classes have one more base
    ("Phi-3", "GRASPModel"),
    ("Phi-3", "GRASPForCausalLM"),
    ("Phi-3", "_LayersFollow"),
    ("OPT", "GRASPConfig"),  # other names of fields
    ("OPT", "GRASPDecoderLayer"),  # an FFN that is no module of its own, attention that is built anew
    ("OPT", "GRASPModel"),  # the layers are a level deeper
    ("OPT", "_NoHeads"),
    ("OPT", "_NoChannels"),
    ("OPT", "_buildable"),
    ("OPT", "_narrow"),
}
"""What a family has otherwise than LLaMA, or alone."""


def definitions(family: Family, file: str) -> dict[str, str]:
    """The file's functions and classes by name, without docstrings, comments, the family's names and added fields."""
    config, model, causal_lm = family.classes
    stock = causal_lm.removeprefix("GRASP").removesuffix("ForCausalLM")
    text = (ROOT / family.code.split(".")[-2] / file).read_text(encoding="utf-8")
    names = {config: "GRASPConfig", model: "GRASPModel", causal_lm: "GRASPForCausalLM"}
    bases = {name.removeprefix("GRASP"): base.removeprefix("GRASP") for name, base in names.items()}
    names |= {f"GRASP{stock}DecoderLayer": "GRASPDecoderLayer", f"{stock}DecoderLayer": "DecoderLayer", **bases}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            node.name = names.get(node.name, node.name)
        elif isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                alias.name = names.get(alias.name, alias.name)
            node.names.sort(key=lambda alias: alias.name)
        elif isinstance(node, ast.Constant) and node.value == family.pruned_type:
            node.value = "grasp"
    for node in ast.walk(tree):  # fields differ: a head's size where the stock configuration has none
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if not isinstance(part, ast.AnnAssign)]
    parts = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return {node.name: ast.unparse(node) for node in parts}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "LLaMA"])
def test_it_is_the_text_of_llama(name: str, file: str) -> None:
    found, expected = definitions(FAMILIES[name], file), definitions(FAMILIES["LLaMA"], file)
    own = {part for family, part in OWN if family == name}
    assert {part: text for part, text in found.items() if part not in own} == {
        part: text for part, text in expected.items() if part not in own
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_it_imports_nothing_of_ours(name: str) -> None:
    for file in FILES:
        text = (ROOT / FAMILIES[name].code.split(".")[-2] / file).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and not (node.module or "").startswith("optimum")
                assert node.level == 0 or f"{node.module}.py" in FILES


def test_nothing_is_named_that_is_as_llamas() -> None:
    for name, part in OWN:
        for file in FILES:
            found, expected = definitions(FAMILIES[name], file), definitions(FAMILIES["LLaMA"], file)
            assert part not in found or found[part] != expected.get(part), f"{name} has {part} as LLaMA has it"
