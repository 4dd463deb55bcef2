"""A profile as a JSON document: written, read back, compared. Its shape is that of the types in `facts`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tea_models.errors import ConfigError, MissingFileError
from tea_models.profile.facts import SCHEMA, Fact, ModelProfile


def to_json(profile: ModelProfile) -> dict[str, Any]:
    """The profile as the document that `profile --json` prints: each leaf is `{"value", "source"}`."""
    return {"schema": SCHEMA, **_as_json(profile)}


def from_json(document: Any, *, file: str = "") -> ModelProfile:
    """Read back what `to_json` made, from a file of that name; a ConfigError names the key and what was expected."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        problem = f"expected {SCHEMA!r}, found {_shown(schema)}"
        raise ConfigError(problem, file=file, key="schema", hint="make it again: tea-models profile")
    try:
        profile: ModelProfile = _read(ModelProfile, document, "")
    except ConfigError as error:
        raise ConfigError(error.message, file=file) from None
    return profile


def load_profile(path: Path) -> ModelProfile:
    """Read a profile from a JSON file, or raise a MissingFileError or ConfigError."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"can't be read as JSON: {error}", file=str(path)) from None
    return from_json(document, file=str(path))


def shipped_profile(sha256: str) -> ModelProfile | None:
    """The profile that comes with this package for a file that no source lets us look into before it is fetched.

    Made by `tea-models profile NAME -o tea_models/profile/shipped/SHA256.json`.
    """
    path = Path(__file__).with_name("shipped") / f"{sha256}.json"
    return load_profile(path) if path.is_file() else None


def leaves(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf of a profile's document by its dotted key: what has a source, and plain values."""
    found: dict[str, Any] = {}
    for name, item in document.items():
        key = prefix + name
        if isinstance(item, dict) and set(item) != {"value", "source"}:
            found |= leaves(item, f"{key}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for index, part in enumerate(item):
                found |= leaves(part, f"{key}[{index}].")
        else:
            found[key] = item
    return found


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(value[key]) for key in sorted(value)}
    return value


#: The type of each field of a dataclass.
field_types = cache(typing.get_type_hints)


def _read(kind: Any, value: Any, key: str) -> Any:
    """Build a value of a type from JSON; every type is checked, every error names its key."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Fact, dict) or is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"expected an object, found {_shown(value)}", key=key)
        if origin is dict:
            wanted = dict.fromkeys(value, arguments[1])
        else:
            wanted = {"value": arguments[0], "source": str} if origin is Fact else field_types(kind)
        prefix = f"{key}." if key else ""
        parts = {name: _read(hint, value.get(name), prefix + name) for name, hint in wanted.items()}
        return parts if origin is dict else (origin or kind)(**parts)
    kinds = arguments if origin is types.UnionType else (kind,)
    lists = [one for one in kinds if typing.get_origin(one) is tuple]
    if lists and isinstance(value, list):
        item_kind = typing.get_args(lists[0])[0]
        return tuple(_read(item_kind, item, f"{key}[{index}]") for index, item in enumerate(value))
    if typing.get_origin(kind) is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"expected one of {', '.join(map(str, arguments))}, found {_shown(value)}", key=key)
        return value
    plain = tuple(one for one in kinds if one not in lists)
    accepted = (*plain, int) if float in plain else plain
    # A bool is an int to Python, not to us.
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in plain):
        expected = " or ".join(_NAMES.get(one, "a list") for one in kinds)
        raise ConfigError(f"expected {expected}, found {_shown(value)}", key=key)
    return value


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
