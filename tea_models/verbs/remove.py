"""`rm`: remove models from the store, with everything that is known about them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tea_models.errors import MissingFileError
from tea_models.sources.locate import locate
from tea_models.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tea_models.caller import Caller


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that is gone.

    Attributes:
        name: The reference it was named by.
        path: Where it lay.
        freed: Bytes that are free now; 0 where another link to them stays.
    """

    name: str
    path: Path
    freed: int

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"path": str(self.path)}


def remove(names: Sequence[str], caller: Caller) -> list[Removed]:
    """Remove models from the store. Nothing is removed unless every name is found.

    Args:
        names: References, or file names in the store.
        caller: Its settings say where the store is.

    Raises:
        MissingFileError: A name is not in the store, or means a file outside it.
    """
    store = Store.of(caller.settings)
    found: list[tuple[str, Path]] = []
    for name in names:
        for named in _paths(name, caller):
            path = store.own(named)
            if not store.contains(path):
                raise MissingFileError(f"{path} is not in the store ({store.root})", hint="remove it yourself")
            if not os.path.lexists(path):
                raise MissingFileError(f"{path}: no such file")
            if all(path != other for _, other in found):
                found.append((name, path))
    return [Removed(name, path, store.remove(path)) for name, path in found]


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
