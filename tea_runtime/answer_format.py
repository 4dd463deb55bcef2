"""The form that an answer was asked for, and whether it has it: by JSON Schema 2020-12, with the `jsonschema` package.

A grammar binds what a local model says and a server says that it enforces a schema; both are checked afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tea_models.errors import UsageError
from tea_runtime.errors import MissingExtraError


def wanted_schema(response_format: Mapping[str, Any] | None) -> Any:
    """The JSON schema that a response format of OpenAI's asks for, or None for free text."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return {"type": "object"} if schema is None else schema
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if schema is None:
            raise UsageError('response_format: expected {"type": "json_schema", "json_schema": {"schema": {…}}}')
        return schema
    raise UsageError(f"response_format.type: expected text, json_object or json_schema, found {kind!r}")


def check_schema(schema: Any, *, extra: str) -> None:
    """Check that a schema is one; `extra` is the one that brings `jsonschema` where this is used."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
    except ImportError:
        raise MissingExtraError("checking answers against a JSON schema", package="jsonschema", extra=extra) from None
    if not isinstance(schema, Mapping | bool):
        raise UsageError(f"JSON schema: expected a mapping, found {type(schema).__name__}")
    try:
        Draft202012Validator.check_schema(_plain(schema))
    except SchemaError as error:
        raise UsageError(f"JSON schema: #{_pointer(error.absolute_path)}: {error.message[:300]}") from None
    except RecursionError:
        raise UsageError("JSON schema: nested too deeply") from None


def mismatch(value: Any, schema: Any) -> str:
    """Say where a value breaks a schema that `check_schema` let through, or return an empty text."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    # The registry of its own would fetch what a reference points to.
    validator = Draft202012Validator(
        _plain(schema), registry=REGISTRY, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as error:
        raise UsageError(f"JSON schema: it refers to {error.ref!r}, which is not in it") from None
    except RecursionError:
        raise UsageError("JSON schema: it refers to itself for ever, or the answer is nested too deeply") from None
    return "" if error is None else f"at #{_pointer(error.absolute_path)}: {error.message[:300]}"


def format_problem(content: str, schema: Any) -> str:
    """Say why a text is not the JSON that a schema asks for, or return an empty text."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return "it is not JSON"
    return mismatch(value, schema)


def call_problem(calls: Sequence[Mapping[str, Any]] | None, tools: Sequence[Mapping[str, Any]]) -> str:
    """Say why tool calls are not a call of one of `tools` with arguments as its schema has them, or return ""."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    if not calls:
        return "it calls no tool"
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name not in schemas:
            return f"it calls {name!r}, which was not offered"
        problem = format_problem(arguments, schemas[name] or {"type": "object"})
        if problem:
            return f"the arguments of {name}: {problem}"
    return ""


def _plain(value: Any) -> Any:
    """Mappings and sequences of any class as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _pointer(path: Sequence[str | int]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
