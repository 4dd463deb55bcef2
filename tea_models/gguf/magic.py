"""What a file is when it is not GGUF, told by its first bytes."""

from __future__ import annotations

MAGIC = b"GGUF"

_LEGACY = {b"lmgg": "GGML", b"tjgg": "GGJT", b"fmgg": "GGMF", b"algg": "GGLA"}
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive, as PyTorch checkpoints and wheels are", "convert PyTorch weights to GGUF first"),
    (
        b"\x80\x02",
        "a Python pickle, as old PyTorch checkpoints are",
        "convert it to GGUF first, and only if you trust it",
    ),
    (b"\x89HDF", "an HDF5 file, as Keras weights are", "convert it to GGUF first"),
    (b"\x1f\x8b", "gzip-compressed data", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "decompress it first"),
    (b"BZh", "bzip2-compressed data", "decompress it first"),
    (b"\xfd7zXZ", "xz-compressed data", "decompress it first"),
)


def explain_foreign(head: bytes) -> tuple[str, str]:
    """Say what a file without the GGUF magic seems to be.

    Args:
        head: Its first bytes; 512 are enough.

    Returns:
        What was found there, and what to do; the latter may be empty.
    """
    if not head:
        return "the file is empty", "download it again"
    if not head.strip(b"\0"):
        return "found zeros", "the download was probably cut short: fetch the file again"
    if head.startswith(b"FUGG"):
        return (
            "found the magic of GGUF with its bytes swapped",
            "the file was byte-swapped as a whole: convert it again",
        )
    if head[:4] in _LEGACY:
        return (
            f"found a {_LEGACY[head[:4]]} file, the format before GGUF (2023)",
            "get the model as GGUF; llama.cpp no longer reads this one",
        )
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            return f"found {what}", hint
    if len(head) >= 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "found a safetensors file", "convert it with llama.cpp's convert_hf_to_gguf.py, or get the model as GGUF"
    return _explain_text(head)


def _explain_text(head: bytes) -> tuple[str, str]:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs"):
        return "found a Git LFS pointer, not the file it points to", "run `git lfs pull`, or download the file itself"
    if text[:15].lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "found a web page",
            "the address answers a page (a login, perhaps), not the file; check the link and the token",
        )
    if text[:1] in (b"{", b"["):
        return "found JSON", "the server may have answered an error instead of the file"
    return f"found {head[:4].decode('ascii', 'backslashreplace')!r}", ""
