"""Conditions of edges mean what people mean by them."""

from __future__ import annotations

import pytest

from tea_models.errors import ConfigError, UsageError
from tea_runtime.workflow.templating import check_condition, decide
from tests.workflows import parse_workflow

STATE = {"n": 5, "name": "x", "empty": "", "no": "false", "evil": "' == '' or true or '", "words": "2 < 3", "list": [1]}
CONTEXT = {"state": STATE, "variables": {"limit": 3}}


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        (True, True),
        ("false", False),
        ("n", True),
        ("missing", False),
        ("!missing", True),
        ("state.n < 3", False),
        ("{{ state.n }} < 3", False),
        ("{{ state.n }} > 3", True),
        ("{{ state.n }} > {{ variables.limit }}", True),
        ("3 > {{ state.n }}", False),
        ("{{ state.n < 3 }}", False),
        ("{{ state.name }} == 'x'", True),
        ("'{{ state.name }}' == 'x'", True),
        ("'{{ state.name }}' == 'y'", False),
        ('"{{ state.n }}" == "5"', True),
        ("'{{ state.evil }}' == 'y'", False),
        ("{{ state.evil }} == 'y'", False),
        ("{{ state.words }} == '2 < 3'", True),
        ("not {{ state.empty }}", True),
        ("!{{ state.name }}", False),
        ("! state.n < 3", True),
        ("{{ state.no }}", False),
        ("{{ state.list | length }} == 1", True),
        ("{{ state.n }} in [5, 6] and {{ state.name }} == 'x'", True),
        ("{% if state.n < 3 %}true{% else %}false{% endif %}", False),
        ("{% if state.empty %}true{% endif %}", False),
    ],
)
def test_a_condition_compares_values(condition, value):
    check_condition(condition)
    assert decide(condition, CONTEXT) is value


@pytest.mark.parametrize(
    "condition",
    [
        "{{ state.n }} and then some",
        "'{{ state.n }} of ' == '{{ state.n }}'",
        "'n is {{ state.n }}' == 'n is 5'",
        "{{ state.n }} <",
        "state.n >",
        "{{ }} < 3",
    ],
)
def test_what_can_not_be_meant_is_refused_with_the_right_spelling(condition):
    with pytest.raises(UsageError):
        check_condition(condition)
    text = f'nodes: [{{name: a, run: pass}}]\nedges:\n  - {{from: a, to: a, when: "{condition}"}}\n'
    with pytest.raises(ConfigError, match=r"w\.yaml:3: edges\[0\]"):
        parse_workflow(text, name="w.yaml")


def test_a_text_that_is_no_answer_is_refused():
    with pytest.raises(UsageError, match="comes out as the text '5 < 3'") as caught:
        decide("{% if true %}{{ state.n }} < 3{% endif %}", CONTEXT)
    assert "state.n < 3" in caught.value.hint


def test_a_key_that_is_missing_is_an_error_in_an_expression():
    with pytest.raises(UsageError, match="no key 'gone'"):
        decide("{{ state.gone }} < 3", CONTEXT)
