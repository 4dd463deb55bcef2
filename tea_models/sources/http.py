"""`https:` (and `http:`): any address, optionally pinned, optionally through a mirror."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tea_models.caller import Caller
from tea_models.errors import AccessDeniedError, NotAvailableError, OfflineError, UsageError
from tea_models.files import Artifact, Fetched, ModelFile, Source, base_name, public, shard_names
from tea_models.gguf.bytes_source import ByteSource
from tea_models.gguf.header import size_by_header
from tea_models.net.client import Client, Request
from tea_models.net.download import download
from tea_models.net.http_source import HttpSource
from tea_models.net.retry import QUESTION
from tea_models.refs import Reference, UrlRef
from tea_models.settings import Settings
from tea_models.sources.mirror import is_mirror


def resolve(reference: UrlRef, caller: Caller) -> Artifact:  # noqa: ARG001 - one signature for all kinds
    """The file behind the address, with the pin that the address carries; all shards if it is one without a pin."""
    name = base_name(reference.url)
    if not name:
        raise UsageError(f"{public(reference)}: the address ends in no file name")
    names = shard_names(name) if reference.sha256 is None else (name,)
    files = tuple(
        ModelFile(shard, None, reference.sha256, (Source((_beside(reference, name, shard),)),)) for shard in names
    )
    return Artifact(str(reference), str(reference), None, files)


def fetch(reference: UrlRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download, from the mirror first if one is configured."""
    pinned = replace(file, sha256=file.sha256 or reference.sha256)
    *mirrors, address = candidates(reference.url, caller.settings)
    for mirror in mirrors:
        try:
            return download_file(mirror, destination, file=pinned, caller=caller)
        except AccessDeniedError:
            raise
        except NotAvailableError:
            continue
    return download_file(address, destination, file=pinned, caller=caller)


def open_remote(reference: UrlRef, caller: Caller) -> ByteSource:
    return open_address(candidates(reference.url, caller.settings)[0], caller.settings)


def refuse_offline(reference: Reference, settings: Settings) -> None:
    if settings.offline:
        raise OfflineError(f"{reference} is not in the store, and nothing may be fetched (--offline)")


def client_for(settings: Settings) -> Client:
    return Client(connections=settings.connections, environ=settings.environ)


def download_file(
    url: str, destination: Path, *, file: ModelFile, caller: Caller, headers: dict[str, str] | None = None
) -> Fetched:
    with client_for(caller.settings) as client:
        request = Request(
            client,
            url,
            headers or {},
            sha256=file.sha256,
            size=file.size,
            name=file.filename,
            connections=caller.settings.connections,
            size_by_header=size_by_header if file.filename.lower().endswith(".gguf") else None,
        )
        return download(request, destination, caller.progress)


def open_address(url: str, settings: Settings, headers: dict[str, str] | None = None) -> ByteSource:
    return HttpSource(Request(client_for(settings), url, headers or {}, policy=QUESTION))


def _beside(reference: UrlRef, name: str, shard: str) -> UrlRef:
    """The address of another shard. What differs (`-00001-of-00003.gguf`) is never escaped in an address."""
    parts = urlsplit(reference.url)
    tail = len("-00001-of-00001.gguf")
    path = parts.path if shard == name else parts.path[:-tail] + shard[-tail:]
    return UrlRef(urlunsplit(parts._replace(path=path)), reference.sha256)


def candidates(url: str, settings: Settings) -> list[str]:
    """The addresses to try: `MIRROR/https://host/path` before `https://host/path`."""
    prefix = settings.mirror if not is_mirror(settings.mirror) else ""
    return [f"{prefix}/{public(url)}", url] if prefix else [url]
