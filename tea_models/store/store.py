"""The store itself (see the package's page for how it lies on disk)."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from tea_models.disk.atomic import write_atomically
from tea_models.disk.hashing import holds, sha256_file
from tea_models.disk.operations import clone, link_new, remove_partial, sync, writing
from tea_models.disk.space import taken_by
from tea_models.errors import ChecksumMismatchError, IntegrityError, SizeMismatchError, StoreError
from tea_models.store.folders import Records, link_above, make_folder, refuse_links
from tea_models.store.locks import hold
from tea_models.store.names import check_name, folded, host_key, safe_part
from tea_models.store.record import HIDDEN, RECORD_SCHEMA, Installed, Record, read_record, stamp_of
from tea_models.store.stamps import Stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tea_models.files import ModelFile
    from tea_models.settings import Settings

_RECORDING_SECONDS = 5


class NameTakenError(StoreError):
    """Another process gave the final name to other bytes in the meantime."""


class Store:
    """The files under `root`. Creating the object touches nothing.

    Args:
        root: Folder of the store; made by the first write.
        cache_dir: Where to remember what was hashed while the store can't be written; None for nowhere.
    """

    def __init__(self, root: Path, cache_dir: Path | None = None) -> None:
        self.root = root
        self.hidden = root / HIDDEN
        self.partials_dir = self.hidden / "partial"
        self._settled = True  # no other process can be between giving a name and recording it
        self._stamps = Stamps(root, cache_dir)
        self._records = Records(root)

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """The store that settings name."""
        return cls(settings.store_dir, settings.cache_dir)

    # -- reading -----------------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """All records, by path."""
        return self._records.all()

    def record_of(self, path: Path) -> Record | None:
        """The record of a file in the store, if there is one."""
        return read_record(self._beside("records", path)) if self.contains(path) else None

    def installed(self) -> list[Installed]:
        """All recorded files, by path, and whether they still look as recorded (one `stat` each)."""
        return [Installed(record, self.root / record.file, self._state(record)) for record in self.records()]

    def paths_of(self, files: Sequence[ModelFile]) -> tuple[Path, ...] | None:
        """Where the bytes of a model's files lie, or None unless all are there; shards lie in one folder.

        A file is hashed only if its stamp has changed. A file without a pin is found by where it was pulled from.
        """
        known = [[record for record in self.records() if record.means(file)] for file in files]
        if len(files) == 1:
            known[0].sort(key=lambda record: record.filename != files[0].filename)
            return next(((self.root / record.file,) for record in known[0] if self.intact(record)), None)
        for first in known[0]:
            folder = (self.root / first.file).parent
            paths = tuple(folder / file.filename for file in files)
            here = [
                next((record for record in records if self.root / record.file == path), None)
                for records, path in zip(known, paths, strict=True)
            ]
            if all(record is not None and self.intact(record) for record in here):
                return paths
        return None

    def path_of(self, file: ModelFile) -> Path | None:
        """Where the bytes of one file lie, or None; as `paths_of`."""
        paths = self.paths_of([file])
        return paths[0] if paths else None

    def path_with(self, sha256: str) -> Path | None:
        """Where bytes with this hash lie, under whatever name, or None."""
        same = [record for record in self.records() if record.sha256 == sha256]
        return next((self.root / record.file for record in same if self.intact(record)), None)

    def intact(self, record: Record) -> bool:
        """Whether the recorded file still holds the recorded bytes: by its stamp, or else by hashing it."""
        state = self._state(record)
        if state != "changed":
            return state == "ok"
        path = self.root / record.file
        before = stamp_of(path.stat())
        if not holds(path, record.sha256):
            return False
        self.confirm(record, before)
        return True

    def confirm(self, record: Record, stamp: tuple[int, ...]) -> None:
        """Remember that a file was just found to hold the recorded bytes.

        Args:
            record: Its record.
            stamp: Of the file before it was read; if it is another one now, nothing is remembered.
        """
        path = self.root / record.file
        if stamp == record.stamp or stamp_of(path.stat()) != stamp:
            return
        try:
            self.write_record(record.stamped(stamp))
        except (OSError, StoreError):  # a store that is only readable stays usable
            self._stamps.remember(record.file, record.sha256, stamp)

    def mismatch(self, record: Record, hint: str) -> ChecksumMismatchError | SizeMismatchError:
        """The error to raise for a recorded file that is not intact."""
        path = self.root / record.file
        size = path.stat().st_size
        if size != record.size:
            return SizeMismatchError(str(path), expected=record.size, actual=size, hint=hint)
        return ChecksumMismatchError(str(path), expected=record.sha256, actual=sha256_file(path), hint=hint)

    def contains(self, path: Path) -> bool:
        """Whether a path lies in the store: not in its hidden folder, nor behind a link to some other folder."""
        return (
            path.is_relative_to(self.root)
            and not path.is_relative_to(self.hidden)
            and link_above(self.root, path) is None
        )

    def own(self, path: Path) -> Path:
        """A path as the store writes it, if it leads into the store by another way (relative, through a link)."""
        real, root = path.parent.resolve() / path.name, self.root.resolve()
        return self.root / real.relative_to(root) if real.is_relative_to(root) else path

    def profile_path(self, path: Path) -> Path:
        """Where the resolved profile of a file of the store lies."""
        return self._beside("profiles", path)

    def arrived(self, key: str) -> int:
        """Bytes of an unfinished download that are on the disk."""
        return sum(map(taken_by, self.partials_dir.glob(f"{key}.*.part")))

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
        with contextlib.ExitStack() as stack:
            with writing(self.root):
                make_folder(self.root, self.partials_dir)
                make_folder(self.root, self.lock_path(key).parent)
                exclusive = stack.enter_context(hold(self.lock_path(key), waiting=waiting))
            path = self.partials_dir / f"{key}.{host_key()}.part"
            others = path.exists() and not os.access(path, os.W_OK)  # left by another user of a shared store
            if others or not exclusive:
                path = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.part")
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
                make_folder(self.root, self.lock_path(key).parent)
                exclusive = stack.enter_context(hold(self.lock_path(key)))
            yield exclusive

    def folder_for(self, files: Sequence[ModelFile], folders: Sequence[str]) -> Path:
        """Choose the folder in which all files of a model can lie under their upstream names.

        Args:
            files: The files, with their hashes as far as they are known.
            folders: Further folders to try after the store itself, such as `owner/repo`.

        Returns:
            The first folder in which no name is taken by other bytes.

        Raises:
            IntegrityError: A name is taken in the store itself by a file that was never verified.
            StoreError: A name can't be used as a file name, or every folder is taken.
        """
        for file in files:
            check_name(file.filename)
        for folder in ("", *folders):
            directory = self.root.joinpath(*(safe_part(part) for part in folder.split("/") if part))
            if not any(self._taken(directory, file) for file in files):
                return directory
        name = self.root / files[0].filename
        raise StoreError(f"{name}: the name is taken, and so are all folders it could go to instead")

    def publish(self, partial: Path, target: Path, record: Record) -> Path:
        """Give checked bytes their final name and record them.

        Args:
            partial: The bytes; gone afterwards.
            target: The final path, from `folder_for`.
            record: What to record; `file` and the stamp are filled in here.

        Raises:
            NameTakenError: Somebody put other bytes there meanwhile.
            DiskFullError: No space for the record.
            StoreError: The store can't be written.
        """
        with writing(self.root):
            sync(partial)
            make_folder(self.root, target.parent)
            try:
                link_new(partial, target)
            except FileExistsError:
                self._require_same(target, record)
            else:
                sync(target.parent)
            remove_partial(partial)  # before the stamp is taken: it counts as a change of the file
            self.write_stamped(record, target)
        return target

    def link_in(self, existing: Path, target: Path, record: Record, seen: tuple[int, ...] | None = None) -> Path:
        """Give verified bytes that lie elsewhere on this machine a final name too, without a second copy if possible.

        Hard link, else a copy that shares blocks (reflink), else a real copy.

        Args:
            existing: A file whose SHA-256 was just checked to be `record.sha256`; it is not modified.
            target: The final path, from `folder_for`.
            record: As for `publish`.
            seen: The file's stamp before it was hashed; if it has changed since, the file is hashed again.

        Raises:
            NameTakenError: Somebody put other bytes there meanwhile.
            IntegrityError: The file changed while it was taken in.
        """
        source = self.record_of(existing)
        with writing(self.root):
            make_folder(self.root, target.parent)
            if seen is not None and stamp_of(existing.stat()) != seen and not holds(existing, record.sha256):
                raise IntegrityError(f"{existing}: changed while it was checked")
            try:
                os.link(existing.resolve(), target)
            except FileExistsError:
                self._require_same(target, record)
            except OSError:
                with self.partial(f"{record.sha256}-copy") as partial:
                    clone(existing, partial)
                    if not holds(partial, record.sha256):
                        remove_partial(partial)
                        raise IntegrityError(f"{existing}: changed while it was copied") from None
                    return self.publish(partial, target, record)
            self.write_stamped(record, target)
            if source is not None:
                self.write_stamped(source, existing)  # the link counts as a change of the file
        return target

    def write_stamped(self, record: Record, path: Path) -> Record:
        """Record a file as it is now."""
        values = asdict(record) | {"file": path.relative_to(self.root).as_posix()}
        stamped = Record(**values).stamped(stamp_of(path.stat()))
        self.write_record(stamped)
        return stamped

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
            make_folder(self.root, path.parent)
            write_atomically(path, text)

    def set_aside(self, path: Path) -> Path:
        """Move a file that is not what its record says out of the way, into the hidden folder.

        Returns:
            Where it lies now.
        """
        with writing(self.root):
            refuse_links(self.root, path)
            folder = self.hidden / "broken"
            make_folder(self.root, folder)
            aside = folder / f"{path.name}.{os.urandom(4).hex()}"
            self.forget(path)
            path.rename(aside)
        return aside

    def set_aside_broken(self, file: ModelFile) -> list[tuple[Path, Path]]:
        """Move aside what has a file's name and record, but not its bytes any more.

        Returns:
            Of each where it lay, and where it lies now.
        """
        same = [record for record in self.records() if record.means(file) and record.filename == file.filename]
        broken = [record for record in same if self._state(record) == "changed" and not self.intact(record)]
        return [(self.root / record.file, self.set_aside(self.root / record.file)) for record in broken]

    def remove(self, path: Path) -> int:
        """Remove a file of the store with its record and profile.

        Returns:
            Bytes freed (0 if other links to them stay).

        Raises:
            StoreError: It can't be removed, or lies behind a link to some other folder; then it stays, recorded.
        """
        with writing(self.root):
            refuse_links(self.root, path)
            record = self.record_of(path)
            found = path.lstat() if os.path.lexists(path) else None
            self.forget(path)
            try:
                path.unlink(missing_ok=True)
            except OSError:
                if record is not None:
                    self.write_record(record)
                raise
            self._prune(path.parent)
        return found.st_size if found is not None and found.st_nlink == 1 else 0

    def forget(self, path: Path) -> None:
        """Remove the record and the profile of a file."""
        for kind in ("records", "profiles"):
            beside = self._beside(kind, path)
            refuse_links(self.root, beside)
            beside.unlink(missing_ok=True)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _beside(self, kind: str, path: Path) -> Path:
        relative = path.relative_to(self.root)
        return self.hidden / kind / relative.parent / f"{relative.name}.json"

    def _require_same(self, target: Path, record: Record) -> None:
        if target.is_symlink() or not holds(target, record.sha256):
            raise NameTakenError(f"{target}: other bytes were put there meanwhile") from None

    def _state(self, record: Record) -> Literal["ok", "changed", "missing"]:
        path = self.root / record.file
        if len(path.parents) > len(self.root.parents) + 1 and link_above(self.root, path) is not None:
            return "missing"
        try:
            stamp = stamp_of(path.stat())
        except OSError:
            return "missing"
        same = stamp == record.stamp or self._stamps.knows(record.file, record.sha256, stamp)
        return "ok" if same else "changed"

    def _taken(self, directory: Path, file: ModelFile) -> bool:
        """Whether other bytes have this name there (also in another case: some file systems know only one)."""
        same = folded(file.filename)
        try:
            near = [name for name in os.listdir(directory) if folded(name) == same]  # noqa: PTH208 - names only
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        path = directory / file.filename
        if link_above(self.root, path) is not None:
            return True
        if not near:
            return False
        if file.filename not in near:
            return True
        record = self.record_of(path)
        for _ in range(50):
            if record is not None or self._settled or time.time() - path.lstat().st_ctime > _RECORDING_SECONDS:
                break
            time.sleep(0.1)  # it may have been given its name just now, by a process that is about to record it
            record = self.record_of(path)
        if record is not None:
            return not (self.intact(record) and record.sha256 == file.sha256)
        if file.sha256 is not None and holds(path, file.sha256):
            return False
        raise IntegrityError(
            f"{path} is there already, and is not the file that was asked for"
            + (f" (sha256 {file.sha256})" if file.sha256 else " as far as anyone knows"),
            hint="it was not put there by tea-models, so it is left alone: move it away and pull again",
        )

    def _prune(self, folder: Path) -> None:
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent
