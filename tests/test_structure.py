"""The house: an import points one way, there is no circle, and the page that describes it names every room in order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
# The faces of the two packages re-export from everywhere, lazily.
FACES = {"tea_models", "tea_runtime"}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("tea_models", "tea_runtime"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules of this project that a module imports, also inside functions and for the type checker only."""
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if (full if full in MODULES else node.module) in MODULES:
                    yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def ranks() -> dict[str, int]:
    """Each room's place in the table of the page; rooms of one row stand beside each other."""
    rows = re.findall(r"^\| [^|]+ \| (`tea_[^|]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return {
        name.strip("/").removesuffix(".py").replace("/", "."): number
        for number, row in enumerate(rows)
        for name in re.findall(r"`(tea_\w+/[\w/.]+)`", row)
    }


def test_the_page_names_every_room() -> None:
    assert {room(name) for name in MODULES} - FACES - ranks().keys() == set()


def test_no_import_points_down_the_page() -> None:
    rank = ranks()
    wrong = {
        (name, target)
        for name in MODULES
        for target in imports(name)
        if room(name) != room(target) and not {room(name), room(target)} & FACES
        if rank[room(target)] > rank[room(name)]
    }
    assert wrong == set()


def test_there_is_no_circle_of_modules() -> None:
    graph = {name: {target for target in imports(name) if target != name} for name in MODULES if name not in FACES}
    while graph:
        free = {name for name, targets in graph.items() if not targets & graph.keys()}
        if not free:
            break
        graph = {name: targets for name, targets in graph.items() if name not in free}
    assert graph == {}


def test_the_models_never_import_the_runtime_nor_llama_cpp() -> None:
    for name, path in MODULES.items():
        if name.startswith("tea_models"):
            text = path.read_text("utf-8")
            assert "tea_runtime" not in {target.split(".")[0] for target in imports(name)}, name
            if (
                "worker" not in name and "prebuilt_loader" not in name
            ):  # these run in another process, or lie in the wheel
                assert not re.search(r"^\s*(import|from) llama_cpp", text, re.MULTILINE), name


def test_only_the_edges_print_or_exit() -> None:
    for name, path in MODULES.items():
        if ".cli" in name or "worker" in path.name:
            continue
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"print", "exit", "quit"}, name
