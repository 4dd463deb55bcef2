"""`-i`: what a workflow's state starts with, as people type it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.errors import MissingFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEY = re.compile(r"([A-Za-z_][\w-]*)(:?=)(.*)", re.DOTALL)
_PLAIN_TYPES = ("", "str", "string", "any")


def read_inputs(given: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Put the inputs of a command line together, a later one wins; values of a declared type are read as JSON."""
    state: dict[str, Any] = {}
    for text in given:
        found = _KEY.fullmatch(text)
        if found is None:
            state |= _object(text)
            continue
        key, sign, value = found.groups()
        if value.startswith("@"):
            value = _read(value[1:])
        kind = str(schema.get(key) or "").lower()
        if sign == ":=" or kind.partition("[")[0] not in _PLAIN_TYPES:
            state[key] = _json(value, f"--input {key}", expected=kind)
        else:
            state[key] = value
    return state


def _object(text: str) -> dict[str, Any]:
    name = "--input"
    if text.startswith("@"):
        name = text[1:]
        text = _read(name)
    data = _json(text, name)
    if not isinstance(data, dict):
        found = {list: "a list", str: "a text", type(None): "null"}.get(type(data), f"{data!r}")
        raise UsageError(f"{name}: expected a JSON object, found {found}", hint=_advice(text))
    return data


def _json(text: str, name: str, *, expected: str = "") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if expected:
            raise UsageError(f"{name}: expected {expected}, found {text[:40]!r}") from None
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{name}: not valid JSON: {error.msg} at {where}", hint=_advice(text)) from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).expanduser().read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: byte {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise MissingFileError(f"{name}: {(error.strerror or 'can not be read').lower()}") from None


def _advice(text: str) -> str:
    return "" if text.lstrip().startswith("{") else """for example: -i question="…", or -i '{"question": "…"}'"""
