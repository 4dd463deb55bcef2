"""`ollama:`: a model of an Ollama registry: its manifest names the GGUF blob, and the blob's name is its SHA-256.

Formats: the registry speaks the Docker registry API v2; the model is the layer of media type
`application/vnd.ollama.image.model`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from tea_models.errors import AccessDeniedError, MissingFileError, OfflineError, SourceUnavailableError
from tea_models.files import Artifact, ModelFile, Source
from tea_models.sources import Fetched

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.gguf.bytes_source import ByteSource
    from tea_models.refs import OllamaRef
    from tea_models.settings import Settings

DEFAULT_REGISTRY = "https://registry.ollama.ai"
MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_MAX_MANIFEST = 4 << 20


def resolve(reference: OllamaRef, caller: Caller) -> Artifact:
    """Read the manifest of a model.

    Raises:
        OfflineError: Nothing may be asked.
        MissingFileError: No such model or tag, or it holds no GGUF file.
        SourceUnavailableError: The registry can't be reached, or its answer is not understood.
    """
    if caller.settings.offline:
        raise OfflineError(f"{reference} is not in the store, and nothing may be fetched (--offline)")
    text = _manifest(reference, caller.settings)
    try:
        layers: list[Any] = json.loads(text)["layers"]
        models = [layer for layer in layers if layer["mediaType"] == MODEL_LAYER]
        found = [(_DIGEST.match(layer["digest"]), int(layer["size"])) for layer in models]
    except (ValueError, KeyError, TypeError):
        raise SourceUnavailableError(f"{reference}: the registry's answer is not a manifest") from None
    if len(found) != 1 or found[0][0] is None:
        raise MissingFileError(f"{reference}: its manifest has {len(models)} GGUF layers, expected one")
    match, size = found[0]
    assert match is not None
    revision = "sha256:" + hashlib.sha256(text).hexdigest()
    name = f"{reference.name.rpartition('/')[2]}-{reference.tag}.gguf"
    file = ModelFile(name, size, match[1], (Source((reference,), revision),))
    return Artifact(str(reference), str(reference), None, (file,))


def fetch(reference: OllamaRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download the blob; its hash is its name."""
    from tea_models.net import download, make_client

    if file.sha256 is None:
        file = resolve(reference, caller).files[0]
    with make_client(connections=caller.settings.connections) as client:
        result = download(
            _blob(reference, str(file.sha256), caller.settings),
            destination,
            client=client,
            size=file.size,
            sha256=file.sha256,
            connections=caller.settings.connections,
            progress=caller.progress,
            name=file.filename,
        )
    return Fetched(result.sha256, result.size, result.resumed_from or None)


def open_remote(reference: OllamaRef, caller: Caller) -> ByteSource:
    """Read parts of the blob over HTTP ranges."""
    from tea_models.net import make_client
    from tea_models.net.http_source import HttpSource

    sha256 = resolve(reference, caller).files[0].sha256
    return HttpSource(_blob(reference, str(sha256), caller.settings), client=make_client(), headers={})


def _base(reference: OllamaRef, settings: Settings) -> str:
    """`TEA_OLLAMA_REGISTRY`, the host in the name, or Ollama's own; short names lie under `library`."""
    host, slash, rest = reference.name.partition("/")
    if slash and "." in host:
        return f"https://{host}/v2/{rest}"
    registry = (settings.environ.get("TEA_OLLAMA_REGISTRY") or DEFAULT_REGISTRY).rstrip("/")
    return f"{registry}/v2/{reference.name if slash else 'library/' + reference.name}"


def _blob(reference: OllamaRef, sha256: str, settings: Settings) -> str:
    return f"{_base(reference, settings)}/blobs/sha256:{sha256}"


def _manifest(reference: OllamaRef, settings: Settings) -> bytes:
    import httpx2

    url = f"{_base(reference, settings)}/manifests/{reference.tag}"
    accept = {"accept": "application/vnd.docker.distribution.manifest.v2+json, application/json"}
    try:
        with (
            httpx2.Client(follow_redirects=True, timeout=30, headers=accept) as client,
            client.stream("GET", url) as answer,
        ):
            status = answer.status_code
            text = b""
            for chunk in answer.iter_bytes():
                text += chunk
                if len(text) > _MAX_MANIFEST:
                    raise SourceUnavailableError(f"{reference}: the registry's answer is not a manifest: too long")
    except httpx2.HTTPError as error:
        raise SourceUnavailableError(
            f"{reference}: the registry can't be reached ({type(error).__name__})", hint="check the network"
        ) from None
    if status in (401, 403):
        raise AccessDeniedError(f"{reference}: the registry answers {status}", hint="only public models can be pulled")
    if status == 404:
        raise MissingFileError(f"{reference}: the registry has no such model or tag")
    if status != 200:
        raise SourceUnavailableError(f"{reference}: the registry answers {status}", hint="try again later")
    return text
