"""Wheels that were put together and checked, kept in the store for the next environment."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.disk.hashing import sha256_file
from tea_models.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.caller import Caller
    from tea_models.registry.engines import Archive, Prebuilt


class WheelCache:
    """The folder `engines` of the store: a folder a wheel, and in it the wheel and its hash.

    Args:
        caller: Where the store is; told if a wheel can't be kept.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.folder = Store(caller.settings.store_dir).hidden / "engines"

    def place(self, engine: Prebuilt, binding: Archive) -> Path:
        """The folder of a wheel; another one where anything that goes into it is another."""
        loader = Path(__file__).with_name("prebuilt_loader.py").read_bytes()
        digest = hashlib.sha256(f"{binding.sha256} {engine.model_dump_json()}".encode() + loader)
        return self.folder / f"{engine.name}-{digest.hexdigest()[:16]}"

    def find(self, engine: Prebuilt, binding: Archive) -> Path | None:
        """The wheel of a library; None if it is not here, or damaged."""
        wheel = next(iter(self.place(engine, binding).glob("*.whl")), None)
        try:
            whole = wheel is not None and wheel.with_suffix(".sha256").read_text("ascii").strip() == sha256_file(wheel)
        except (OSError, ValueError):
            return None
        return wheel if whole else None

    def keep(self, wheel: Path, engine: Prebuilt, binding: Archive) -> Path:
        """Move a wheel here, whole or not at all, and say where it lies now."""
        place = self.place(engine, binding)
        wheel.with_suffix(".sha256").write_text(f"{sha256_file(wheel)}\n", encoding="ascii")
        try:
            draft = Path(tempfile.mkdtemp(prefix="making-", dir=self.folder))
            for path in (wheel.with_suffix(".sha256"), wheel):
                shutil.copyfile(path, draft / path.name)
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        except OSError as error:
            self._caller.note(f"the engine's wheel is not kept in the store: {error.strerror}")
            return wheel
        return place / wheel.name

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """A folder to work in; outside the store where that can't be written."""
        parent: Path | None = self.folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            parent = None
        with tempfile.TemporaryDirectory(prefix="making-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def unpack(wheel: Path, tree: Path) -> None:
    """Unpack a whole wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree)
