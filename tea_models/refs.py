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
#: A SHA-256 as a registry and a lock write it.
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# llama.cpp's names (`llama_ftype`), with the prefixes and suffixes that publishers add: UD-, -imat, _XL, …
_QUANTIZATION = re.compile(
    r"(?:\A|[-._/])(?P<name>(?:UD-)?(?:I?Q\d(?:_\d(?:_\d)*|_K(?:_[A-Z]+)?|_[A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))"
    r"(?=\Z|[-._/])",
    re.IGNORECASE,
)


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


_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
# By scheme: what it becomes, its pattern, and the form that an error shows.
_FORMS: dict[str, tuple[type[HubRef | WheelRef | OllamaRef], str, str]] = {
    "hf": (
        HubRef,
        rf"(?P<repo>{_PART}/{_PART})(?:/(?P<path>[^@]+)|:(?P<quantization>{_PART}))?(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?",
        "hf:OWNER/REPO[/FILE.gguf | :QUANT][@REVISION]",
    ),
    "pypi": (
        WheelRef,
        rf"(?P<package>{_PART})==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<path>.+)",
        "pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf",
    ),
    "ollama": (OllamaRef, rf"(?P<name>{_PART}(?:/{_PART})*)(?::(?P<tag>{_PART}))?", "ollama:NAME[:TAG]"),
}


def parse_reference(text: str) -> Reference:
    """Parse a reference as a user types it.

    A text without a scheme is a path when it has a separator, starts with `.` or `~`, or ends in `.gguf`; otherwise it
    is a name in the registry. A UsageError says which form the text came nearest to.
    """
    if not text or any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise UsageError(f"reference {text!r}: expected a model name, a path or an address without control characters")
    scheme, _, rest = text.partition(":")
    if scheme.lower() == "file":
        return _parse_file(text, rest)
    if rest.startswith("//"):
        return _parse_url(text)
    if scheme.lower() in _FORMS:
        kind, pattern, form = _FORMS[scheme.lower()]
        match = re.fullmatch(pattern, rest, re.ASCII)
        if not match or {"", ".", ".."} & set(rest.split("/")):
            raise UsageError(f"reference {text!r}: expected {form}")
        return kind(**{name: part for name, part in match.groupdict().items() if part})
    if "/" in text or "\\" in text or text[0] in ".~" or text.lower().endswith(".gguf"):
        return FileRef(Path(text).expanduser())
    name, colon, variant = text.partition(":")
    if not _NAME.match(name) or (colon and not _NAME.match(variant)):
        raise UsageError(
            f"reference {text!r}: expected NAME or NAME:VARIANT of letters, digits, '.', '_' and '-'",
            hint="a path needs a '/', for example ./model.gguf; `tea-models list` shows the names",
        )
    return NameRef(name, variant or None)


def _parse_url(text: str) -> Reference:
    if " " in text.partition("://")[2].partition("/")[0]:
        raise UsageError("reference: the address has a space in its host")  # not shown: it may be that of a password
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError as error:
        raise UsageError(f"reference {text!r}: not a valid address: {error}") from None
    if not parts.scheme:
        raise UsageError(f"reference {text!r}: expected SCHEME://…")
    if parts.scheme not in ("https", "http"):
        return FsspecRef(text)
    if not host:
        raise UsageError(f"reference {text!r}: the address has no host")
    url, _, fragment = text.partition("#")
    key, _, value = fragment.lower().partition("=")
    if fragment and (key != "sha256" or not SHA256.match(value)):
        raise UsageError(f"reference {text!r}: expected '#sha256=' and 64 hexadecimal digits after the address")
    return UrlRef(url, value or None)


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
