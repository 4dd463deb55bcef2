"""`ollama:`: a model of an Ollama registry: its manifest names the GGUF blob, and the blob's name is its SHA-256.

Formats: the registry speaks the Docker registry API v2; the model is the layer of media type
`application/vnd.ollama.image.model`. The manifest counts only from the registry itself; the blob may be anywhere.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tea_models.caller import Caller
from tea_models.errors import AccessDeniedError, MissingFileError, SourceUnavailableError
from tea_models.files import Artifact, Fetched, ModelFile, Source
from tea_models.gguf.bytes_source import ByteSource
from tea_models.net.answers import refusal
from tea_models.refs import OllamaRef
from tea_models.settings import Settings
from tea_models.sources.http import client_for, download_file, open_address, refuse_offline
from tea_models.store.other_tools import ollama_layers

DEFAULT_REGISTRY = "https://registry.ollama.ai"
_MAX_MANIFEST = 4 << 20


def resolve(reference: OllamaRef, caller: Caller) -> Artifact:
    refuse_offline(reference, caller.settings)
    text = _manifest(reference, caller.settings)
    try:
        layers = ollama_layers(text)
    except ValueError:
        raise SourceUnavailableError(f"{reference}: the registry's answer is not a manifest") from None
    if len(layers) != 1 or not layers[0][0]:
        raise MissingFileError(f"{reference}: its manifest has {len(layers)} GGUF layers, expected one")
    sha256, size = layers[0]
    revision = "sha256:" + hashlib.sha256(text).hexdigest()
    name = f"{reference.name.rpartition('/')[2]}-{reference.tag}.gguf"
    file = ModelFile(name, size, sha256, (Source((reference,), revision),))
    return Artifact(str(reference), str(reference), None, (file,))


def fetch(reference: OllamaRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Download the blob; its hash is its name."""
    if file.sha256 is None:
        file = resolve(reference, caller).files[0]
    url = _blob(reference, str(file.sha256), caller.settings)
    return download_file(url, destination, file=file, caller=caller)


def open_remote(reference: OllamaRef, caller: Caller) -> ByteSource:
    sha256 = resolve(reference, caller).files[0].sha256
    return open_address(_blob(reference, str(sha256), caller.settings), caller.settings)


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
    url = f"{_base(reference, settings)}/manifests/{reference.tag}"
    accept = {"accept": "application/vnd.docker.distribution.manifest.v2+json, application/json"}
    with client_for(settings) as client:
        response, text = client.ask(url, accept, most=_MAX_MANIFEST)
    status = response.status_code
    if status in (401, 403):
        raise AccessDeniedError(f"{reference}: the registry answers {status}", hint="only public models can be pulled")
    if status == 404:
        raise MissingFileError(f"{reference}: the registry has no such model or tag")
    if status != 200:
        raise refusal(response, str(reference))
    return text
