"""Every error and warning of ours has an entry in docs/troubleshooting.md, by the words that stand in the code.

A message has to stand in the page between backquotes, with "…" for each value in it. Texts are followed to where they
are put together: variables of the same function, constants of the module, what functions of ours return.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
PLACES = ("optimum_grasprune", "optimum/commands", "vllm_integration")

TEXT_AT = {"OptionError": 2, "BudgetError": 2, "PydanticCustomError": 1}
"""Which argument of an error is its text, where that is not the first one."""

OF_VLLM = "ValueError"
"""What the plugin raises. vLLM shows it, and would not know a GraspruneError."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(eq=False)
class Sources:
    """All modules of ours, parsed, by their paths from `root`."""

    root: Path
    trees: dict[Path, ast.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in (file for place in PLACES for file in sorted((self.root / place).rglob("*.py"))):
            self.trees[file.relative_to(self.root)] = ast.parse(file.read_text(encoding="utf-8"))

    @cached_property
    def functions(self) -> dict[str, list[Function]]:
        """Functions of all modules that return text, by name."""
        return by_name(node for tree in self.trees.values() for node in tree.body)

    @cache  # noqa: B019
    def functions_in(self, tree: ast.Module) -> dict[str, list[Function]]:
        """Functions and methods of a module that return text, by name."""
        return by_name(ast.walk(tree))

    def error_names(self) -> set[str]:
        """`GraspruneError` and all classes that come from it."""
        classes = [node for tree in self.trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        names: set[str] = {"GraspruneError"}
        for _ in classes:  # so often that the order of the classes does not matter
            names |= {cls.name for cls in classes if any(ast.unparse(base) in names for base in cls.bases)}
        return names

    def messages(self) -> dict[str, str]:
        """Texts of all errors and warnings, as the page should have them -> where they are raised."""
        found: dict[str, str] = {}
        names = self.error_names() | {"PydanticCustomError"}
        for file, tree in self.trees.items():
            wanted = names | {OF_VLLM} if file.parts[0] == "vllm_integration" else names
            for call, function in calls(tree):
                if (text := text_of(call, wanted)) is not None:
                    for message in Follow(self, tree).texts(text, function):
                        found.setdefault(message, f"{file}:{call.lineno}")
        return found


def by_name(nodes: Iterable[ast.AST]) -> dict[str, list[Function]]:
    found: dict[str, list[Function]] = {}
    for node in nodes:
        if gives_text(node):
            found.setdefault(node.name, []).append(node)
    return found


def calls(tree: ast.AST, function: Function | None = None) -> Iterator[tuple[ast.Call, Function | None]]:
    """All calls, each with the innermost function that it stands in."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Call):
            yield child, function
        yield from calls(child, child if isinstance(child, Function) else function)


def text_of(call: ast.Call, names: set[str]) -> ast.expr | None:
    """The argument that is the text of an error or a warning; None for any other call."""
    called = name_of(call)
    if called == "warn" and any(ast.unparse(argument).endswith("Warning") for argument in call.args[1:]):
        return call.args[0]
    if called not in names:
        return None
    at = TEXT_AT.get(called, 0)
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    return next(iter(by_name + call.args[at : at + 1]), None)


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


class Follow:
    """Finds the texts that an expression is put together from, each place once."""

    def __init__(self, sources: Sources, tree: ast.Module) -> None:
        self.sources, self.tree = sources, tree
        self.seen: set[int] = set()

    def texts(self, node: ast.AST, function: Function | None) -> Iterator[str]:
        """Texts of the expression, which stands in `function`, or in the module where that is None."""
        if id(node) in self.seen:
            return
        self.seen.add(id(node))
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield from tidied("".join(map(str, parts)))
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    yield from self.texts(part.value, function)
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from tidied(node.value)
        elif isinstance(node, ast.Name):
            for value, scope in (*self.assigned(node.id, function), *self.returned(node.id, everywhere=True)):
                yield from self.texts(value, scope)
        elif isinstance(node, ast.Call):
            for value, scope in self.returned(name_of(node), everywhere=False):
                yield from self.texts(value, scope)
        for child in ast.iter_child_nodes(node):
            yield from self.texts(child, function)

    def assigned(self, name: str, function: Function | None) -> Iterator[tuple[ast.expr, Function | None]]:
        """What is assigned to a name in the function, or else in the module."""
        inside = [] if function is None else [value for value in ast.walk(function) if sets(value, name)]
        outside = [node for node in self.tree.body if sets(node, name)]
        for node in inside or outside:
            yield node.value, function if inside else None  # type: ignore[attr-defined]

    def returned(self, name: str, *, everywhere: bool) -> Iterator[tuple[ast.expr, Function]]:
        """What the functions of this name return: those of the module, or else of all of ours."""
        here, there = self.sources.functions_in(self.tree), self.sources.functions
        for made in here.get(name) or (there.get(name, []) if everywhere else []):
            for node in ast.walk(made):
                if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                    yield node.value, made


def gives_text(node: ast.AST) -> TypeGuard[Function]:
    """Whether a node is a function that returns text."""
    if not isinstance(node, Function) or node.returns is None:
        return False
    return ast.unparse(node.returns) in ("str", "str | None", "list[str]", "Iterator[str]")


def sets(node: ast.AST, name: str) -> bool:
    """Whether a statement or a := gives a name its value, alone or among others."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr) or node.value is None:
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(at, ast.Name) and at.id == name for target in targets for at in ast.walk(target))


def tidied(text: str) -> Iterator[str]:
    """The text as the page has it, if it says anything: two words side by side at least."""
    text = re.sub("…[…\\s]*…", "…", " ".join(text.split())).strip(" …,;:.=()[]'\"")
    if re.search(r"\w\w+ \w\w+|\w\w …+ \w\w", text):
        yield text


def quoted(page: str) -> str:
    """All that stands between backquotes, one piece a line."""
    spans = re.findall(r"`([^`]+)`", page.replace("```", ""))
    return "\n".join(" ".join(span.split()) for span in spans)


def missing(sources: Sources, page: str) -> list[str]:
    """Where a message is raised that the page has not, and its text."""
    there = quoted(page)
    return [f"{where}: {message}" for message, where in sources.messages().items() if message not in there]


def test_every_message_has_its_entry() -> None:
    absent = missing(Sources(ROOT), PAGE.read_text(encoding="utf-8"))
    assert not absent, "not in docs/troubleshooting.md:\n" + "\n".join(absent)


def test_texts_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "optimum_grasprune" / "room" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "class OwnError(DataError): ...\n"
        "class DataError(GraspruneError): ...\n"
        "class OptionError(GraspruneError): ...\n"
        "_ADVICE = 'take another one'\n"
        "def reason(x) -> str:\n    return 'nobody knows' if x else f'it is {x} of {x}'\n"
        "def run(x, option):\n"
        "    why = f'the file {x} is bad'\n"
        "    if option:\n        raise OwnError(f'{why}: {_ADVICE}')\n"
        "    error = OptionError(option, 'a given value', reason(x))\n"
        "    warnings.warn('mind the step', GraspruneWarning)\n"
        "    warnings.warn('not of ours')\n"
        "    raise ValueError('for the programmer')\n"
    )
    found = Sources(tmp_path).messages()
    texts = {"the file … is bad", "take another one", "nobody knows", "it is … of", "mind the step"}
    assert set(found) == texts
    assert found["mind the step"] == "optimum_grasprune/room/file.py:12"
    page = "`the file … is bad: take another one` and `nobody\n  knows`, `it is … of …`; mind the step"
    assert missing(Sources(tmp_path), page) == ["optimum_grasprune/room/file.py:12: mind the step"]
