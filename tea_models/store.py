"""The store: one folder of model files under their upstream names, and what is known about them in a hidden one beside.

    ~/.cache/tea/models/
      SmolLM2-135M-Instruct.Q4_1.gguf          always verified bytes
      ggml-org/gemma-3-1b-it-GGUF/…gguf        another file of a name that is taken
      .tea/records/<same path>.json            size, sha256, source, and the stat it was verified at
      .tea/profiles/<same path>.json           the resolved profile
      .tea/partial/<key>.<host>.part           bytes on their way
      .tea/locks/<key>.lock                    one process at a time for a file
      .tea/broken/                             what was found broken under a final name, moved aside

A file gets its final name by a hard link of the checked partial, which fails if the name is taken: nothing is ever
overwritten, also when several processes work without locks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import time
import unicodedata
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from tea_models.errors import DiskFullError, IntegrityError, StoreError
from tea_models.hashing import hash_range
from tea_models.locking import hold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tea_models.artifact import ArtifactFile
    from tea_models.registry import RegistryFile

HIDDEN = ".tea"
RECORD_SCHEMA = "tea.store-record/1"
_MAX_NAME_BYTES = 200  # of the 255 that file systems allow; suffixes for records and partials come on top
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_FORBIDDEN = frozenset('/\\:*?"<>|')
_RECORDING_SECONDS = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about one file of the store.

    Attributes:
        file: Its path in the store, with `/`.
        size: Bytes.
        sha256: Of the bytes when they were last verified.
        mtime_ns: Time stamp of the file then; with `inode` and `size`, an unchanged file is known without hashing.
        inode: Inode number of the file then.
        model: The name or reference it was pulled as.
        source: Where the bytes came from (a reference, several joined by ` + `).
        revision: Commit or version, if the source has one.
        license: Its licence, if known.
        pinned: The hash was known before the bytes were; False means trusted on first use.
    """

    file: str
    size: int
    sha256: str
    mtime_ns: int
    inode: int
    model: str
    source: str
    revision: str | None = None
    license: str | None = None
    pinned: bool = True

    @property
    def filename(self) -> str:
        return PurePosixPath(self.file).name


@dataclass(frozen=True, slots=True)
class Installed:
    """A recorded file and how it is found now.

    Attributes:
        state: `ok` (stat as recorded), `changed` (to be hashed again before it is trusted) or `missing`.
    """

    record: Record
    path: Path
    state: Literal["ok", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class Partial:
    """A leftover of an unfinished download. `key` names its lock."""

    path: Path
    key: str
    size: int
    mtime_ns: int


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

    def path_of(self, file: ArtifactFile | RegistryFile) -> Path | None:
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
        if state == "changed" and hash_file(self.root / record.file) == (record.sha256, record.size):
            with contextlib.suppress(OSError, StoreError):  # a store that is only readable stays usable
                self.write_record(restamped(record, (self.root / record.file).stat()))
            return True
        return state == "ok"

    def contains(self, path: Path) -> bool:
        """Whether a path lies in the store (and not in its hidden folder)."""
        return path.is_relative_to(self.root) and not path.is_relative_to(self.hidden)

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
            unique = "" if exclusive else f".{os.getpid()}-{secrets.token_hex(4)}"
            path = self.partials_dir / f"{key}.{host}{unique}.part"
            if path.is_symlink():
                path.unlink()  # planted: never write through it
            if not exclusive:
                stack.callback(remove_partial, path)
            yield path

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Choose a final name and take it, without another process in between.

        Where locks do nothing, two processes may still choose one name for different bytes; then one of them finds it
        taken (`NameTakenError`) and chooses again.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # nothing can be written: then there is nothing to be kept out either
                self.lock_path("names").parent.mkdir(parents=True, exist_ok=True)
                self._settled = stack.enter_context(hold(self.lock_path("names")))
            try:
                yield
            finally:
                self._settled = True

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
                if target.is_symlink() or not target.is_file() or hash_file(target) != (record.sha256, record.size):
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
                if target.is_symlink() or not target.is_file() or hash_file(target) != (record.sha256, record.size):
                    raise NameTakenError(f"{target}: other bytes were put there meanwhile") from None
            except OSError:
                with self.partial(f"{record.sha256}-copy") as partial:
                    clone(existing, partial)
                    if hash_file(partial) != (record.sha256, record.size):
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
            draft = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
            try:
                with draft.open("x", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise

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
        folded = _folded(filename)
        try:
            near = [name for name in os.listdir(directory) if _folded(name) == folded]  # noqa: PTH208 - names only
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
        if path.is_file() and sha256 is not None and hash_file(path)[0] == sha256:
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


def means(record: Record, file: ArtifactFile | RegistryFile) -> bool:
    """Whether a record is that of a file: by hash, or without a pin by the source it was pulled from."""
    if file.sha256 is not None:
        return record.sha256 == file.sha256
    sources = {" + ".join(source) if isinstance(source, tuple) else str(source) for source in file.sources}
    return record.source in sources and file.size in (None, record.size)


def key_of(sha256: str | None, source: str) -> str:
    """The name under which a download is continued: its hash, or one of where it comes from."""
    return sha256 or "url-" + hashlib.sha256(source.encode()).hexdigest()[:40]


def check_name(filename: str) -> None:
    """Refuse an upstream name that can't be a plain file name on every system.

    Raises:
        StoreError: The name has separators, drive letters, control characters, is reserved, too long, …
    """
    stem = filename.partition(".")[0].rstrip(" ").lower()
    problem = (
        "it is empty"
        if not filename
        else f"it has more than {_MAX_NAME_BYTES} bytes"
        if len(filename.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES
        else f"it starts with {filename[0]!r}"
        if filename[0] in ".-~ "
        else f"it ends with {filename[-1]!r}"
        if filename[-1] in ". "
        else "it is reserved on some systems"
        if stem in _RESERVED
        else next(
            (f"it has the character {c!r}" for c in filename if c in _FORBIDDEN or not (c.isprintable() or c == " ")),
            "",
        )
    )
    if problem:
        shown = filename if len(filename) <= 60 else filename[:57] + "…"
        raise StoreError(
            f"{shown!r} can't be used as a file name: {problem}",
            hint="give the file a plain name in a registry.yaml entry (`filename:`)",
        )


def safe_part(part: str) -> str:
    """A folder name made from an owner, a repository or a host."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in part).strip(".")[:80]
    return f"_{kept}" if not kept or kept[0] == "-" or kept.partition(".")[0].lower() in _RESERVED else kept


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none, or it can't be understood."""
    try:
        data: Any = json.loads(path.read_text("utf-8"))
        known = {field.name for field in fields(Record)}
        record = Record(**{key: value for key, value in data.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    numbers = (record.size, record.mtime_ns, record.inode)
    relative = PurePosixPath(record.file) if isinstance(record.file, str) else PurePosixPath("/")
    inside = not relative.is_absolute() and ".." not in relative.parts and relative.parts[:1] not in ((), (HIDDEN,))
    texts = (record.sha256, record.model, record.source)
    ok = inside and all(type(n) is int for n in numbers) and all(isinstance(text, str) for text in texts)
    return record if ok and data.get("schema") == RECORD_SCHEMA else None


def restamped(record: Record, found: os.stat_result, *, file: str | None = None) -> Record:
    """The record with the time stamp and inode of the file as it is now."""
    values = asdict(record) | {"mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "file": file or record.file}
    return Record(**values)


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file's bytes. A file that is no regular file has no hash: `("", -1)`."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return "", -1
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return "", -1
        digest = hashlib.sha256()
        done = hash_range(descriptor, 0, found.st_size, digest)
        return digest.hexdigest(), done
    finally:
        os.close(descriptor)


def link_new(source: Path, target: Path) -> None:
    """Give a file a second name that nobody has yet.

    Raises:
        FileExistsError: The name is taken (also by a symbolic link, which is not followed).
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EINVAL):
            raise
        # A file system without hard links. Looking first leaves a moment in which another process could take the name,
        # but what it put there, and what replaces that, are verified bytes both.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.replace(target)


def clone(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can (FICLONE)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with source.open("rb") as reader, open(os.open(target, flags, 0o666), "wb") as writer:  # noqa: PTH123
        try:
            import fcntl

            fcntl.ioctl(writer.fileno(), 0x40049409, reader.fileno())  # FICLONE of linux/fs.h
        except (ImportError, OSError):
            shutil.copyfileobj(reader, writer, 1 << 20)


def remove_partial(path: Path) -> None:
    """Remove a partial and what its download kept beside it (same name and a further suffix)."""
    for item in [path, *path.parent.glob(f"{path.name}.*")]:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise
    finally:
        os.close(descriptor)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what can't end.

    Args:
        folder: The store; it may not exist yet.
        needed: Bytes still to be written.
        what: For the message.

    Raises:
        DiskFullError: Less than that is free.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < needed:
        raise DiskFullError(
            f"{what} needs {needed:,} bytes, {free:,} are free at {folder}",
            hint="`tea-models gc` shows what can be removed; TEA_MODELS_DIR puts the store elsewhere",
        )


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the file system answers to a write into the store's errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"{root}: {os.strerror(error.errno or 0).lower()}",
                hint="what has arrived is kept: make room and run the command again",
            ) from None
        if error.errno in _READ_ONLY:
            raise StoreError(
                f"{root}: the store can't be written: {os.strerror(error.errno or 0).lower()}",
                hint="TEA_MODELS_DIR names another folder",
            ) from None
        if isinstance(error, NotADirectoryError | FileExistsError):
            raise StoreError(
                f"{error.filename or root}: a file is in the way of the store's folders",
                hint="TEA_MODELS_DIR names another folder",
            ) from None
        raise


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
