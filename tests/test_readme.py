"""The README and the pages in docs/ say what is so: links lead somewhere, options and methods exist."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest
from optimum.commands.grasprune import GraspruneCommand

from optimum_grasprune.families import FAMILIES
from optimum_grasprune.methods import method_names
from optimum_grasprune.registry import METHODS, STAGES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
OURS = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = re.compile(r"(vllm |lm_eval |pip |git |\.py |python |make |`vllm|docker |chromium |sbatch |#SBATCH |--array=)")


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), f"{target}#{anchor}"


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_what_is_supported_is_what_there_is() -> None:
    text = README.read_text().partition("## What is supported")[2]
    (listed,) = re.findall(r"^Methods: (.+?)\. ", text, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == set(method_names())
    _, *families = re.findall(r"^\| ([\w -]+) \| `", text, flags=re.MULTILINE)
    assert families == list(FAMILIES)


def options_of_all_commands() -> set[str]:
    found: set[str] = {"--help", "--changes", "--ours", "--only", "--enforce-eager"}  # of benchmarks and vLLM
    for command in GraspruneCommand.SUBCOMMANDS:
        parser = argparse.ArgumentParser()
        command.subcommand_class.parse_args(parser)
        found |= {option for action in parser._actions for option in action.option_strings}
    for registry in (METHODS, STAGES):  # options of their own are shown where they are chosen
        for name in registry.with_options():
            names = registry.options_of(name).model_fields
            found |= {"--" + field.replace("_", "-") for field in names}
    return found


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "recipes.md",
        "corpora.md",
        "which-models.md",
        "methods.md",
        "recovery.md",
        "results.md",
        "evaluation.md",
        "reports.md",
        "comparing.md",
        "troubleshooting.md",
    ],
)
def test_options_that_are_named_exist(name: str) -> None:
    (page,) = (page for page in PAGES if page.name == name)
    known = options_of_all_commands()
    for line in page.read_text().splitlines():
        if not OTHERS.search(line):
            assert set(OURS.findall(line)) <= known, line


@pytest.mark.parametrize("name", ["algorithm.md", "methods.md"])
def test_functions_that_are_named_exist(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = [dotted for dotted in re.findall(r"`([a-z_]+(?:\.\w+)+)`", text) if not dotted.endswith((".py", ".json"))]
    assert len(named) >= 3
    for dotted in named:
        assert found(dotted), dotted


def found(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or something in one."""
    module, *attributes = dotted.split(".")
    value: object = importlib.import_module(f"optimum_grasprune.{module}")
    for attribute in attributes:
        if not hasattr(value, attribute):
            try:
                importlib.import_module(f"{value.__name__}.{attribute}")  # type: ignore[attr-defined]
            except (ImportError, AttributeError):
                return False
        value = getattr(value, attribute)
    return True
