"""`sync`: make the store hold exactly what `models.lock` says, or only say whether it does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_files, sha256_text
from tea_models.disk.regular import read_own
from tea_models.errors import IntegrityError, LockError, MissingFileError, OfflineError, TeaModelsError
from tea_models.files import Artifact
from tea_models.lock.pins import outdated, require_current, template_sha256, update_lock
from tea_models.lockfile import Lock, parse_lock, read_lock, write_lock
from tea_models.redact import redact
from tea_models.requirements import MODELS_FILE
from tea_models.sources.mirror import logged_in, mirrored, oci_repository
from tea_models.store import Record, Store, stamp_of
from tea_models.verbs.pull import PullResult, pull_artifacts

Prune = Literal["unlocked", "all"]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `sync` found and did: its keys are those of the report in docs/ci.md."""

    lock: str
    updated: bool
    files: tuple[PullResult, ...]
    extra: tuple[str, ...]
    removed: tuple[str, ...]
    engine: str | None = None


def sync(
    lock_path: Path,
    caller: Caller,
    *,
    frozen: bool = False,
    prune: Prune | None = None,
    origin: str | None = None,
    verify: bool = False,
    repair: bool = False,
    licenses: Collection[str] | None = None,
) -> SyncReport:
    """Make the store hold what a lock says; the options are those of `tea-models sync`.

    A lock that is absent or out of date is made first, unless `frozen`. Offline, nothing is changed: the store is only
    checked. Files that the lock does not have are reported, and removed with `prune`; `licenses` are allowed.
    """
    taken, repaired = False, frozenset[str]()
    mirror = origin if origin is not None and ("://" in origin or Path(origin).is_dir()) else ""
    if mirror:
        oci_repository(mirror)  # refuses an address that can't be understood, also where nothing is lacking
        taken = _take_lock(mirror, lock_path, caller)
    elif origin is not None:
        taken, repaired = _take_bundle(Path(origin), lock_path, caller)
    lock, updated = _current_lock(lock_path, caller, frozen=frozen)
    _check_licenses(lock, licenses)
    store = Store.of(caller.settings)
    broken = _broken(store, lock, caller, everything=verify)
    if broken and (caller.settings.offline or (frozen and not repair)):
        hint = "something changed it after it was verified: `tea-models sync --frozen --repair` fetches it again"
        raise store.mismatch(broken[0], hint)
    for record in broken:
        path = store.root / record.file
        caller.note(f"{path} does not hold the locked bytes; moved to {store.set_aside(path)}")
    files = _files(store, lock, caller, mirror, repaired | {record.sha256 for record in broken})
    _check_templates(lock, files, caller, everything=verify)
    locked = {file.sha256 for file in lock.files}
    if not caller.settings.offline:
        _remember_lock(store, lock_path, locked)
    engine = None
    if lock.engine is not None:
        from tea_models.lock.engine import sync_engine  # slow to import, as the two below

        engine = sync_engine(lock.engine, caller, only_check=caller.settings.offline and origin is None)
    extra = [item.record for item in store.installed() if item.state != "missing" and item.record.sha256 not in locked]
    removed = []
    if prune is not None and not caller.settings.offline:
        kept = {} if prune == "all" else _locked_elsewhere(store, lock_path)
        removed = [record for record in extra if record.sha256 not in kept]
        for record in extra:
            if record.sha256 in kept:
                caller.note(f"kept {record.file}: locked by {kept[record.sha256]} (--prune=all removes it too)")
        for record in removed:
            store.remove(store.root / record.file)
    left = tuple(str(store.root / record.file) for record in extra if record not in removed)
    gone = tuple(str(store.root / record.file) for record in removed)
    return SyncReport(str(lock_path), updated or taken, tuple(files), left, gone, engine)


def _files(store: Store, lock: Lock, caller: Caller, mirror: str, repaired: AbstractSet[str]) -> list[PullResult]:
    """The locked files in the order of the lock; what the store lacks is brought."""
    files: dict[str, list[PullResult]] = {}
    lacking = []
    known = {store.root / record.file: record for record in store.records()}
    for model in lock.models.values():
        name, paths = model.reference, store.paths_of(model.files)
        if paths is not None and [path.name for path in paths] == [file.filename for file in model.files]:
            files[name] = [PullResult.of(name, known[path], path, "present") for path in paths]
        else:
            lacking.append(model)
    if lacking and caller.settings.offline:
        what = f"{lacking[0].reference}: {lacking[0].files[0].filename} is not in the store ({store.root})"
        hint = "tea-models sync, or sync --from models.tar, brings it"
        raise OfflineError(f"{what}, and nothing may be fetched", hint=hint)
    artifacts = [model.artifact() for model in lacking]
    if mirror and artifacts:
        caller = replace(caller, settings=logged_in(caller.settings, mirror))
        artifacts = [_mirrored(artifact, mirror) for artifact in artifacts]
    for result in pull_artifacts(artifacts, caller):
        files.setdefault(result.name, []).append(result)
    every = [result for model in lock.models.values() for result in files[model.reference]]
    return [replace(result, status="repaired") if result.sha256 in repaired else result for result in every]


def _check_licenses(lock: Lock, allowed: Collection[str] | None) -> None:
    if allowed is None:
        return
    known = {name.strip().lower() for name in allowed}
    wrong = [
        f"{model.reference} ({model.license or 'unknown'})"
        for model in lock.models.values()
        if (model.license or "unknown").lower() not in known
    ]
    if wrong:
        hint = f"allowed: {', '.join(sorted(known))}"
        raise LockError(f"not under an allowed licence: {', '.join(wrong)}", hint=hint)


def _mirrored(artifact: Artifact, mirror: str) -> Artifact:
    files = [replace(file, sources=(mirrored(mirror, str(file.sha256)),)) for file in artifact.files]
    return replace(artifact, files=tuple(files))


def _take_lock(mirror: str, lock_path: Path, caller: Caller) -> bool:
    """Where there is no lock, that of the mirror becomes it."""
    if lock_path.exists():
        return False
    from tea_models.lock.mirror import read_mirrored_lock

    lock = parse_lock(read_mirrored_lock(mirror, caller), f"{redact(mirror)}: models.lock")
    caller.note(f"writing {lock_path}: taken from {redact(mirror)}")
    return write_lock(lock_path, lock)


def _broken(store: Store, lock: Lock, caller: Caller, *, everything: bool) -> list[Record]:
    """Recorded files that were found to have locked bytes and do not have them any more."""
    locked = {file.sha256 for file in lock.files}
    items = [item for item in store.installed() if item.state != "missing" and item.record.sha256 in locked]
    if not everything:
        return [item.record for item in items if not store.intact(item.record)]
    stamps = [stamp_of(item.path.stat()) for item in items]
    with caller.progress.task(f"verifying {len(items)} files", sum(stamp[0] for stamp in stamps)):
        digests = sha256_files([item.path for item in items], caller.progress.advance)
    for item, stamp, digest in zip(items, stamps, digests, strict=True):
        if digest == item.record.sha256:
            store.confirm(item.record, stamp)
    return [item.record for item, digest in zip(items, digests, strict=True) if digest != item.record.sha256]


def _check_templates(lock: Lock, files: list[PullResult], caller: Caller, *, everything: bool) -> None:
    """Compare the chat templates of what was brought with what the lock says about them."""
    first = {result.sha256: result for result in files}
    for model in lock.models.values():
        result = first.get(str(model.files[0].sha256))
        if model.template_sha256 is None or result is None or (result.status == "present" and not everything):
            continue
        found = template_sha256(model.files[0], result.path, caller)
        if found != model.template_sha256:
            problem = f"the lock says template_sha256 {model.template_sha256}, the file's is {found}"
            hint = "the lock was altered: tea-models lock --upgrade writes it anew"
            raise IntegrityError(f"{model.reference}: {problem}", hint=hint)


def _take_bundle(bundle: Path, lock_path: Path, caller: Caller) -> tuple[bool, frozenset[str]]:
    """Bring the locked models of a bundle into the store; whether a lock was written, and which files were broken."""
    only = frozenset(str(file.sha256) for file in read_lock(lock_path).files) if lock_path.exists() else None
    from tea_models.lock.unbundle import unpack_bundle

    unpacked = unpack_bundle(bundle, caller, only=only)
    repaired = frozenset(file.record.sha256 for file in unpacked.files if file.status == "repaired")
    if only is not None:
        return False, repaired
    caller.note(f"writing {lock_path}: taken from {bundle}")
    return write_lock(lock_path, unpacked.lock), repaired


def _current_lock(path: Path, caller: Caller, *, frozen: bool) -> tuple[Lock, bool]:
    """The lock, and whether it was written anew because it was absent or out of date."""
    old = read_lock(path) if frozen or path.exists() else None
    if old is not None and (frozen or caller.settings.offline):
        require_current(old, path, caller.settings)
        return old, False
    if old is None and (caller.settings.offline or not (path.parent / MODELS_FILE).is_file()):
        hint = "tea-models lock NAME, or write a models.yaml"
        raise MissingFileError(f"{path}: no such file, and no models.yaml to make it from", hint=hint)
    reasons = outdated(old, path.parent, caller.settings) if old is not None else [f"{path} is not there"]
    if old is not None and not reasons:
        return old, False
    caller.note(f"writing {path}: {'; '.join(reasons)}")
    return update_lock(path, caller=caller)


def _remember_lock(store: Store, lock_path: Path, sha256: AbstractSet[str | None]) -> None:
    """Note in the store that a project's lock names files of it, so that cleaning up for another spares them."""
    lock = str(lock_path.resolve())
    path = store.hidden / "projects" / f"{sha256_text(lock)[:32]}.json"
    text = json.dumps({"lock": lock, "sha256": sorted(map(str, sha256))}, indent=2) + "\n"
    if store.root.is_dir() and read_own(path) != text.encode():
        with contextlib.suppress(TeaModelsError):  # a store that can't be written
            store.write_hidden(path, text)


def _locked_elsewhere(store: Store, lock_path: Path) -> dict[str, Path]:
    """The hashes that other projects' locks name, each with such a lock. A lock that is gone names nothing."""
    found: dict[str, Path] = {}
    for path in sorted((store.hidden / "projects").glob("*.json")):
        try:
            document = json.loads(read_own(path) or b"")
            lock, noted = Path(document["lock"]), set(document["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if lock == lock_path.resolve() or not lock.exists():
            continue
        with contextlib.suppress(TeaModelsError):  # what it named when it could be read
            noted = {str(file.sha256) for file in read_lock(lock).files}
        found |= dict.fromkeys(noted, lock)
    return found
