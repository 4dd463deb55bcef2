"""Wheels that were put together and checked, kept in the store for the next environment."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tea_models.engine.wheel import LOADER
from tea_models.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_models.caller import Caller
    from tea_models.registry.engines import Archive, Prebuilt


class WheelCache:
    """The folder `engines` of the store: a folder a wheel."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.folder = Store(caller.settings.store_dir).hidden / "engines"

    def place(self, engine: Prebuilt, binding: Archive) -> Path:
        """The folder of a wheel; another one where anything that goes into it is another."""
        digest = hashlib.sha256(f"{binding.sha256} {engine.model_dump_json()}".encode() + LOADER.read_bytes())
        return self.folder / f"{engine.name}-{digest.hexdigest()[:16]}"

    def find(self, engine: Prebuilt, binding: Archive) -> Path | None:
        """The wheel of a library; None if it is not here, or damaged."""
        wheel = next(iter(self.place(engine, binding).glob("*.whl")), None)
        try:
            with zipfile.ZipFile(wheel or "") as archive:
                return wheel if archive.testzip() is None else None
        except (OSError, zipfile.BadZipFile, zlib.error):
            return None

    def keep(self, wheel: Path, engine: Prebuilt, binding: Archive) -> Path:
        """Move a wheel here, whole or not at all, and say where it lies now."""
        place = self.place(engine, binding)
        try:
            draft = Path(tempfile.mkdtemp(prefix="making-", dir=self.folder))
            shutil.copyfile(wheel, draft / wheel.name)
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
