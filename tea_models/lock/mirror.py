"""`push`: fill a mirror with what a lock names. What it means to be one, `tea_models.sources.mirror` says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tea_models.caller import Caller
from tea_models.disk.atomic import replacing
from tea_models.disk.hashing import sha256_file
from tea_models.errors import (
    AccessDeniedError,
    ChecksumMismatchError,
    MissingFileError,
    SourceUnavailableError,
    UsageError,
)
from tea_models.lock.bundle import BROKEN, located
from tea_models.lock.unbundle import BundledFile
from tea_models.lockfile import Lock, format_lock
from tea_models.redact import redact
from tea_models.refs import FsspecRef
from tea_models.settings import Settings
from tea_models.sources import kind_of
from tea_models.sources.http import client_for
from tea_models.sources.mirror import OciRepository, oci_repository, open_registry, place_in
from tea_models.sources.remote_fs import explained, open_filesystem
from tea_models.store import Store

LOCK = "models.lock"
LOCK_TYPE = "application/vnd.tea-models.lock.v1+yaml"
_BLOCK = 4 << 20
# They have no folders, and to make one would make the bucket.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss", "r2"})
_FILE_TYPE = "application/vnd.tea-models.gguf"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_MOST = 4 << 20
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Pushed:
    """One file of a mirror: `status` is `uploaded`, or `present` where it was there already."""

    name: str
    target: str
    sha256: str
    size: int
    status: Literal["uploaded", "present"]


def push(lock: Lock, target: str, caller: Caller) -> list[Pushed]:
    """Fill a mirror (`oci://…`, what fsspec opens, a folder) with a lock's files and, once they are there, the lock."""
    if not target.strip():
        raise UsageError("push: expected a target: oci://host/repository, s3://bucket/folder, or a folder")
    if lock.engine is not None:
        caller.note("the engine that the lock names is not pushed: `bundle --with-engine` carries it")
    repository = oci_repository(target)
    store = Store.of(caller.settings)
    unique = {file.record.sha256: file for model in lock.models.values() for file in located(store, model)}
    files = list(unique.values())
    with caller.progress.task(f"pushing {len(files)} files", sum(file.record.size for file in files)):
        if repository is not None:
            return _push_oci(lock, files, repository, target, caller)
        return _push_files(lock, files, target, caller)


def _brought(file: BundledFile, target: str, caller: Caller, write: Callable[[Iterator[bytes]], None] | None) -> Pushed:
    """Check and `write` a file that is not there yet (None: it is)."""
    record = file.record
    if write is None:
        caller.progress.advance(record.size)
    else:
        found = sha256_file(file.path)
        if found != record.sha256:
            raise ChecksumMismatchError(record.filename, expected=record.sha256, actual=found, hint=BROKEN)
        write(_read(file.path, caller))
    shown = redact(target)
    return Pushed(record.model, shown, record.sha256, record.size, "present" if write is None else "uploaded")


def _read(path: Path, caller: Caller) -> Iterator[bytes]:
    with path.open("rb") as reader:
        while block := reader.read(_BLOCK):
            yield block
            caller.progress.advance(len(block))


def read_mirrored_lock(target: str, caller: Caller) -> str:
    """The text of the `models.lock` that a mirror was filled from."""
    repository = oci_repository(target)
    if repository is not None:
        return _lock_layer(repository, caller.settings).decode("utf-8", "replace")
    place = place_in(target, LOCK)
    with closing(kind_of(place).open_remote(place, caller)) as source:
        content: bytes = source.read(0, min(source.size or _MOST, _MOST))
        return content.decode("utf-8", "replace")


def _lock_layer(repository: OciRepository, settings: Settings) -> bytes:
    manifest = _ask(repository, f"manifests/{repository.tag}", settings)
    try:
        layers: list[Any] = json.loads(manifest)["layers"]
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == LOCK_TYPE)
    except (ValueError, KeyError, TypeError, StopIteration):
        raise MissingFileError(
            f"oci://{repository.host}/{repository.repo}:{repository.tag} was not filled by `tea-models push`"
        ) from None
    return _ask(repository, f"blobs/{digest}", settings)


def _ask(repository: OciRepository, what: str, settings: Settings) -> bytes:
    with client_for(settings) as client:
        response, body = client.ask(repository.url(what), {"accept": f"{_MANIFEST_TYPE}, */*"}, most=_MOST)
    shown = f"oci://{repository.host}/{repository.repo}"
    if response.status_code in (401, 403):
        hint = f"docker login {repository.host}, with `pip install 'tea-models[mirror]'`"
        raise AccessDeniedError(f"{shown}: the registry answers {response.status_code}", hint=hint)
    if response.status_code == 404:
        raise MissingFileError(f"{shown}: the registry has no {what}")
    if response.status_code != 200:
        raise SourceUnavailableError(f"{shown}: the registry answers {response.status_code}")
    return body


# A folder or a bucket -------------------------------------------------------------------------------------------------


def _push_files(lock: Lock, files: list[BundledFile], target: str, caller: Caller) -> list[Pushed]:
    place = place_in(target, "")
    there: _Folder | _Bucket = _Bucket(place) if isinstance(place, FsspecRef) else _Folder()
    pushed = []
    for file in files:
        blob = place_in(target, f"blobs/sha256/{file.record.sha256}")
        present = there.size(blob) == file.record.size
        pushed.append(_brought(file, str(blob), caller, None if present else partial(there.write, blob)))
    there.write(place_in(target, LOCK), iter([format_lock(lock).encode()]))
    return pushed


class _Folder:
    def size(self, place: Any) -> int | None:
        """The size of a file that has the hash which is its name: one that rotted is written again."""
        sound = place.path.is_file() and sha256_file(place.path) == place.path.name
        return place.path.stat().st_size if sound else None

    def write(self, place: Any, blocks: Iterator[bytes]) -> None:
        try:
            place.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place.path) as file:
                for block in blocks:
                    file.write(block)
        except OSError as error:
            raise SourceUnavailableError(f"{place.path}: can't be written: {error.strerror}") from None


class _Bucket:
    """A filesystem that fsspec opens: an object is there whole or not at all."""

    def __init__(self, target: FsspecRef) -> None:
        self._filesystem, _ = open_filesystem(target)

    def size(self, place: Any) -> int | None:
        with explained(place):
            self._filesystem.invalidate_cache()
            return self._filesystem.size(place.url) if self._filesystem.exists(place.url) else None

    def write(self, place: Any, blocks: Iterator[bytes]) -> None:
        with explained(place, "written"):
            if place.url.partition(":")[0].lower() not in _OBJECT_STORES:
                self._filesystem.makedirs(place.url.rpartition("/")[0], exist_ok=True)
            with self._filesystem.open(place.url, "wb") as writer:
                for block in blocks:
                    writer.write(block)


# An OCI registry ------------------------------------------------------------------------------------------------------


def _push_oci(
    lock: Lock, files: list[BundledFile], repository: OciRepository, target: str, caller: Caller
) -> list[Pushed]:
    upload = _OciUpload(repository, caller.settings)
    pushed, layers = [], []
    for file in files:
        record = file.record
        layer = _layer(_FILE_TYPE, record.sha256, record.size)
        annotations = {_TITLE: record.filename, "org.opencontainers.image.source": record.source}
        annotations |= {"org.opencontainers.image.revision": record.revision} if record.revision else {}
        annotations |= {"org.opencontainers.image.licenses": record.license} if record.license else {}
        layers.append(layer | {"annotations": annotations})
        present = upload.has(layer)
        pushed.append(_brought(file, target, caller, None if present else partial(upload.blob, layer)))
    text = format_lock(lock).encode()
    lock_layer = _layer(LOCK_TYPE, hashlib.sha256(text).hexdigest(), len(text)) | {"annotations": {_TITLE: LOCK}}
    config = _layer(_EMPTY_TYPE, hashlib.sha256(_EMPTY).hexdigest(), len(_EMPTY))
    for small, content in ((lock_layer, text), (config, _EMPTY)):
        if not upload.has(small):
            upload.blob(small, iter([content]))
    upload.manifest(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "artifactType": LOCK_TYPE,
            "config": config,
            "layers": [*layers, lock_layer],
        }
    )
    return pushed


def _layer(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


class _OciUpload:
    """Uploads to one repository (OCI distribution specification 1.1, "Push"), with the credentials of `oras`."""

    def __init__(self, repository: OciRepository, settings: Settings) -> None:
        self._repository = repository
        self._shown = f"oci://{repository.host}/{repository.repo}"
        try:
            self._registry = open_registry(repository, settings)
        except ImportError:
            hint = "pip install 'tea-models[mirror]'"
            raise SourceUnavailableError(f"{self._shown}: `oras` is not installed", hint=hint) from None
        except OSError as error:
            raise SourceUnavailableError(f"{self._shown}: can't be reached ({type(error).__name__})") from None

    def has(self, layer: dict[str, Any]) -> bool:
        return bool(self._send("HEAD", self._repository.url(f"blobs/{layer['digest']}"), missing=True) is not None)

    def blob(self, layer: dict[str, Any], blocks: Iterator[bytes]) -> None:
        """Upload a blob; the registry compares its digest."""
        started = self._send("POST", self._repository.url("blobs/uploads/"))
        where = started.headers.get("location", "")
        if not where.startswith("http"):
            where = self._repository.url("").partition("/v2/")[0] + where
        where += f"{'&' if '?' in where else '?'}digest={layer['digest']}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(layer["size"])}
        self._send("PUT", where, headers=headers, data=_Sized(blocks, layer["size"]))

    def manifest(self, manifest: dict[str, Any]) -> None:
        """Give the tag its meaning."""
        headers = {"Content-Type": manifest["mediaType"]}
        data = json.dumps(manifest).encode()
        self._send("PUT", self._repository.url(f"manifests/{self._repository.tag}"), headers=headers, data=data)

    def _send(self, method: str, url: str, *, missing: bool = False, **more: Any) -> Any:
        from requests import RequestException

        # A body can be sent once: credentials go along at once, not when the registry asks for them.
        headers = more.pop("headers", {}) | self._registry.auth.get_auth_header()
        try:
            response = self._registry.do_request(url, method, headers=headers, **more)
        except RequestException as error:
            raise SourceUnavailableError(f"{self._shown}: can't be reached ({type(error).__name__})") from None
        except ValueError:  # what oras says where it has no credentials
            raise self._denied(401) from None
        status = response.status_code
        if status in (401, 403):
            raise self._denied(status)
        if missing and status == 404:
            return None
        if status not in (200, 201, 202):
            raise SourceUnavailableError(f"{self._shown}: the registry answers {status} to {method}")
        return response

    def _denied(self, status: int) -> AccessDeniedError:
        hint = f"docker login {self._repository.host}"
        return AccessDeniedError(f"{self._shown}: the registry answers {status}", hint=hint)


class _Sized:
    """Blocks with a length, as `requests` wants them to send them one by one."""

    def __init__(self, blocks: Iterator[bytes], size: int) -> None:
        self._blocks, self._size = blocks, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks
