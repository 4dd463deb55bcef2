"""`verify`: hash what is installed again, and check that it is GGUF and that the engine can load it.

Nothing that was remembered is believed here: every byte is read. With `repair`, only what is broken is fetched again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tea_models.disk.hashing import sha256_files
from tea_models.engine.dry_load import DryLoader
from tea_models.errors import MalformedGGUFError, MissingFileError, NotAvailableError, UsageError
from tea_models.files import Artifact, ModelFile, base_name, public, shard_names
from tea_models.gguf import FileSource, check_loadable, read_header
from tea_models.gguf.loadable import is_loaded
from tea_models.refs import FileRef, NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.sources import resolve
from tea_models.sources.locate import locked_artifact, recorded_artifact
from tea_models.store import HIDDEN, Record, Store
from tea_models.verbs.pull import pull_artifacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tea_models.caller import Caller

Status = Literal["ok", "corrupt", "missing", "unpinned"]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """One file and what was found.

    Attributes:
        name: The reference it was asked or pulled by.
        path: Where it lies, or should lie.
        status: `ok`; `corrupt` (other bytes than expected, or not GGUF); `missing`; `unpinned` (nothing says what its
            hash should be, other than the file itself when it was first seen).
        expected_sha256: The pinned hash, or the one recorded at first use, or None.
        actual_sha256: Of the bytes that are there, or None if there are none.
        loadable: Whether the engine can load it; None if that was not looked at.
        problems: Why it is corrupt or not loadable.
        repaired: It was broken and has been fetched again.
    """

    name: str
    path: Path
    status: Status
    expected_sha256: str | None
    actual_sha256: str | None
    loadable: bool | None = None
    problems: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def broken(self) -> bool:
        """Whether the file can't be used as it is, though it is there."""
        return self.status == "corrupt" or self.loadable is False

    def to_json(self) -> dict[str, Any]:
        """The contract's keys, and more."""
        return asdict(self) | {"path": str(self.path), "problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class _Target:
    """A file to look at; `pinned` tells a pin from a hash that was recorded at first use."""

    name: str
    path: Path
    expected: str | None
    pinned: bool
    file: ModelFile | None = None
    artifact: Artifact | None = None


def verify(names: Sequence[str] | None, caller: Caller, *, repair: bool = False) -> list[VerifyResult]:
    """Hash models again.

    Args:
        names: References or paths of GGUF files; None for everything in the store.
        caller: Its settings say where the store is; told about bytes read, and of downloads.
        repair: Fetch again what is corrupt or missing.

    Returns:
        A result for each file, in the order of the names, or by path.

    Raises:
        UsageError: A name is no reference.
        UnknownModelError: A name is not in the registry.
        NotAvailableError, IntegrityError: With `repair`, a file could not be fetched.
    """
    store = Store.of(caller.settings)
    registry = Registry.load(caller.settings)
    if names is None:
        targets = _all_targets(store, registry)
    else:
        targets = [target for name in names for target in _named_targets(name, store, registry, caller)]
    results = _check(targets, registry, caller)
    if not repair:
        return results
    return [
        _repair(target, result, store, caller) if result.status in ("corrupt", "missing") else result
        for target, result in zip(targets, results, strict=True)
    ]


def _all_targets(store: Store, registry: Registry) -> list[_Target]:
    targets = {store.root / record.file: _recorded(record, store, registry) for record in store.records()}
    if store.root.is_dir():
        for path in sorted(store.root.rglob("*.gguf")):
            if path not in targets and HIDDEN not in path.relative_to(store.root).parts:
                targets[path] = _Target(path.name, path, None, pinned=False)
    return [targets[path] for path in sorted(targets)]


def _recorded(record: Record, store: Store, registry: Registry) -> _Target:
    known = registry.by_sha256(record.sha256)
    path = store.root / record.file
    file, artifact = _fetchable(record, registry)
    return _Target(record.model, path, record.sha256, record.pinned or known is not None, file, artifact)


def _fetchable(record: Record, registry: Registry) -> tuple[ModelFile | None, Artifact | None]:
    """Where the recorded bytes can be had again: all sources of the registry, or the one they came from."""
    known = registry.by_sha256(record.sha256)
    if known is not None:
        artifact = known[0].artifact(known[1], record.model)
        return next(file for file in artifact.files if file.sha256 == record.sha256), artifact
    try:
        file = record.as_file()
    except UsageError:
        return None, None  # nothing that could be asked
    return file, Artifact(record.model, record.model, None, (file,), record.license)


def _named_targets(name: str, store: Store, registry: Registry, caller: Caller) -> list[_Target]:
    reference = parse_reference(name)
    if isinstance(reference, FileRef):
        return [_path_target(name, path, store, registry) for path in _shards(reference.path, store)]
    artifact = locked_artifact(name, caller)
    if artifact is None and isinstance(reference, NameRef):
        artifact = resolve(name, caller, registry)
    elif artifact is None:
        artifact = recorded_artifact(name, caller.settings)
    if artifact is None:
        return [_Target(public(name), store.root / base_name(name), None, pinned=False)]
    return [_file_target(name, file, artifact, store) for file in artifact.files]


def _shards(path: Path, store: Store) -> list[Path]:
    if not path.exists() and path.name == str(path) and (store.root / path.name).is_file():
        path = store.root / path.name  # a bare name may also be that of a file in the store
    return [path.with_name(part) for part in shard_names(path.name)] if path.name else [path]


def _path_target(name: str, path: Path, store: Store, registry: Registry) -> _Target:
    record = store.record_of(path.absolute())
    if record is not None:
        return replace(_recorded(record, store, registry), name=name)
    return _Target(name, path, None, pinned=False)


def _file_target(name: str, file: ModelFile, artifact: Artifact, store: Store) -> _Target:
    records = [record for record in store.records() if record.means(file)]
    records.sort(key=lambda record: record.filename != file.filename)
    if records:
        record = records[0]
        pinned = file.sha256 is not None or record.pinned
        return _Target(name, store.root / record.file, record.sha256, pinned, file, artifact)
    path = store.root / file.filename
    other = store.record_of(path)
    if other is not None:  # the plain name belongs to another version; this one is not here
        path = store.hidden / "absent" / file.filename
    return _Target(name, path, file.sha256, file.sha256 is not None, file, artifact)


def _check(targets: list[_Target], registry: Registry, caller: Caller) -> list[VerifyResult]:
    sizes = {target.path: target.path.stat().st_size for target in targets if _is_file(target.path)}
    paths = sorted(sizes)
    what = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    caller.progress.start(f"verifying {what}", sum(sizes.values()), 0)
    try:
        digests = dict(zip(paths, sha256_files(paths, caller.progress.advance), strict=True))
    finally:
        caller.progress.finish()
    loader = DryLoader(caller.settings)
    return [_judge(target, digests.get(target.path), registry, loader) for target in targets]


def _is_file(path: Path) -> bool:
    if not path.exists():
        return False
    if not path.is_file():
        FileSource(path).close()  # says what it is instead
    return True


def _judge(target: _Target, digest: str | Exception | None, registry: Registry, loader: DryLoader) -> VerifyResult:
    if digest is None:
        return VerifyResult(target.name, target.path, "missing", target.expected, None)
    if isinstance(digest, Exception):
        why = getattr(digest, "strerror", None) or str(digest)
        return VerifyResult(
            target.name, target.path, "corrupt", target.expected, None, None, (f"can't be read: {why}",)
        )
    known = registry.by_sha256(digest) is not None
    expected = target.expected or (digest if known else None)
    if expected is not None and digest != expected:
        why = (
            "its bytes are not those that were pinned" if target.pinned else "its bytes changed since it was first seen"
        )
        return VerifyResult(target.name, target.path, "corrupt", expected, digest, None, (why,))
    status: Status = "ok" if target.pinned or known else "unpinned"
    try:
        problems = _loading_problems(target.path, loader)
    except MalformedGGUFError as error:
        return VerifyResult(target.name, target.path, "corrupt", expected, digest, False, (error.message,))
    return VerifyResult(target.name, target.path, status, expected, digest, not problems, problems)


def _loading_problems(path: Path, loader: DryLoader) -> tuple[str, ...]:
    """Why the engine must not be given a file that is legal by the specification, or refuses it; empty if it loads.

    Raises:
        MalformedGGUFError: The file is not legal.
        NotAvailableError: It can't be read.
    """
    with FileSource(path) as source:
        header = read_header(source)
        first = shard_names(path.name)[0]
        # The later shards of a model carry tensors only; what the loader asks of the metadata is in the first.
        problems = check_loadable(header) if path.name == first else header.problems
    if problems or path.name != first or not is_loaded(header):
        return tuple(problems)
    refusal = loader.refusal(path)
    return (refusal.reason,) if refusal else ()


def _set_aside(store: Store, path: Path) -> Path:
    """Take broken bytes from their name, but remember what should be there, for when this repair fails."""
    record = store.record_of(path)
    aside = store.set_aside(path)
    if record is not None:
        store.write_record(record)
    return aside


def _repair(target: _Target, result: VerifyResult, store: Store, caller: Caller) -> VerifyResult:
    if target.file is None or target.artifact is None:
        if result.status == "missing":
            raise MissingFileError(f"{target.path}: no such file, and nothing says where to get it", hint="pull it")
        return result
    aside = _set_aside(store, target.path) if result.status == "corrupt" and store.contains(target.path) else None
    only = replace(target.artifact, files=(target.file,))
    (pulled,) = pull_artifacts([only], caller)
    if aside is not None:
        aside.unlink(missing_ok=True)
    try:
        problems = _loading_problems(pulled.path, DryLoader(caller.settings))
    except (MalformedGGUFError, NotAvailableError) as error:
        problems = (error.message,)
    return VerifyResult(
        name=target.name,
        path=pulled.path,
        status="ok" if target.pinned else "unpinned",
        expected_sha256=target.expected or pulled.sha256,
        actual_sha256=pulled.sha256,
        loadable=not problems,
        problems=problems,
        repaired=True,
    )
