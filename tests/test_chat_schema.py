"""What a schema's grammar lets through is valid, or the schema is refused with the keyword that is the reason."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tea_models.chat.schema import SchemaGrammar, unenforceable
from tea_runtime.answer_format import mismatch
from tea_runtime.backend import LlmCallParams
from tea_runtime.llama.constraint import schema_grammar
from tea_runtime.llama.sampling import Sampler
from tea_runtime.llama.weights import LoadOptions, Weights
from tests.gbnf_sample import Grammar
from tests.scripted_model import build_scripted

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/tree_node",
    "$defs": {
        "tree_node": {
            "type": "object",
            "properties": {"value": {"type": "number"}, "left": {"$ref": "#/$defs/tree_node"}},
            "required": ["value"],
        }
    },
}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["lives"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "name": {"type": "string"}}}

ENFORCED: dict[str, Any] = {
    "a person": PERSON,
    "anything": {},
    "annotations only": {"title": "T", "description": "D", "default": 1, "examples": [], "$comment": "c", "x-y": 1},
    "any object": {"type": "object"},
    "true": {"type": "object", "properties": {"x": True}, "required": ["x"]},
    "required without properties": {"type": "object", "required": ["a", "b"]},
    "additional allowed": {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True},
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "an empty object": {"type": "object", "additionalProperties": False},
    "a list": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
    "a list of anything": {"type": "array", "items": {}},
    "a bounded list of anything": {"type": "array", "minItems": 2, "maxItems": 2},
    "an empty list": {"type": "array", "items": False},
    "no item": {"type": "array", "items": {"type": "null"}, "maxItems": 0},
    "a tuple": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "a least length": {"minLength": 3},
    "a pattern": {"type": "string", "pattern": "^[a-z]{2,4}-(x|yz)+[0-9]?$"},
    "a pattern with escapes": {"type": "string", "pattern": r"^a\(b\)[\]x-]*é$"},
    "a date": {"type": "string", "format": "date"},
    "a time": {"type": "string", "format": "date-time"},
    "a uuid": {"type": "object", "properties": {"id": {"type": "string", "format": "uuid"}}},
    "an enum": {"enum": ["a", 1, None, True, [1], {"k": "v"}, 1.5, "é☃"]},
    "an enum with a type": {"type": "string", "enum": ["a", "b"]},
    "a nullable enum": {"type": ["string", "null"], "enum": ["a", None]},
    "a const": {"const": {"a": [1, "b"]}},
    "types": {"type": ["string", "null"], "minLength": 1},
    "any of": {"anyOf": [{"type": "integer"}, PERSON, {"type": "array", "items": {"type": "null"}}]},
    "one of types": {"oneOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
    "one of by a property": {"oneOf": [CAT, DOG], "discriminator": {"propertyName": "kind"}},
    "one of by reference": {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "$defs": {"cat": CAT, "dog": DOG},
    },
    "all of one": {
        "type": "object",
        "properties": {"e": {"allOf": [{"$ref": "#/$defs/e"}], "description": "x"}},
        "$defs": {"e": {"enum": ["p", "q"]}},
    },
    "a tree": TREE,
    "a list of itself": {"type": "array", "items": {"$ref": "#"}},
    "names that fall together": {
        "type": "object",
        "properties": {
            "person": {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"]},
            "other": {"$ref": "#/$defs/person"},
            "text": {"$ref": "#/$defs/string"},
        },
        "required": ["person", "other", "text"],
        "$defs": {"person": {"enum": ["me"]}, "string": {"enum": [7]}},
    },
    "an escaped pointer": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "boolean"}}},
    "names of every shape": {
        "type": "object",
        "properties": {
            "root": {"type": "null"},
            "space": {"enum": [1]},
            "string": {"type": "object", "properties": {"a b_c-d": {"type": "boolean"}}},
            "a-kv": {"type": "null"},
            "a": {"enum": [2]},
            "ref-0": {"type": "null"},
        },
        "required": ["root", "space"],
    },
    "many optional properties": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(12)}},
    "a property without a name": {"properties": {"": {"enum": [1]}, "a": {}}, "required": [""]},
    "keys and constants of every kind": {
        "properties": {
            'a"b\\': {"const": 'say "hi"\n\\ \x7f'},
            "😀\n": {"enum": ["😀", "\ud800", "\u2028", {"[x]": -0.5}]},
        },
        "required": ['a"b\\', "😀\n"],
    },
    "one of a number and a truth": {"oneOf": [{"const": 1}, {"const": True}, {"const": [1]}, {"const": [True]}]},
    "lengths of any characters": {"type": "string", "minLength": 2, "maxLength": 2},
    "typed additional properties": {
        "properties": {"a": {}},
        "required": ["b"],
        "additionalProperties": {"type": "null"},
    },
    "an optional false": {"type": "object", "properties": {"a": False, "b": {}}},
    "an identity of the root": {"$id": "https://example.com/a", "$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}},
    "every format": {
        "properties": {
            name.replace("-", "_"): {"type": "string", "format": name}
            for name in ("date", "time", "date-time", "uuid", "uuid1", "uuid4", "uuid5")
        },
        "required": ["date", "time", "date_time", "uuid", "uuid1", "uuid4", "uuid5"],
    },
    "what pydantic writes": {
        "$defs": {"Size": {"enum": ["s", "m"], "title": "Size", "type": "string"}},
        "properties": {
            "name": {"title": "Name", "type": "string"},
            "size": {"$ref": "#/$defs/Size", "description": "how big", "default": "s"},
            "tags": {"default": [], "items": {"type": "string"}, "type": "array"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "born": {"format": "date", "type": "string"},
        },
        "required": ["name", "born"],
        "title": "Order",
        "type": "object",
    },
}

REFUSED: dict[str, tuple[Any, str]] = {
    "beside a reference": ({"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": {"type": "string"}}}, "#/maxLength"),
    "beside any of": ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"}, "#/type"),
    "beside a reference of one of": (
        {
            "oneOf": [{"$ref": "#/$defs/cat", "maxProperties": 1}, {"$ref": "#/$defs/dog"}],
            "$defs": {"cat": CAT, "dog": DOG},
        },
        "#/oneOf/0/maxProperties",
    ),
    "several all of": ({"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, "#/allOf"),
    "both unions": ({"anyOf": [{"type": "null"}], "oneOf": [{"type": "null"}]}, "#/anyOf"),
    "a tuple that goes on": ({"prefixItems": [{}], "items": {"enum": [1]}, "minItems": 3}, "#/prefixItems"),
    "a tuple that ends": ({"prefixItems": [{}, False, {}]}, "#/prefixItems/1"),
    "minimum": (
        {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}},
        "#/properties/age/minimum",
    ),
    "multiple": ({"type": "number", "multipleOf": 2}, "#/multipleOf"),
    "untyped maximum": ({"maximum": 2}, "#/maximum"),
    "unique items": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "#/uniqueItems"),
    "contains": ({"type": "array", "contains": {"const": 1}}, "#/contains"),
    "pattern properties": ({"type": "object", "patternProperties": {"^a": {}}}, "#/patternProperties"),
    "property names": ({"type": "object", "propertyNames": {"maxLength": 3}}, "#/propertyNames"),
    "many properties": ({"type": "object", "minProperties": 2}, "#/minProperties"),
    "one unique item": (
        {"type": "array", "items": {"type": "null"}, "uniqueItems": True, "maxItems": 1},
        "#/uniqueItems",
    ),
    "nothing unevaluated": ({"properties": {"a": {}}, "unevaluatedProperties": False}, "#/unevaluatedProperties"),
    "a reference to what is no definition": ({"$ref": "#/x", "x": {"required": 5}}, "#/$ref"),
    "a reference to a definition with an identity": ({"$ref": "#/$defs/n", "$defs": {"n": {"$id": "urn:n"}}}, "#/$ref"),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "#/dependentRequired"),
    "not": ({"not": {"type": "string"}}, "#/not"),
    "if": ({"type": "object", "if": {}, "then": {}}, "#/if"),
    "email": ({"type": "string", "format": "email"}, "#/format"),
    "int32": ({"type": "integer", "format": "int32"}, "#/format"),
    "pattern and length": ({"type": "string", "pattern": "^a*$", "maxLength": 3}, "#/maxLength"),
    "format and length": ({"type": "string", "format": "date", "maxLength": 3}, "#/maxLength"),
    "a remote reference": ({"$ref": "https://example.com/schema.json"}, "#/$ref"),
    "a reference to a file": ({"$ref": "other.json#/x"}, "#/$ref"),
    "a dangling reference": ({"type": "array", "items": {"$ref": "#/$defs/none"}}, "#/items/$ref"),
    "a reference to itself": ({"$ref": "#"}, "#/$ref"),
    "references in a circle": (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]},
                "b": {"allOf": [{"$ref": "#/$defs/a"}]},
            },
        },
        "/$ref",
    ),
    "beside an enum": ({"enum": ["a", "bb"], "maxLength": 1}, "#/maxLength"),
    "one of that overlap": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "#/oneOf"),
    "one of objects": ({"oneOf": [{"type": "object"}, PERSON]}, "#/oneOf"),
    "an empty union": ({"anyOf": []}, "#/anyOf"),
    "a nested identity": (
        {"properties": {"a": {"$id": "https://example.com/a", "$ref": "#/$defs/n"}}, "$defs": {"n": {}}},
        "#/properties/a/$id",
    ),
    "a reference across an identity": (
        {"properties": {"a": {"$ref": "#/$defs/n/items"}}, "$defs": {"n": {"$id": "urn:n", "items": {}}}},
        "#/properties/a/$ref",
    ),
    "one of equal numbers": ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf"),
    "one of equal numbers in lists": ({"oneOf": [{"const": [1]}, {"enum": [[1.0], 2]}]}, "#/oneOf"),
    "an anchor": ({"$ref": "#name", "$defs": {"n": {"$anchor": "name"}}}, "#/$ref"),
    "an index with a zero in front": ({"$ref": "#/anyOf/00", "anyOf": [{}]}, "#/$ref"),
    "an old tuple": ({"type": "array", "items": [{"type": "null"}]}, "#/items"),
    "only false": ({"anyOf": [False, False]}, "#/anyOf/1"),
    "a required false": ({"properties": {"a": False}, "required": ["a"]}, "#/properties/a"),
    "unevaluated and unnamed": ({"required": ["a"], "unevaluatedProperties": False}, "#/unevaluatedProperties"),
    "an unknown type": ({"type": "text"}, "#/type"),
    "a rule of the converter as type": ({"type": "char"}, "#/type"),
    "an empty enum": ({"enum": []}, "#/enum"),
    "an enum of another type": ({"enum": ["a"], "type": "integer"}, "#/enum"),
    "too many repetitions": ({"type": "array", "items": {}, "minItems": 10**9}, "#/minItems"),
    "a long text": ({"type": "string", "maxLength": 100_000}, "#/maxLength"),
    "more than the most": ({"type": "string", "minLength": 3, "maxLength": 2}, "#/minLength"),
    "half an item": ({"type": "array", "minItems": 1.5}, "#/minItems"),
    "required that is no list": ({"type": "object", "required": [[]]}, "#/required/0"),
    "a list that holds itself for ever": ({"type": "array", "prefixItems": [{"$ref": "#"}]}, "#"),
    "a list that is never empty": ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "#"),
    "a chain without an end": ({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, "#"),
    "a list": ([], "#"),
    "not a number": ({"const": float("nan")}, "#"),
}


@pytest.mark.parametrize("name", ENFORCED)
def test_a_schema_that_can_be_enforced_is_not_refused(name: str) -> None:
    assert unenforceable(ENFORCED[name]) == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_enforced_is_named(name: str) -> None:
    schema, place = REFUSED[name]
    found = unenforceable(schema)
    assert any(problem.split(" (")[0].endswith(place) for problem in found), found


@pytest.mark.parametrize(
    "pattern",
    [
        "^(a", "^a)$", "^[a$", "^a{9999}$", "^(a{100}){100}$", "^a$b$", "^*$", "^(*a)$", 7, "^[]$", "^[z-a]$", r"^(a)\1$",
        "^(?=a)b$", "(?!a)", r"\bword\b", "(?i)abc", "(?P<name>a)", "^a{,3}$", r"^\p{L}$", r"\A", "a^", "(^a)", "^a|b$", "^a$|^bc?$", "^[\x01-\x05]$",
        "^[\x00-\x1f]$", '^["\\\\]+$', "^(?>a)$", "^a++$", "^\ud800$", "(" * 3000 + ")" * 3000,
    ],
)  # fmt: skip
def test_patterns_that_a_grammar_can_not_hold_are_refused(pattern: Any) -> None:
    (problem,) = unenforceable({"type": "object", "properties": {"a/b": {"type": "string", "pattern": pattern}}})
    assert problem.startswith("#/properties/a~1b/pattern (")


PATTERNS = [
    "^[a-z]{2,4}-(x|yz)+[0-9]?$", r"^a\(b\)[\]x-]*é$", "abc", "^abc", "abc$", "^(?:a|b)+$", "^.*$",
    "^[^a]+$", r"^\d+\.\d{2}$", r"^\w+@\w+\.com$", r"\s\S\W\D", '^"$', r"^\\$", "^a\tb$", "^a*?$", "^[ -~]$", "^()$", "^(a|)$",
    "^$", "", "^", "$", r"^\*+$", r"^[\d\s]$", r"^[^\w]$", r"^[^\D]$", r"^[^\s@]+@\S+$", "^\U0001f600?$", "^[\ud7ff-\uffff]$", "a|b|",
    "^a{0}b{0,0}c{2}$", r"^\u00e9\x41\n$", "^[-^a]$", r"^[\]\[]$", "^]$", "^{$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_of_a_patterns_grammar_matches_it(pattern: str) -> None:
    samples_are_valid({"type": "string", "pattern": pattern}, 40)


def test_a_deep_schema_is_refused_in_time() -> None:
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(500):
        deep = {"type": "array", "items": deep}
    assert any("nested too deeply" in problem for problem in unenforceable(deep))


def test_a_schema_of_references_that_doubles_is_handled_in_time() -> None:
    defs = {
        f"a_{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/a_{i + 1}"} for k in "xy"}} for i in range(40)
    }
    defs["a_24"] = {"type": "null"}
    assert unenforceable({"$ref": "#/$defs/a_0", "$defs": defs}) == ()


def test_a_big_schema_is_refused() -> None:
    assert unenforceable({"type": "object", "properties": {f"p{i}": {} for i in range(5000)}}) == ("# (too large)",)


def test_the_schema_of_the_caller_is_not_changed() -> None:
    for schema in ENFORCED.values():
        before = json.dumps(schema)
        unenforceable(schema)
        assert json.dumps(schema) == before


def samples_are_valid(schema: Any, count: int, rng: random.Random | None = None, room: int = 400) -> None:
    """Texts of the schema's grammar, read as JSON, follow the schema."""
    builder = SchemaGrammar()
    root = builder.add(schema)
    assert builder.problems == ()
    rules = Grammar(builder.text(root))
    rng = rng or random.Random(json.dumps(schema))
    for _ in range(count):
        text = rules.sample(rng, room)
        assert mismatch(json.loads(text), schema) == "", text


@pytest.mark.parametrize("name", ENFORCED)
def test_every_text_of_a_schemas_grammar_is_valid(name: str) -> None:
    samples_are_valid(ENFORCED[name], 60)


def test_llama_cpp_reads_the_grammars(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    build_scripted(tmp_path / "m.gguf", [["x"]])
    weights = Weights(tmp_path / "m.gguf", LoadOptions())
    try:
        for schema in (*ENFORCED.values(), *({"type": "string", "pattern": pattern} for pattern in PATTERNS)):
            for temperature in (0.0, 1.0):
                params = LlmCallParams("", temperature=temperature)
                Sampler(weights, params, schema_grammar(schema))
    finally:
        weights.close()


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    """A schema of keywords that may or may not fit together."""
    if rng.random() < 0.04:
        return rng.choice([True, False, {}])
    schema: dict[str, Any] = {}

    def maybe(chance: float, key: str, value: Any) -> None:
        if rng.random() < chance:
            schema[key] = value() if callable(value) else value

    def inner() -> Any:
        return random_schema(rng, depth + 1) if depth < 3 else {"type": rng.choice(["null", "integer"])}

    kind = rng.choice(
        ["object", "array", "string", "number", "integer", "boolean", "null", None, "several", "combined"]
    )
    if kind == "several":
        schema["type"] = rng.sample(["object", "string", "null", "integer", "array"], 2)
    elif kind not in (None, "combined"):
        schema["type"] = kind
    if kind in ("object", "several", None):
        maybe(
            0.8,
            "properties",
            lambda: {name: inner() for name in rng.sample(["a", "b_c", "string", "d e", "a-kv"], rng.randint(0, 3))},
        )
        maybe(0.5, "required", lambda: rng.sample(["a", "b_c", "zz"], rng.randint(0, 2)))
        maybe(0.3, "additionalProperties", lambda: rng.choice([True, False, {"type": "null"}]))
        maybe(0.05, "minProperties", 1)
        maybe(0.05, "maxProperties", 2)
    if kind in ("array", "several"):
        maybe(0.6, "items", inner)
        maybe(0.2, "prefixItems", lambda: [inner() for _ in range(rng.randint(1, 2))])
        maybe(0.3, "minItems", lambda: rng.randint(0, 2))
        maybe(0.3, "maxItems", lambda: rng.randint(0, 3))
        maybe(0.05, "uniqueItems", True)
    if kind in ("string", "several"):
        maybe(0.3, "minLength", lambda: rng.randint(0, 3))
        maybe(0.3, "maxLength", lambda: rng.randint(0, 5))
        maybe(0.2, "pattern", lambda: rng.choice(["^a+$", "^[a-c]{1,3}$", "^(x|yy)*z$", "a", "^.$"]))
        maybe(0.1, "format", lambda: rng.choice(["date", "email", "uuid"]))
    if kind in ("number", "integer"):
        maybe(0.1, "minimum", 0)
    if kind in (None, "combined") or rng.random() < 0.05:
        maybe(0.3, "anyOf", lambda: [inner() for _ in range(rng.randint(1, 3))])
        maybe(0.2, "oneOf", lambda: [inner() for _ in range(rng.randint(1, 2))])
        maybe(0.2, "allOf", lambda: [inner() for _ in range(rng.randint(1, 2))])
        maybe(0.3, "enum", lambda: rng.sample(["a", "b", 1, None, [], {}, "x\ny"], 2))
        maybe(0.1, "const", lambda: rng.choice(["a", 1, None]))
        maybe(0.3, "$ref", lambda: rng.choice(["#/$defs/string", "#/$defs/a_b", "#/$defs/a", "#"]))
    return schema


@given(st.integers(0, 2**32))
def test_no_random_schema_fails_open(seed: int) -> None:
    """Whatever is not refused is enforced: the promise behind `Fail closed`."""
    rng = random.Random(seed)
    for _ in range(20):
        schema = random_schema(rng)
        if isinstance(schema, dict):
            schema["$defs"] = {name: random_schema(rng, 2) for name in ("string", "a_b", "a")}
            if not unenforceable(schema):
                samples_are_valid(schema, 3, rng, 120)
