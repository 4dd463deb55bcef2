"""`https:` (and `http:`): any address, optionally pinned, optionally through a mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from tea_models.errors import AccessDeniedError, NotAvailableError, UsageError
from tea_models.files import Artifact, ModelFile, Source, base_name, shard_names
from tea_models.refs import UrlRef
from tea_models.sources import Fetched

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.settings import Settings


def resolve(reference: UrlRef, caller: Caller) -> Artifact:  # noqa: ARG001 - one signature for all kinds
    """The file behind the address, with the pin that the address carries; all shards if it is one without a pin.

    Raises:
        UsageError: The address ends in no file name.
    """
    name = base_name(unquote(urlsplit(reference.url).path))
    if not name:
        raise UsageError(f"{reference.url}: the address ends in no file name")
    names = shard_names(name) if reference.sha256 is None else (name,)
    files = tuple(
        ModelFile(shard, None, reference.sha256, (Source((_beside(reference, name, shard),)),)) for shard in names
    )
    return Artifact(str(reference), str(reference), None, files)


def fetch(reference: UrlRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download, from the mirror first if one is configured."""
    from tea_models.net import download, make_client

    sha256 = file.sha256 or reference.sha256
    addresses = candidates(reference.url, caller.settings)
    with make_client(connections=caller.settings.connections) as client:
        for address in addresses:
            try:
                result = download(
                    address,
                    destination,
                    client=client,
                    size=file.size,
                    sha256=sha256,
                    connections=caller.settings.connections,
                    progress=caller.progress,
                    name=file.filename,
                    expect_gguf=sha256 is None and file.filename.lower().endswith(".gguf"),
                )
            except AccessDeniedError:
                raise
            except NotAvailableError:
                if address == addresses[-1]:
                    raise
            else:
                return Fetched(result.sha256, result.size, result.resumed_from or None)
    raise AssertionError


def open_remote(reference: UrlRef, caller: Caller) -> ByteSource:
    """Read parts of the file over HTTP ranges."""
    from tea_models.net import make_client
    from tea_models.net.http_source import HttpSource

    return HttpSource(candidates(reference.url, caller.settings)[0], client=make_client(), headers={})


def _beside(reference: UrlRef, name: str, shard: str) -> UrlRef:
    """The address of another shard. What differs (`-00001-of-00003.gguf`) is never escaped in an address."""
    parts = urlsplit(reference.url)
    tail = len("-00001-of-00001.gguf")
    path = parts.path if shard == name else parts.path[:-tail] + shard[-tail:]
    return UrlRef(urlunsplit(parts._replace(path=path)), reference.sha256)


def candidates(url: str, settings: Settings) -> list[str]:
    """The addresses to try: `MIRROR/https://host/path` before `https://host/path`."""
    return [f"{settings.mirror}/{url}", url] if settings.mirror else [url]
