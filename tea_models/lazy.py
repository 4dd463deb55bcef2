"""Public names that are imported when they are first used: start-up time is a feature."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` (PEP 562) and the `__all__` of a package: its stub says in which module each name lives."""
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123 - `pathlib` takes long to import
        imports = [line.split() for line in stub]
    homes = {name: home for _from, home, _import, name, *_ in imports}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, [name for name in homes if not name.startswith("_")]
