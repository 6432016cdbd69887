"""Imports between rooms go down the table of docs/architecture.md, which so has no circle either.

Counted are imports at the top of a module, inside functions and under TYPE_CHECKING, and modules of ours that are named
in a string (`import_module`, vLLM's registration, the lines of our registries).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE, PLUGIN, COMMANDS = "optimum_grasprune", "vllm_integration", "optimum.commands"
FOLDERS = {PACKAGE: "", PLUGIN: "vllm_integration/", COMMANDS: "optimum/commands/"}

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("registry.py", "methods/"): "a registry's lines say where a method stands; the file is read when it is asked for",
    ("registry.py", "recovery/"): "the same of recovery stages",
}
"""(from, to) -> why an import may climb. One that is not needed any more fails."""


@dataclass(frozen=True)
class Arrow:
    """An import from one room into another. where: file and line."""

    start: str
    end: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.start} imports {self.end}"


def ordered_rooms(page: str) -> list[str]:
    """The rooms that the page's table names, in reading order."""
    rows = re.findall(r"^\| (`.+?) \|", page, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def modules(root: Path) -> dict[str, Path]:
    """Dotted names of all modules of ours, and their files."""
    found: dict[str, Path] = {}
    for package in FOLDERS:
        for file in (root / package.replace(".", "/")).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(module: str, root: Path) -> str:
    """The room of a module, as the page's table spells it."""
    if not module.startswith(f"{PACKAGE}.") and module != PACKAGE:
        return next(folder for package, folder in FOLDERS.items() if module.startswith(package))
    name = module.split(".")[1] if "." in module else "__init__"
    return f"{name}/" if (root / PACKAGE / name).is_dir() else f"{name}.py"


def arrows(root: Path) -> set[Arrow]:
    """All imports that leave a room."""
    known, found = modules(root), set()
    for module, file in known.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in named_in(node, package):
                while name and name not in known:  # a name in a module
                    name = name.rpartition(".")[0]
                if name and (start := room_of(module, root)) != (end := room_of(name, root)):
                    found.add(Arrow(start, end, f"{file.relative_to(root)}:{node.lineno}"))  # type: ignore[attr-defined]
    return found


def named_in(node: ast.AST, package: str) -> Iterator[str]:
    """What one node of a module in `package` imports, or names in a string: dotted names, ours or not."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = absolute("." * node.level + (node.module or ""), package)
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (absolute(at.value, package) for at in node.args[:1] if is_text(at))
    elif is_text(node) and re.fullmatch(rf"({PACKAGE}|{PLUGIN}|{COMMANDS})(\.\w+)+(:\w+)?", node.value):
        yield node.value.partition(":")[0]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def absolute(name: str, package: str) -> str:
    """A module's name without leading dots: one stands for `package`, each further one for a package above."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    above = package.split(".")[: len(package.split(".")) - dots + 1]
    return ".".join([*above, *filter(None, [name[dots:]])])


def climbing(found: set[Arrow], rooms: list[str]) -> list[Arrow]:
    """The arrows that do not go down the order of rooms."""
    height = {room: -position for position, room in enumerate(rooms)}
    known = (arrow for arrow in found if {arrow.start, arrow.end} <= height.keys())
    return sorted((arrow for arrow in known if height[arrow.start] < height[arrow.end]), key=str)


def page() -> str:
    return (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_room_has_its_place() -> None:
    listed = ordered_rooms(page())
    there = {room_of(module, ROOT) for module in modules(ROOT)}
    assert sorted(there - set(listed)) == [], "rooms that the table of docs/architecture.md lacks"
    assert sorted(set(listed) - there) == [], "rooms in the table of docs/architecture.md that are gone"
    assert len(listed) == len(set(listed))


def test_imports_go_down() -> None:
    climbs = climbing(arrows(ROOT), ordered_rooms(page()))
    unexcused = [str(arrow) for arrow in climbs if (arrow.start, arrow.end) not in EXCEPTIONS]
    assert not unexcused, "imports that climb the table of docs/architecture.md:\n" + "\n".join(unexcused)
    assert set(EXCEPTIONS) - {(arrow.start, arrow.end) for arrow in climbs} == set(), "exceptions without need"


def test_every_kind_of_import_counts(tmp_path: Path) -> None:
    lines = {
        "low.py": "",
        "top.py": "from .low import x\nfrom . import low",
        "inside.py": "def f():\n    from .top import x",
        "typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .top import x",
        "late.py": "from importlib import import_module\nimport_module('.top', __package__)",
        "named.py": "HOME = 'optimum_grasprune.top:x'",
        "whole.py": "import optimum_grasprune.top",
        "public.py": "from optimum_grasprune import x",
        "folder/__init__.py": "from ..top import x",
        "folder/deep.py": "from .. import top",
        "__init__.py": "",
    }
    for name, text in lines.items():
        file = tmp_path / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    others = ["inside.py", "typed.py", "late.py", "named.py", "whole.py", "folder/"]
    found = climbing(arrows(tmp_path), ["__init__.py", "top.py", "low.py", *others, "public.py"])
    assert {(arrow.start, arrow.end) for arrow in found} == {
        *((name, "top.py") for name in others),
        ("public.py", "__init__.py"),
    }
    assert "optimum_grasprune/inside.py:2: inside.py imports top.py" in map(str, found)
    assert sum(arrow.start == "folder/" for arrow in found) == 2


def test_a_runner_alone_asks_where_a_model_is() -> None:
    """Engines that serve a model place it themselves."""
    asked = re.compile(r"\b(?:model|pruned|dense|like|runner)\.device\b")
    allowed = ("execution/", "serving/engines/")
    package = ROOT / "optimum_grasprune"
    places = [
        f"{file.relative_to(package)}:{number}"
        for file in sorted(package.rglob("*.py"))
        if not str(file.relative_to(package)).startswith(allowed)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if asked.search(line)
    ]
    assert places == []
