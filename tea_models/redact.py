"""`redact`: a text as it may be printed, logged and recorded: no password, token or signature in any address in it."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

_USERINFO = re.compile(r"://[^\s/?#]*@")
_ADDRESS = re.compile(r"://[^\s\"'<>]*")
_SECRET_NAME = re.compile(r"token|secret|sig|key|auth|pass|credential|x-amz-|x-goog-|policy", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|AKIA|eyJ)[A-Za-z0-9_.-]{12,}")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


def redact(text: str) -> str:
    """Remove user and password, what looks like a secret in the query, and a token of the Hub."""
    if "://" in text:
        text = _USERINFO.sub("://", text)
        if "?" in text or "#" in text:
            text = _ADDRESS.sub(_without_secrets, text)
    return _HUB_TOKEN.sub("***", text) if "hf_" in text else text


def redact_data(data: Any) -> Any:
    """What JSON can say, with the same done to every text; dataclasses become objects and paths texts."""
    match data:
        case str() | PurePath():
            return redact(str(data))
        case dict():
            return {redact(key) if isinstance(key, str) else key: redact_data(value) for key, value in data.items()}
        case list() | tuple():
            return [redact_data(item) for item in data]
    if is_dataclass(data):
        return {field.name: redact_data(getattr(data, field.name)) for field in fields(data)}
    return data


def redact_record(record: logging.LogRecord) -> bool:
    """A filter for the loggers of HTTP clients, which log every address that they ask."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def _without_secrets(match: re.Match[str]) -> str:
    address = match[0].rstrip(":;,.)")
    end_of_sentence = match[0][len(address) :]
    address, _, fragment = address.partition("#")
    address, _, query = address.partition("?")
    items = [item for item in query.split("&") if item]
    kept = [item for item in items if not _is_secret(*item.partition("=")[::2])]
    # The fragment of a signed address may be another secret; a pin is none.
    if not fragment.startswith("sha256=") and (len(kept) < len(items) or _SECRET_NAME.search(fragment)):
        fragment = ""
    return address + ("?" + "&".join(kept) if kept else "") + (f"#{fragment}" if fragment else "") + end_of_sentence


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.match(value))
