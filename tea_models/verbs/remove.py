"""`rm`: remove models from the store, with everything that is known about them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tea_models.caller import Caller
from tea_models.errors import MissingFileError
from tea_models.sources.locate import locate
from tea_models.store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that is gone, and the bytes that are free now: 0 where another link to them stays."""

    name: str
    path: Path
    freed: int


def remove(names: Sequence[str], caller: Caller) -> list[Removed]:
    """Remove models from the store, by reference or file name. Nothing is removed unless every name is found in it."""
    store = Store.of(caller.settings)
    found: dict[Path, str] = {}
    for name in names:
        for path in map(store.own, _paths(name, caller)):
            if not store.contains(path):
                raise MissingFileError(f"{path} is not in the store ({store.root})", hint="remove it yourself")
            if not os.path.lexists(path):
                raise MissingFileError(f"{path}: no such file")
            found.setdefault(path, name)
    return [Removed(name, path, store.remove(path)) for path, name in found.items()]


def _paths(name: str, caller: Caller) -> list[Path]:
    """The files of a model in the store, also where their bytes have changed (`locate` calls those missing)."""
    try:
        return list(locate(name, caller, remote=False).paths)
    except MissingFileError:
        broken = [
            item.path
            for item in Store.of(caller.settings).installed()
            if item.state == "changed" and name in (item.record.model, item.record.model.partition(":")[0])
        ]
        if not broken:
            raise
        return broken
