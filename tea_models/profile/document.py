"""A profile as a JSON document: written, read back, compared."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tea_models.errors import ConfigError, MissingFileError
from tea_models.profile.facts import SCHEMA, ChatFacts, Fact, ModelProfile, ProfileFile, TokenizerFacts, WeightFacts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What a leaf's value must be; `object` groups of facts are listed by their class.
_TEXT, _NUMBER, _REAL, _FLAG = (str,), (int,), (int, float), (bool,)
_TOP: dict[str, tuple[type, ...]] = {
    "kind": _TEXT,
    "name": (*_TEXT, type(None)),
    "architecture": _TEXT,
    "quantization": (*_TEXT, type(None)),
    "bits_per_weight": _REAL,
    "parameters": _NUMBER,
    "context_length": (*_NUMBER, type(None)),
    "embedding_length": (*_NUMBER, type(None)),
    "license": (*_TEXT, type(None)),
    "pooling": (*_TEXT, type(None)),
}
_TOKENIZER: dict[str, tuple[type, ...]] = {
    "model": (*_TEXT, type(None)),
    "pre": (*_TEXT, type(None)),
    "vocab_size": (*_NUMBER, type(None)),
    "bos": (*_NUMBER, type(None)),
    "eos": (*_NUMBER, type(None)),
    "eot": (*_NUMBER, type(None)),
    "bos_token": (*_TEXT, type(None)),
    "eos_token": (*_TEXT, type(None)),
    "eot_token": (*_TEXT, type(None)),
    "add_bos": _FLAG,
    "add_eos": _FLAG,
}
_CHAT: dict[str, tuple[type, ...]] = {
    "template": (*_TEXT, type(None)),
    "template_sha256": (*_TEXT, type(None)),
    "format": (*_TEXT, type(None)),
    "system_role": _FLAG,
    "tools": _FLAG,
    "stop": (tuple,),
    "thinking": (*_TEXT, type(None)),
    "default_system_prompt": (*_TEXT, type(None)),
    "emits_bos": _FLAG,
}


def to_json(profile: ModelProfile) -> dict[str, Any]:
    """The profile as the document that `profile --json` prints: each leaf is `{"value", "source"}`."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in profile.files],
        "header_sha256": profile.header_sha256,
    }
    for name in _TOP:
        document[name] = _leaf(getattr(profile, name))
    document["tokenizer"] = {name: _leaf(getattr(profile.tokenizer, name)) for name in _TOKENIZER}
    document["chat"] = {name: _leaf(getattr(profile.chat, name)) for name in _CHAT}
    document["chat"]["warnings"] = list(profile.chat.warnings)
    weights = {item.name: getattr(profile.weights, item.name) for item in fields(WeightFacts)}
    document["weights"] = weights | {"blocks": list(profile.weights.blocks)}
    document["hyperparameters"] = {key: _leaf(profile.hyperparameters[key]) for key in sorted(profile.hyperparameters)}
    document["warnings"] = list(profile.warnings)
    return document


def from_json(document: Mapping[str, Any], *, file: str = "") -> ModelProfile:
    """Read a profile back.

    Args:
        document: What `to_json` made.
        file: Where it was read from, for messages.

    Raises:
        ConfigError: It is not such a document; names the key and what was expected.
    """
    return _Reader(file).profile(document)


def load_profile(path: Path) -> ModelProfile:
    """Read a profile from a JSON file.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: It is not a profile.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't be read: {error}", file=str(path)) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"not JSON: {getattr(error, 'msg', error)}", file=str(path), line=line) from None
    return from_json(document, file=str(path))


def profile_differences(before: ModelProfile, after: ModelProfile) -> list[tuple[str, Any, Any]]:
    """What differs between two profiles: dotted key and the value in each (None where it is missing)."""
    left, right = _flat(to_json(before)), _flat(to_json(after))
    keys = list(dict.fromkeys((*left, *right)))
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def _leaf(fact: Fact[Any]) -> dict[str, Any]:
    value = list(fact.value) if isinstance(fact.value, tuple) else fact.value
    return {"value": value, "source": fact.source}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and set(value) == {"value", "source"}:
        return {key: value["value"]}
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, item in value.items():
            found |= _flat(item, f"{key}.{name}" if key else name)
        return found
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {name: item for index, part in enumerate(value) for name, item in _flat(part, f"{key}[{index}]").items()}
    return {key: value}


class _Reader:
    """Reads a document from outside: every type is checked, every error names its key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def profile(self, document: Any) -> ModelProfile:
        data = self._dict(document, "")
        schema = data.get("schema")
        if schema != SCHEMA:
            raise self._error(
                "schema", f"expected {SCHEMA!r}, found {schema!r}", hint="make it again: tea-models profile"
            )
        tokenizer, chat = self._dict(data.get("tokenizer"), "tokenizer"), self._dict(data.get("chat"), "chat")
        hyperparameters = self._dict(data.get("hyperparameters"), "hyperparameters")
        return ModelProfile(
            files=tuple(self._file(item, index) for index, item in enumerate(self._list(data, "files"))),
            header_sha256=self._value(data.get("header_sha256"), "header_sha256", _TEXT),
            **{name: self._fact(data, name, types) for name, types in _TOP.items()},
            tokenizer=TokenizerFacts(
                **{name: self._fact(tokenizer, name, types, "tokenizer.") for name, types in _TOKENIZER.items()}
            ),
            chat=ChatFacts(
                **{name: self._fact(chat, name, types, "chat.") for name, types in _CHAT.items()},
                warnings=self._texts(chat, "warnings", "chat."),
            ),
            weights=self._weights(self._dict(data.get("weights"), "weights")),
            hyperparameters={
                key: self._fact(hyperparameters, key, (int, float, str, bool, tuple), "hyperparameters.")
                for key in hyperparameters
            },
            warnings=self._texts(data, "warnings"),
        )

    def _fact(self, data: Mapping[str, Any], name: str, types: tuple[type, ...], prefix: str = "") -> Fact[Any]:
        key = prefix + name
        leaf = self._dict(data.get(name), key)
        value = leaf.get("value")
        value = tuple(value) if isinstance(value, list) else value
        self._value(value, f"{key}.value", types)
        if isinstance(value, tuple) and tuple in types:
            kinds = (str,) if name == "stop" else (int, float, str, bool)
            for index, item in enumerate(value):
                self._value(item, f"{key}.value[{index}]", kinds)
        return Fact(value, self._value(leaf.get("source"), f"{key}.source", _TEXT))

    def _file(self, item: Any, index: int) -> ProfileFile:
        key = f"files[{index}]"
        data = self._dict(item, key)
        return ProfileFile(
            self._value(data.get("name"), f"{key}.name", _TEXT),
            self._value(data.get("size"), f"{key}.size", _NUMBER),
            self._value(data.get("sha256"), f"{key}.sha256", (str, type(None))),
        )

    def _weights(self, data: Mapping[str, Any]) -> WeightFacts:
        blocks = self._list(data, "blocks", "weights.")
        return WeightFacts(
            blocks=tuple(self._value(item, f"weights.blocks[{i}]", _NUMBER) for i, item in enumerate(blocks)),
            **{
                name: self._value(data.get(name), f"weights.{name}", _NUMBER)
                for name in ("total", "token_embedding", "output", "other")
            },
        )

    def _texts(self, data: Mapping[str, Any], name: str, prefix: str = "") -> tuple[str, ...]:
        items = self._list(data, name, prefix)
        return tuple(self._value(item, f"{prefix}{name}[{index}]", _TEXT) for index, item in enumerate(items))

    def _list(self, data: Mapping[str, Any], name: str, prefix: str = "") -> list[Any]:
        value = data.get(name)
        if not isinstance(value, list):
            raise self._error(prefix + name, f"expected a list, found {_shown(value)}")
        return value

    def _dict(self, value: Any, key: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(key, f"expected an object, found {_shown(value)}")
        return value

    def _value(self, value: Any, key: str, types: tuple[type, ...]) -> Any:
        # A bool is an int to Python, not to us.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("null" if kind is type(None) else _JSON_NAMES[kind] for kind in types)
            raise self._error(key, f"expected {wanted}, found {_shown(value)}")
        return value

    def _error(self, key: str, problem: str, *, hint: str = "") -> ConfigError:
        return ConfigError(problem, file=self.file, key=key, hint=hint)


_JSON_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
}


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
