"""What a file is when it is not GGUF, told by its first bytes."""

from __future__ import annotations

from tea_models.errors import MalformedGGUFError

MAGIC = b"GGUF"

_OLD = "get the model as GGUF; llama.cpp no longer reads this one"
_SIGNATURES: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"FUGG", "the magic of GGUF with its bytes swapped", "the file was byte-swapped as a whole: convert it again"),
    (b"lmgg", "a GGML file, the format before GGUF (2023)", _OLD),
    (b"tjgg", "a GGJT file, the format before GGUF (2023)", _OLD),
    (b"fmgg", "a GGMF file, the format before GGUF (2023)", _OLD),
    (b"algg", "a GGLA file, the format before GGUF (2023)", _OLD),
    (b"PK\x03\x04", "a ZIP archive, as PyTorch checkpoints and wheels are", "convert PyTorch weights to GGUF first"),
    (b"\x80\x02", "a Python pickle, as old PyTorch checkpoints are", "convert it to GGUF, and only if you trust it"),
    (b"\x89HDF", "an HDF5 file, as Keras weights are", "convert it to GGUF first"),
    (b"\x1f\x8b", "gzip-compressed data", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "decompress it first"),
    (b"BZh", "bzip2-compressed data", "decompress it first"),
    (b"\xfd7zXZ", "xz-compressed data", "decompress it first"),
)
_PAGE = "the address answers a page (a login, perhaps), not the file; check the link and the token"
_ERROR = "the server may have answered an error instead of the file"
_TEXTS: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "run `git lfs pull`, or download the file itself"),
    ((b"<!doctype", b"<html", b"<head", b"<?xml"), "a web page", _PAGE),
    ((b"{", b"["), "JSON", _ERROR),
)


def foreign(head: bytes, what: str) -> MalformedGGUFError:
    """The error for a file without the GGUF magic, by its first 512 bytes."""
    found, hint = _explained(head)
    return MalformedGGUFError(what, offset=0, problem=f"expected the magic 'GGUF', {found}", hint=hint)


def _explained(head: bytes) -> tuple[str, str]:
    """What it seems to be, and what to do (or "")."""
    if not head:
        return "the file is empty", "download it again"
    if not head.strip(b"\0"):
        return "found zeros", "the download was probably cut short: fetch the file again"
    if len(head) >= 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "found a safetensors file", "convert it with llama.cpp's convert_hf_to_gguf.py, or get the model as GGUF"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, signatures in ((head, _SIGNATURES), (text, _TEXTS)):
        for signature, what, hint in signatures:
            if start.startswith(signature):
                return f"found {what}", hint
    return f"found {head[:4].decode('ascii', 'backslashreplace')!r}", ""
