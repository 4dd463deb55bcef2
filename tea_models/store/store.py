"""The store itself (see the package's page for how it lies on disk)."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from tea_models.disk.atomic import write_atomically
from tea_models.disk.hashing import holds, sha256_file, sha256_text
from tea_models.disk.kept_json import keep, read_kept
from tea_models.disk.operations import clone, link_new, remove_partial, sync, writing
from tea_models.disk.space import taken_by
from tea_models.errors import ChecksumMismatchError, IntegrityError, StoreError
from tea_models.files import ModelFile
from tea_models.settings import Settings
from tea_models.store.locks import hold
from tea_models.store.names import check_name, folded, host_key, safe_part
from tea_models.store.record import HIDDEN, RECORD_SCHEMA, Installed, Record, read_record, stamp_of

_RECORDING_SECONDS = 3  # longest time between giving a name and recording it


class NameTakenError(StoreError):
    """Another process gave the final name to other bytes in the meantime: choose again."""


class Store:
    """The files under `root`, made by the first write; `cache_dir` has what was hashed while that can't be written."""

    def __init__(self, root: Path, cache_dir: Path | None = None) -> None:
        self.root = root
        self.hidden = root / HIDDEN
        self.partials_dir = self.hidden / "partial"
        self._read: dict[str, tuple[tuple[int, ...], Record | None]] = {}  # by the record's path: its stamp, and it
        key = f"{sha256_text(str(root))[:32]}.json"
        self._stamps_path = cache_dir / "stamps" / key if cache_dir is not None else None
        self._stamps: dict[str, list[str | int]] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Store:
        return cls(settings.store_dir, settings.cache_dir)

    # -- reading -----------------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """All records, by path, without unreadable ones; each is read again only when it was replaced."""
        read = {}
        for here, _, names in os.walk(self.hidden / "records"):
            for path in (f"{here}/{name}" for name in names):
                with contextlib.suppress(FileNotFoundError):
                    stamp = stamp_of(os.stat(path))  # noqa: PTH116 - there may be many
                    known = self._read.get(path)
                    read[path] = known if known and known[0] == stamp else (stamp, read_record(path))
        self._read = read
        return [record for _, (_, record) in sorted(read.items(), key=lambda item: item[0]) if record is not None]

    def record_of(self, path: Path) -> Record | None:
        return read_record(self._beside("records", path)) if self.contains(path) else None

    def installed(self) -> list[Installed]:
        """All recorded files, by path, and whether they still look as recorded (one `stat` each)."""
        return [Installed(record, self.root / record.file, self._state(record)) for record in self.records()]

    def paths_of(self, files: Sequence[ModelFile]) -> tuple[Path, ...] | None:
        """Where a model's files lie, shards in one folder; None unless all do. Hashed if a stamp has changed."""
        known = [record for record in self.records() if record.means(files[0])]
        if len(files) == 1:
            known.sort(key=lambda record: record.filename != files[0].filename)
            return next(((self.root / record.file,) for record in known if self.intact(record)), None)
        for folder in ((self.root / record.file).parent for record in known):
            paths = tuple(folder / file.filename for file in files)
            here = zip(map(self.record_of, paths), files, strict=True)
            if all(record is not None and record.means(file) and self.intact(record) for record, file in here):
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
        """Remember that a file was just found to hold the recorded bytes, if `stamp` (of before) is still its own."""
        path = self.root / record.file
        if stamp == record.stamp or stamp_of(path.stat()) != stamp:
            return
        try:
            self.write_record(record.stamped(stamp))
        except (OSError, StoreError):  # a store that is only readable stays usable
            self._stamps = self._remembered() | {record.file: [record.sha256, *stamp]}
            if self._stamps_path is not None:
                keep(self._stamps_path, self._stamps)

    def mismatch(self, record: Record, hint: str) -> ChecksumMismatchError:
        """The error to raise for a recorded file that is not intact."""
        path = self.root / record.file
        return ChecksumMismatchError(str(path), expected=record.sha256, actual=sha256_file(path), hint=hint)

    def contains(self, path: Path) -> bool:
        """Whether a path lies in the store: not in its hidden folder, nor behind a link to some other folder."""
        return (
            path.is_relative_to(self.root) and not path.is_relative_to(self.hidden) and self._link_above(path) is None
        )

    def own(self, path: Path) -> Path:
        """A path as the store writes it, if it leads into the store by another way (relative, through a link)."""
        real, root = path.parent.resolve() / path.name, self.root.resolve()
        return self.root / real.relative_to(root) if real.is_relative_to(root) else path

    def profile_path(self, path: Path) -> Path:
        return self._beside("profiles", path)

    def arrived(self, key: str) -> int:
        """Bytes of an unfinished download that are on the disk."""
        return sum(map(taken_by, self.partials_dir.glob(f"{key}.*.part")))

    def lock_path(self, key: str) -> Path:
        return self.hidden / "locks" / f"{key}.lock"

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def partial(self, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
        """A place for bytes on their way, for one process at a time; `waiting` is called once if another has it now.

        Where locks work, the place is the same every time, so that an interrupted download is resumed. Where they do
        not (they are tried out), it is unique, and removed afterwards. The name carries the host: a lock that works on
        one host may not be seen by another that shares the file system.
        """
        with contextlib.ExitStack() as stack:
            with writing(self.root):
                self._make_folder(self.partials_dir)
                self._make_folder(self.lock_path(key).parent)
                exclusive = stack.enter_context(hold(self.lock_path(key), waiting=waiting))
            path = self.partials_dir / f"{key}.{host_key()}.part"
            others = path.exists() and not os.access(path, os.W_OK)  # left by another user of a shared store
            if others or not exclusive:
                path = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.part")
                stack.callback(remove_partial, path)
            for item in self.partials_dir.glob(f"{path.name}*"):
                if item.is_symlink():
                    item.unlink()  # planted: never write through it
            yield path

    def naming(self) -> contextlib.AbstractContextManager[None]:
        """Choose a final name and take it, without another process in between (where locks work)."""
        return self.alone("names") if self.root.is_dir() else contextlib.nullcontext()

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Hold a lock of the store; none where nothing can be written, as nobody has to be kept out of anything."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self._make_folder(self.lock_path(key).parent)
                stack.enter_context(hold(self.lock_path(key)))
            yield

    def folder_for(self, files: Sequence[ModelFile], folders: Sequence[str]) -> Path:
        """The first folder where no name is taken by other bytes; an `IntegrityError` where it is by unverified."""
        for file in files:
            check_name(file.filename)
        for folder in ("", *folders):
            directory = self.root.joinpath(*(safe_part(part) for part in folder.split("/") if part))
            if not any(self._taken(directory, file) for file in files):
                return directory
        name = self.root / files[0].filename
        raise StoreError(f"{name}: the name is taken, and so are all folders it could go to instead")

    def publish(self, partial: Path, target: Path, record: Record) -> Path:
        """Give checked bytes their final name and record them; a `NameTakenError` where other bytes came first."""
        with writing(self.root):
            sync(partial)
            self._make_folder(target.parent)
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
        """Give verified bytes that lie elsewhere on this machine a final name too; otherwise as `publish`.

        By a hard link, else a copy that shares blocks (reflink), else a real copy. If the file's stamp is no more the
        one that was `seen` before it was hashed, it is hashed again.
        """
        source = self.record_of(existing)
        with writing(self.root):
            self._make_folder(target.parent)
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
        named = replace(record, file=path.relative_to(self.root).as_posix())
        stamped = named.stamped(stamp_of(path.stat()))
        self.write_record(stamped)
        return stamped

    def write_record(self, record: Record) -> None:
        document = {"schema": RECORD_SCHEMA, **asdict(record)}
        self.write_hidden(self._beside("records", self.root / record.file), json.dumps(document, indent=2) + "\n")

    def write_hidden(self, path: Path, text: str) -> None:
        """Write a small file of the bookkeeping atomically."""
        with writing(self.root):
            self._make_folder(path.parent)
            write_atomically(path, text)

    def set_aside(self, path: Path) -> Path:
        """Move a file that is not what its record says into the hidden folder; returns where it lies now."""
        with writing(self.root):
            self._refuse_links(path)
            folder = self.hidden / "broken"
            self._make_folder(folder)
            aside = folder / f"{path.name}.{os.urandom(4).hex()}"
            self.forget(path)
            path.rename(aside)
        return aside

    def set_aside_broken(self, file: ModelFile) -> list[tuple[Path, Path]]:
        """Move aside what has a file's name and record, but not its bytes any more: from where to where."""
        same = [record for record in self.records() if record.means(file) and record.filename == file.filename]
        broken = [record for record in same if self._state(record) == "changed" and not self.intact(record)]
        return [(self.root / record.file, self.set_aside(self.root / record.file)) for record in broken]

    def remove(self, path: Path) -> int:
        """Remove a file with record and profile, nothing behind a link; the bytes freed (0 if links to them stay)."""
        with writing(self.root):
            for place in (path, self._beside("records", path), self._beside("profiles", path)):
                self._refuse_links(place)
            found = path.lstat() if os.path.lexists(path) else None
            path.unlink(missing_ok=True)
            self.forget(path)
            with contextlib.suppress(OSError):
                os.removedirs(path.parent)  # those that are empty now; the store itself has a hidden folder
        return found.st_size if found is not None and found.st_nlink == 1 else 0

    def forget(self, path: Path) -> None:
        for kind in ("records", "profiles"):
            beside = self._beside(kind, path)
            self._refuse_links(beside)
            beside.unlink(missing_ok=True)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _remembered(self) -> dict[str, list[str | int]]:
        """By file the hash and stamp that were found while the store could not be written."""
        if self._stamps is None:
            found = read_kept(self._stamps_path) if self._stamps_path is not None else None
            self._stamps = found if isinstance(found, dict) else {}
        return self._stamps

    def _link_above(self, path: Path) -> Path | None:
        """A folder between the store and a path that is a link: what lies behind it is not the store's."""
        above = [parent for parent in path.parents if parent != self.root and parent.is_relative_to(self.root)]
        return next((parent for parent in reversed(above) if parent.is_symlink()), None)

    def _refuse_links(self, path: Path) -> None:
        """Refuse a path that leads out of the store through a link."""
        link = self._link_above(path)
        if link is not None:
            hint = "put a folder in its place"
            raise StoreError(f"{link} is a link to another folder: nothing is written or removed behind it", hint=hint)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder, with those above it; where the store is shared by a group, so are they."""
        self._refuse_links(folder / "any")
        if folder.is_dir():
            return
        missing = [path for path in (folder, *folder.parents) if path.is_relative_to(self.root) and not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        shared = self.root.stat().st_mode & 0o2077
        for path in missing:
            if path != self.root and shared & 0o022:
                with contextlib.suppress(OSError):
                    path.chmod(0o700 | shared)

    def _beside(self, kind: str, path: Path) -> Path:
        relative = path.relative_to(self.root)
        return self.hidden / kind / relative.parent / f"{relative.name}.json"

    def _require_same(self, target: Path, record: Record) -> None:
        if target.is_symlink() or not holds(target, record.sha256):
            raise NameTakenError(f"{target}: other bytes were put there meanwhile") from None

    def _state(self, record: Record) -> Literal["ok", "changed", "missing"]:
        path = self.root / record.file
        if self._link_above(path) is not None:
            return "missing"
        try:
            stamp = stamp_of(path.stat())
        except OSError:
            return "missing"
        same = stamp == record.stamp or self._remembered().get(record.file) == [record.sha256, *stamp]
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
        if self._link_above(path) is not None:
            return True
        if file.filename not in near:
            return bool(near)
        # Where locks do nothing, it may have been given its name just now, by a process that is about to record it.
        while (record := self.record_of(path)) is None and time.time() - path.lstat().st_ctime < _RECORDING_SECONDS:
            if file.sha256 is not None and holds(path, file.sha256):
                return False
            time.sleep(0.1)
        if record is not None:
            return not (self.intact(record) and record.sha256 == file.sha256)
        if file.sha256 is not None and holds(path, file.sha256):
            return False
        raise IntegrityError(
            f"{path} is there already, and is not the file that was asked for"
            + (f" (sha256 {file.sha256})" if file.sha256 else " as far as anyone knows"),
            hint="it was not put there by tea-models, so it is left alone: move it away and pull again",
        )
