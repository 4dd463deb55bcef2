"""Public names that are imported when they are first used: start-up time is a feature."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` (PEP 562) and `__all__` of a package, by its stub: where each name lives."""
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123 - `pathlib` takes long to import
        imports = [line.split() for line in stub]
    homes = {name: home for _from, home, _import, name, *_ in imports}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    names = [name for name in homes if not name.startswith("_")]

    def listed() -> list[str]:
        special = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted({*names, *special})

    return get, listed, names
