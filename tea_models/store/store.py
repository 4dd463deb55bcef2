"""The store itself (see the package's page for how it lies on disk)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from tea_models.disk.atomic import write_atomically
from tea_models.disk.hashing import holds
from tea_models.disk.operations import clone, link_new, remove_partial, sync, writing
from tea_models.errors import IntegrityError, StoreError
from tea_models.store.locks import hold
from tea_models.store.names import check_name, folded, safe_part
from tea_models.store.record import HIDDEN, RECORD_SCHEMA, Installed, Partial, Record, means, read_record, restamped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tea_models.files import ModelFile

_RECORDING_SECONDS = 5


class NameTakenError(StoreError):
    """Another process gave the final name to other bytes in the meantime."""


class Store:
    """The files under `root`. Creating the object touches nothing.

    Args:
        root: Folder of the store; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hidden = root / HIDDEN
        self.partials_dir = self.hidden / "partial"
        self._settled = True  # no other process can be between giving a name and recording it

    # -- reading -----------------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """All records, by path; unreadable ones are left out (their files count as unrecorded)."""
        folder = self.hidden / "records"
        found = (read_record(path) for path in sorted(folder.rglob("*.json"))) if folder.is_dir() else ()
        return [record for record in found if record is not None]

    def record_of(self, path: Path) -> Record | None:
        """The record of a file in the store, if there is one."""
        return read_record(self._beside("records", path)) if self.contains(path) else None

    def installed(self) -> list[Installed]:
        """All recorded files, by path, and whether they still look as recorded (one `stat` each)."""
        return [Installed(record, self.root / record.file, self._state(record)) for record in self.records()]

    def path_of(self, file: ModelFile) -> Path | None:
        """Where the bytes of a file lie, or None. Hashes a file only if its stat has changed.

        A file without a pin is found by where it was pulled from.
        """
        same = [item for item in self.installed() if item.state != "missing" and means(item.record, file)]
        same.sort(key=lambda item: (item.record.filename != file.filename, item.state != "ok"))
        return next((item.path for item in same if self.intact(item.record)), None)

    def path_with(self, sha256: str) -> Path | None:
        """Where bytes with this hash lie, under whatever name, or None."""
        same = [item for item in self.installed() if item.state != "missing" and item.record.sha256 == sha256]
        same.sort(key=lambda item: item.state != "ok")
        return next((item.path for item in same if self.intact(item.record)), None)

    def intact(self, record: Record) -> bool:
        """Whether the recorded file still holds the recorded bytes: by its stat, or else by hashing it."""
        state = self._state(record)
        if state == "changed" and holds(self.root / record.file, record.sha256):
            with contextlib.suppress(OSError, StoreError):  # a store that is only readable stays usable
                self.write_record(restamped(record, (self.root / record.file).stat()))
            return True
        return state == "ok"

    def contains(self, path: Path) -> bool:
        """Whether a path lies in the store (and not in its hidden folder)."""
        return path.is_relative_to(self.root) and not path.is_relative_to(self.hidden)

    def own(self, path: Path) -> Path:
        """A path as the store writes it, if it leads into the store by another way (relative, through a link)."""
        real, root = path.parent.resolve() / path.name, self.root.resolve()
        return self.root / real.relative_to(root) if real.is_relative_to(root) else path

    def profile_path(self, path: Path) -> Path:
        """Where the resolved profile of a file of the store lies."""
        return self._beside("profiles", path)

    def partials(self) -> list[Partial]:
        """Leftovers of downloads; one whose lock is free (`locking.try_hold(lock_path(key))`) is not being written."""
        found = []
        for path in sorted(self.partials_dir.iterdir()) if self.partials_dir.is_dir() else ():
            with contextlib.suppress(OSError):
                every = [item.lstat() for item in (path, *path.rglob("*"))] if path.is_dir() else [path.lstat()]
                latest = max(one.st_mtime_ns for one in every)
                found.append(Partial(path, path.name.partition(".")[0], sum(one.st_size for one in every), latest))
        return found

    def lock_path(self, key: str) -> Path:
        return self.hidden / "locks" / f"{key}.lock"

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def partial(self, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
        """A place for bytes on their way, for one process at a time.

        Where locks work, the place is the same every time, so that an interrupted download is resumed. Where they do
        not (they are tried out), it is unique, and removed afterwards. The name carries the host: a lock that works on
        one host may not be seen by another that shares the file system.

        Args:
            key: What identifies the bytes (see `key_of`).
            waiting: Called once if another process has the place now.

        Raises:
            StoreError: The store can't be written.
        """
        with writing(self.root):
            self.partials_dir.mkdir(parents=True, exist_ok=True)
            self.lock_path(key).parent.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            with writing(self.root):
                exclusive = stack.enter_context(hold(self.lock_path(key), waiting=waiting))
            host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
            path = self.partials_dir / f"{key}.{host}.part"
            others = path.exists() and not os.access(path, os.W_OK)  # left by another user of a shared store
            if others or not exclusive:
                path = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.part")
            for item in self.partials_dir.glob(f"{path.name}*"):
                if item.is_symlink():
                    item.unlink()  # planted: never write through it
            if others or not exclusive:
                stack.callback(remove_partial, path)
            yield path

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Choose a final name and take it, without another process in between.

        Where locks do nothing, two processes may still choose one name for different bytes; then one of them finds it
        taken (`NameTakenError`) and chooses again.
        """
        with self.alone("names") as alone:
            self._settled = alone
            try:
                yield
            finally:
                self._settled = True

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[bool]:
        """Hold a lock of the store; yields whether it keeps others out.

        Where nothing can be written, nobody has to be kept out of anything, and no lock is taken.
        """
        with contextlib.ExitStack() as stack:
            exclusive = True
            with contextlib.suppress(OSError):
                self.lock_path(key).parent.mkdir(parents=True, exist_ok=True)
                exclusive = stack.enter_context(hold(self.lock_path(key)))
            yield exclusive

    def folder_for(self, files: Sequence[tuple[str, str | None]], folders: Sequence[str]) -> Path:
        """Choose the folder in which all files of a model can lie under their upstream names.

        Args:
            files: Upstream name and SHA-256 (or None) of each.
            folders: Further folders to try after the store itself, such as `owner/repo`.

        Returns:
            The first folder in which no name is taken by other bytes.

        Raises:
            IntegrityError: A name is taken in the store itself by a file that was never verified.
            StoreError: A name can't be used as a file name, or every folder is taken.
        """
        for filename, _ in files:
            check_name(filename)
        for folder in ("", *folders):
            directory = self.root.joinpath(*(safe_part(part) for part in folder.split("/") if part))
            if not any(self._taken(directory, filename, sha256) for filename, sha256 in files):
                return directory
        raise StoreError(f"{self.root / files[0][0]}: the name is taken, and so are all folders it could go to instead")

    def publish(self, partial: Path, target: Path, record: Record) -> Path:
        """Give checked bytes their final name and record them.

        Args:
            partial: The bytes; gone afterwards.
            target: The final path, from `folder_for`.
            record: What to record; `file`, `mtime_ns` and `inode` are filled in here.

        Raises:
            NameTakenError: Somebody put other bytes there meanwhile.
            DiskFullError: No space for the record.
            StoreError: The store can't be written.
        """
        with writing(self.root):
            sync(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                link_new(partial, target)
            except FileExistsError:
                if target.is_symlink() or not holds(target, record.sha256):
                    raise NameTakenError(f"{target}: other bytes were put there meanwhile") from None
            else:
                sync(target.parent)
            self.write_record(self.stamped(record, target))
        remove_partial(partial)
        return target

    def link_in(self, existing: Path, target: Path, record: Record) -> Path:
        """Give verified bytes that lie elsewhere on this machine a final name too, without a second copy if possible.

        Hard link, else a copy that shares blocks (reflink), else a real copy.

        Args:
            existing: A file whose SHA-256 was just checked to be `record.sha256`; it is not modified.
            target: The final path, from `folder_for`.
            record: As for `publish`.

        Raises:
            NameTakenError: Somebody put other bytes there meanwhile.
            IntegrityError: The file changed while it was copied.
        """
        with writing(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(existing.resolve(), target)
            except FileExistsError:
                if target.is_symlink() or not holds(target, record.sha256):
                    raise NameTakenError(f"{target}: other bytes were put there meanwhile") from None
            except OSError:
                with self.partial(f"{record.sha256}-copy") as partial:
                    clone(existing, partial)
                    if not holds(partial, record.sha256):
                        remove_partial(partial)
                        raise IntegrityError(f"{existing}: changed while it was copied") from None
                    return self.publish(partial, target, record)
            self.write_record(self.stamped(record, target))
        return target

    def stamped(self, record: Record, path: Path) -> Record:
        """The record of `path` as it is now."""
        return restamped(record, path.stat(), file=path.relative_to(self.root).as_posix())

    def write_record(self, record: Record) -> None:
        """Write a record atomically."""
        document = {"schema": RECORD_SCHEMA, **asdict(record)}
        self.write_hidden(self._beside("records", self.root / record.file), json.dumps(document, indent=2) + "\n")

    def write_hidden(self, path: Path, text: str) -> None:
        """Write a small file of the bookkeeping atomically.

        Raises:
            DiskFullError: No space.
            StoreError: The store can't be written.
        """
        with writing(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)

    def set_aside(self, path: Path) -> Path:
        """Move a file that is not what its record says out of the way, into the hidden folder.

        Returns:
            Where it lies now.
        """
        with writing(self.root):
            folder = self.hidden / "broken"
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"{path.name}.{secrets.token_hex(4)}"
            path.rename(aside)
            self.forget(path)
        return aside

    def remove(self, path: Path) -> int:
        """Remove a file of the store with its record and profile.

        Returns:
            Bytes freed (0 if other links to them stay).
        """
        with writing(self.root):
            found = path.lstat() if os.path.lexists(path) else None
            path.unlink(missing_ok=True)
            self.forget(path)
            self._prune(path.parent)
        return found.st_size if found is not None and found.st_nlink == 1 else 0

    def forget(self, path: Path) -> None:
        """Remove the record and the profile of a file."""
        for kind in ("records", "profiles"):
            self._beside(kind, path).unlink(missing_ok=True)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _beside(self, kind: str, path: Path) -> Path:
        relative = path.relative_to(self.root)
        return self.hidden / kind / relative.parent / f"{relative.name}.json"

    def _state(self, record: Record) -> Literal["ok", "changed", "missing"]:
        try:
            found = (self.root / record.file).stat()
        except OSError:
            return "missing"
        same = (found.st_size, found.st_mtime_ns, found.st_ino) == (record.size, record.mtime_ns, record.inode)
        return "ok" if same else "changed"

    def _taken(self, directory: Path, filename: str, sha256: str | None) -> bool:
        """Whether other bytes have this name there (also in another case: some file systems know only one)."""
        same = folded(filename)
        try:
            near = [name for name in os.listdir(directory) if folded(name) == same]  # noqa: PTH208 - names only
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        if not near:
            return False
        path = directory / filename
        if filename not in near:
            return True
        record = self.record_of(path)
        for _ in range(50):
            if record is not None or self._settled or time.time() - path.lstat().st_ctime > _RECORDING_SECONDS:
                break
            time.sleep(0.1)  # it may have been given its name just now, by a process that is about to record it
            record = self.record_of(path)
        if record is not None:
            return not (self.intact(record) and record.sha256 == sha256)
        if sha256 is not None and holds(path, sha256):
            return False
        raise IntegrityError(
            f"{path} is there already, and is not the file that was asked for"
            + (f" (sha256 {sha256})" if sha256 else " as far as anyone knows"),
            hint="it was not put there by tea-models, so it is left alone: move it away and pull again",
        )

    def _prune(self, folder: Path) -> None:
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent
