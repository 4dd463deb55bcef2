"""`sync`: make the store hold exactly what `models.lock` says, or only say whether it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tea_models.disk.hashing import sha256_file
from tea_models.errors import (
    ChecksumMismatchError,
    LockError,
    MissingFileError,
    OfflineError,
    SizeMismatchError,
)
from tea_models.lock.document import Lock, parse_lock, read_lock, write_lock
from tea_models.lock.engine import sync_engine
from tea_models.lock.pins import asked_for, make_lock, outdated, require_current
from tea_models.lock.requirements import MODELS_FILE, combined
from tea_models.lock.unbundle import unpack_bundle
from tea_models.store import Store, means
from tea_models.verbs.pull import PullResult, pull_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.files import ModelFile
    from tea_models.lock.document import LockedModel
    from tea_models.store import Record


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `sync` found and did.

    Attributes:
        lock: Path of the lock.
        updated: Whether the lock was written anew because it was absent or out of date.
        files: The locked files, all of them in the store.
        extra: Paths of files in the store that the lock does not have.
        removed: Those of them that were removed.
        engine: `present` or `installed`, where the lock names an engine.
    """

    lock: str
    updated: bool
    files: tuple[PullResult, ...]
    extra: tuple[str, ...]
    removed: tuple[str, ...]
    engine: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return asdict(self) | {"files": [file.to_json() for file in self.files]}


def sync(
    lock_path: Path,
    caller: Caller,
    *,
    frozen: bool = False,
    prune: bool = False,
    bundle: Path | None = None,
) -> SyncReport:
    """Make the store hold what a lock says.

    A lock that is absent or out of date is made first, unless `frozen`. Offline, nothing is changed: the store is only
    checked. Files that the lock does not have are reported, and removed with `prune`.

    Args:
        lock_path: The lock; the files it was made from lie beside it.
        caller: Its settings name the store and the hosts; told about bytes as they arrive.
        frozen: Take the lock as it is: fail if it is out of date, resolve nothing, and refuse a file in the store that
            does not have the locked hash instead of fetching it again.
        prune: Remove models that the lock does not have.
        bundle: A file made by `tea-models bundle` to take the models from, and the lock where there is none.

    Raises:
        LockError: `frozen`, and the lock is out of date.
        MissingFileError: `frozen` or offline, and there is no lock.
        OfflineError: Offline, and a locked file is not in the store.
        IntegrityError: A file does not have the locked size or hash.
        NotAvailableError: No source can be reached.
        EngineError: The lock names an engine, and another one is installed that is not ours to replace.
    """
    taken = bundle is not None and _take_bundle(bundle, lock_path, caller)
    lock, updated = _current_lock(lock_path, caller, frozen=frozen)
    updated = updated or taken
    offline = caller.settings.offline
    store = Store(caller.settings.store_dir)
    files: list[PullResult] = []
    for model in lock.models.values():
        if frozen or offline:
            _refuse_changed(store, model)
        if offline:
            files += [_checked(store, model, file) for file in model.files]
        else:
            files += pull_artifact(model.artifact(), caller)
    engine = None
    if lock.engine is not None:
        engine = sync_engine(lock.engine, caller, only_check=offline and bundle is None)
    extra = [record for record in store.records() if not _locked(record, lock)]
    removed = []
    if prune and not offline:
        for record in extra:
            store.remove(store.root / record.file)
            removed.append(record)
    return SyncReport(
        lock=str(lock_path),
        updated=updated,
        files=tuple(files),
        extra=tuple(str(store.root / record.file) for record in extra if record not in removed),
        removed=tuple(str(store.root / record.file) for record in removed),
        engine=engine,
    )


def _take_bundle(bundle: Path, lock_path: Path, caller: Caller) -> bool:
    """Bring the locked models of a bundle into the store; where there is no lock, the bundle's becomes it.

    Returns:
        Whether the lock was written.
    """
    if lock_path.is_file():
        models = read_lock(lock_path).models.values()
        only = frozenset(str(file.sha256) for model in models for file in model.files)
        unpack_bundle(bundle, caller, only=only)
        return False
    unpacked = unpack_bundle(bundle, caller)
    lock = parse_lock(unpacked.lock_text, f"{bundle}: models.lock")
    caller.note(f"writing {lock_path}: taken from {bundle}")
    return write_lock(lock_path, lock)


def _current_lock(path: Path, caller: Caller, *, frozen: bool) -> tuple[Lock, bool]:
    settings = caller.settings
    if frozen:
        lock = read_lock(path)
        require_current(lock, path, settings)
        return lock, False
    old = read_lock(path) if path.is_file() else None
    reasons = outdated(old, path.parent, settings) if old is not None else [f"{path} is not there"]
    if old is not None and not reasons:
        return old, False
    if settings.offline:
        if old is None:
            raise MissingFileError(f"{path}: no such file", hint="tea-models lock")
        raise LockError(f"{path} is out of date: {'; '.join(reasons)}", hint="tea-models lock, without --offline")
    lock = old or Lock()
    asked = asked_for(lock, path.parent)
    if not asked and old is None:
        raise MissingFileError(
            f"{path}: no such file, and no models.yaml beside it", hint="tea-models lock NAME, or write a models.yaml"
        )
    caller.note(f"writing {path}: {'; '.join(reasons)}")
    beside = [MODELS_FILE] if (path.parent / MODELS_FILE).is_file() else []
    lock = make_lock(asked, caller, inputs=combined([beside, lock.inputs]), names=lock.names, old=old)
    write_lock(path, lock)
    return lock, True


def _refuse_changed(store: Store, model: LockedModel) -> None:
    """Refuse a file of the store that was recorded with the locked hash and does not have it any more.

    Raises:
        ChecksumMismatchError, SizeMismatchError: Its bytes are others.
    """
    for file in model.files:
        for item in store.installed():
            if item.state != "changed" or not means(item.record, file) or store.intact(item.record):
                continue
            hint = "something changed it after it was verified: `tea-models verify --repair` fetches it again"
            size = item.path.stat().st_size
            if size != item.record.size:
                raise SizeMismatchError(str(item.path), expected=item.record.size, actual=size, hint=hint)
            raise ChecksumMismatchError(
                str(item.path), expected=item.record.sha256, actual=sha256_file(item.path), hint=hint
            )


def _checked(store: Store, model: LockedModel, file: ModelFile) -> PullResult:
    path = store.path_of(file)
    if path is None:
        raise OfflineError(
            f"{model.reference}: {file.filename} is not in the store ({store.root}), and nothing may be fetched",
            hint="tea-models sync, or sync --from models.tar, brings it",
        )
    record = store.record_of(path)
    assert record is not None
    return PullResult(model.reference, path, record.size, record.sha256, record.source, record.revision, "present")


def _locked(record: Record, lock: Lock) -> bool:
    return any(file.sha256 == record.sha256 for model in lock.models.values() for file in model.files)
