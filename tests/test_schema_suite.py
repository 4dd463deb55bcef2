"""JSON-Schema-Test-Suite, draft 2020-12: what is accepted is enforced, and what is refused is named.

The suite is not part of this project: `JSON_SCHEMA_TEST_SUITE` names a folder with a copy of
https://github.com/json-schema-org/JSON-Schema-Test-Suite.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tea_models.chat.schema import SchemaGrammar
from tea_runtime.answer_format import mismatch
from tests.gbnf_sample import Grammar

FOLDER = os.environ.get("JSON_SCHEMA_TEST_SUITE", "")
CASES = [
    (f"{path.stem}: {case['description']}", case["schema"])
    for path in sorted(Path(FOLDER, "tests", "draft2020-12").rglob("*.json") if FOLDER else ())
    for case in json.loads(path.read_text("utf-8"))
]


@pytest.mark.skipif(not CASES, reason="JSON_SCHEMA_TEST_SUITE names no copy of the suite")
def test_what_is_accepted_is_enforced_and_what_is_refused_is_named() -> None:
    accepted, texts, wrong = 0, 0, []
    for name, schema in CASES:
        builder = SchemaGrammar()
        root = builder.add(schema)
        for problem in builder.problems:
            pointer, _, reason = problem.partition(" (")
            named = f'"{pointer.rpartition("/")[2]}": ' in json.dumps(schema)
            if not re.match(r"#(/|$)", pointer) or not (exists(schema, pointer) or named or reason):
                wrong.append((name, problem))
        if builder.problems:
            continue
        accepted += 1
        rules = Grammar(builder.text(root))
        rng = random.Random(name)
        for _ in range(60):
            text = rules.sample(rng)
            texts += 1
            if found := mismatch(json.loads(text), schema):
                wrong.append((name, f"{text}: {found}"))
    print(f"{len(CASES)} schemas: {accepted} accepted ({texts} texts), {len(CASES) - accepted} refused")
    assert wrong == []


def exists(schema: Any, pointer: str) -> bool:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            schema = schema[int(key) if isinstance(schema, list) else key]
        except (KeyError, IndexError, ValueError, TypeError):
            return False
    return True
