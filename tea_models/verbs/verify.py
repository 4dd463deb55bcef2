"""`verify`: read every byte of what is installed again, and check that it is GGUF and that the engine can load it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_files
from tea_models.engine.dry_load import DryLoader
from tea_models.engine.gate import why_no_answer
from tea_models.errors import MalformedGGUFError, MissingFileError, UsageError
from tea_models.files import Artifact, ModelFile, base_name, public, shard_names
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.header import read_header
from tea_models.gguf.loadable import check_loadable, is_loaded
from tea_models.refs import FileRef, NameRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.sources import resolve
from tea_models.sources.locate import locked_artifact, recorded_artifact
from tea_models.store import HIDDEN, Record, Store
from tea_models.verbs.pull import PullResult, pull_artifacts

# `corrupt`: other bytes, or not GGUF; `unpinned`: only the file itself, when first seen, says what its hash should be.
Status = Literal["ok", "corrupt", "missing", "unpinned"]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """One file and what was found."""

    name: str
    path: Path
    status: Status
    expected_sha256: str | None
    actual_sha256: str | None = None
    loadable: bool | None = None  # not looked at
    problems: tuple[str, ...] = ()
    repaired: bool = False

    @property
    def broken(self) -> bool:
        """Whether the file can't be used as it is, though it is there."""
        return self.status == "corrupt" or self.loadable is False


class _Target(NamedTuple):
    """A file to look at; `pinned` tells a pin from a hash that was recorded at first use."""

    name: str
    path: Path
    expected: str | None = None
    pinned: bool = False
    file: ModelFile | None = None
    artifact: Artifact | None = None


def verify(
    names: Sequence[str] | None, caller: Caller, *, repair: bool = False, load: bool = False
) -> list[VerifyResult]:
    """Hash models again: references or paths of GGUF files, in their order, or everything in the store, by path.

    With `load` what writes text is loaded with all its weights, and computes a token.
    """
    store = Store.of(caller.settings)
    registry = Registry.load(caller.settings)
    if names is None:
        targets = _all_targets(store, registry)
    else:
        targets = [target for name in names for target in _named_targets(name, store, registry, caller)]
    results = _check(targets, registry, caller)
    for index, (target, result) in enumerate(zip(targets, results, strict=True)):
        if repair and result.status in ("corrupt", "missing"):
            pulled = _fetched_again(target, result, store, caller)
            if pulled is not None:
                again = target._replace(path=pulled.path, expected=target.expected or pulled.sha256)
                results[index] = replace(_check([again], registry, caller)[0], repaired=True)
    return [_loaded(result, caller) if load else result for result in results]


def _loaded(result: VerifyResult, caller: Caller) -> VerifyResult:
    if result.status not in ("ok", "unpinned") or result.broken or result.path.name != shard_names(result.path.name)[0]:
        return result
    with FileSource(result.path) as source:
        metadata = read_header(source).metadata
    if f"{metadata.get('general.architecture')}.pooling_type" in metadata:
        return result  # it has vectors, no tokens
    problem = why_no_answer(result.path, caller.settings.environ or None)
    return replace(result, loadable=problem is None, problems=(*result.problems, *([problem] if problem else [])))


def _all_targets(store: Store, registry: Registry) -> list[_Target]:
    targets = {store.root / record.file: _recorded(record, store, registry) for record in store.records()}
    for path in store.root.rglob("*.gguf"):
        if path not in targets and HIDDEN not in path.relative_to(store.root).parts:
            targets[path] = _Target(path.name, path)
    return [targets[path] for path in sorted(targets)]


def _recorded(record: Record, store: Store, registry: Registry) -> _Target:
    """With where the bytes can be had again: all sources of the registry, or the one they came from."""
    path = store.root / record.file
    known = registry.by_sha256(record.sha256)
    file = artifact = None
    if known is not None:
        artifact = known[0].artifact(known[1], record.model)
        file = next(file for file in artifact.files if file.sha256 == record.sha256)
    else:
        with contextlib.suppress(UsageError):  # nothing that could be asked
            file = record.as_file()
            artifact = Artifact(record.model, record.model, None, (file,), record.license)
    return _Target(record.model, path, record.sha256, record.pinned or known is not None, file, artifact)


def _named_targets(name: str, store: Store, registry: Registry, caller: Caller) -> list[_Target]:
    reference = parse_reference(name)
    if isinstance(reference, FileRef):
        path = reference.path
        if not path.exists() and path.name == str(path) and (store.root / path.name).is_file():
            path = store.root / path.name  # a bare name may also be that of a file in the store
        shards = [path.with_name(part) for part in shard_names(path.name)] if path.name else [path]
        records = [(shard, store.record_of(shard.absolute())) for shard in shards]
        return [
            _recorded(record, store, registry)._replace(name=name) if record is not None else _Target(name, shard)
            for shard, record in records
        ]
    artifact = locked_artifact(name, caller)
    if artifact is None and isinstance(reference, NameRef):
        artifact = resolve(name, caller, registry)
    elif artifact is None:
        artifact = recorded_artifact(name, caller.settings)
    if artifact is None:
        return [_Target(public(name), store.root / base_name(name))]
    return [_file_target(name, file, artifact, store) for file in artifact.files]


def _file_target(name: str, file: ModelFile, artifact: Artifact, store: Store) -> _Target:
    records = [record for record in store.records() if record.means(file)]
    if records:
        record = min(records, key=lambda record: record.filename != file.filename)
        pinned = file.sha256 is not None or record.pinned
        return _Target(name, store.root / record.file, record.sha256, pinned, file, artifact)
    path = store.root / file.filename
    if store.record_of(path) is not None:  # the plain name belongs to another version; this one is not here
        path = store.hidden / "absent" / file.filename
    return _Target(name, path, file.sha256, file.sha256 is not None, file, artifact)


def _check(targets: list[_Target], registry: Registry, caller: Caller) -> list[VerifyResult]:
    paths = sorted({target.path for target in targets if target.path.exists()})
    for path in paths:
        if not path.is_file():
            FileSource(path).close()  # says what it is instead
    what = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    with caller.progress.task(f"verifying {what}", sum(path.stat().st_size for path in paths)):
        digests = dict(zip(paths, sha256_files(paths, caller.progress.advance), strict=True))
    loader = DryLoader(caller.settings)
    return [_judge(target, digests.get(target.path), registry, loader) for target in targets]


def _judge(target: _Target, digest: str | Exception | None, registry: Registry, loader: DryLoader) -> VerifyResult:
    name, path, expected, pinned = target[:4]
    if digest is None:
        return VerifyResult(name, path, "missing", expected)
    if isinstance(digest, Exception):
        why = f"can't be read: {getattr(digest, 'strerror', None) or digest}"
        return VerifyResult(name, path, "corrupt", expected, problems=(why,))
    known = registry.by_sha256(digest) is not None
    expected = expected or (digest if known else None)
    if expected is not None and digest != expected:
        why = f"its bytes {'are not those that were pinned' if pinned else 'changed since it was first seen'}"
        return VerifyResult(name, path, "corrupt", expected, digest, problems=(why,))
    try:
        problems = _loading_problems(path, loader)
    except MalformedGGUFError as error:
        return VerifyResult(name, path, "corrupt", expected, digest, False, (error.message,))
    return VerifyResult(name, path, "ok" if pinned or known else "unpinned", expected, digest, not problems, problems)


def _loading_problems(path: Path, loader: DryLoader) -> tuple[str, ...]:
    """Why the engine must not be given a file that is legal by the specification, or refuses it; empty if it loads."""
    with FileSource(path) as source:
        header = read_header(source)
        first = shard_names(path.name)[0]
        # The later shards of a model carry tensors only; what the loader asks of the metadata is in the first.
        problems = check_loadable(header) if path.name == first else header.problems
    if problems or path.name != first or not is_loaded(header):
        return tuple(problems)
    refusal = loader.refusal(path)
    return (refusal.reason,) if refusal else ()


def _fetched_again(target: _Target, result: VerifyResult, store: Store, caller: Caller) -> PullResult | None:
    """The file anew, or None where a corrupt one stays because nothing says where to get it."""
    if target.file is None or target.artifact is None:
        if result.status == "missing":
            raise MissingFileError(f"{target.path}: no such file, and nothing says where to get it", hint="pull it")
        return None
    aside = None
    if result.status == "corrupt" and store.contains(target.path):
        record = store.record_of(target.path)
        aside = store.set_aside(target.path)
        if record is not None:
            store.write_record(record)  # what should be there, for when this repair fails
    (pulled,) = pull_artifacts([replace(target.artifact, files=(target.file,))], caller)
    if aside is not None:
        aside.unlink(missing_ok=True)
    return pulled
