"""Templates of workflows: what they give, and what they may cost."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tea_models.chat.sandbox import Limits
from tea_models.errors import TeaModelsError, UsageError
from tea_runtime import run_workflow
from tea_runtime.workflow import templating
from tea_runtime.workflow.templating import check, decide, render

STATE = {"state": {"items": [1, 2, 3], "text": "a\tb", "big": "x" * 1_000_000}}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(templating, "LIMITS", Limits(seconds=0.3, output=80_000_000))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ state.big }}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ state.big }}{% endfor %}{% endset %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ range(10 ** 10) }}",
        "{{ '%10000000000d' % 5 }}",
        "{{ '%*d' % (10000000000, 5) }}",
        "{{ '{:10000000000}'.format(5) }}",
        "{{ '{:{}}'.format(5, 10000000000) }}",
        "{{ '{:{w}}'.format(5, w=10000000000) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a' | indent(10000000000, first=true) }}",
        "{{ '%10000000000d' | format(5) }}",
        "{{ [1] | batch(10000000000, 'x') | list }}",
        "{{ state.items | tojson(indent=10000000000) }}",
        "{{ state.text.expandtabs(10000000000) }}",
        "{{ state.big.replace('x', state.big) }}",
        "{{ state.big | replace('x', state.big) }}",
        "{{ state.big.join(range(99999) | map('string') | list) }}",
        "{{ range(99999) | list | join(state.big) }}",
        "{{ range(99999) | map('center', 99999) | join }}",
        "{% for i in range(999) %}{{ (state.big * 50) ~ (state.big * 50) }}{% endfor %}",
        "{{ state.big * 90 }}",
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_stopped(template, short):
    with pytest.raises(UsageError):
        render(template, STATE)
    assert render("{{ state.items + [4] }}", STATE) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ 2 ** 10 * 3 + 1 }}", 3073),
        ("{{ 2 ** -1 }}", 0.5),
        ("{{ 'ab' * 3 ~ 1 ~ none }}", "ababab1None"),
        ("{{ [1] + [2] * 2 }}", [1, 2, 2]),
        ("{{ '%s-%03d' % ('a', 7) }}{{ '%s' | format('b') }}", "a-007b"),
        ("{{ '{:>4}|{n}'.format('a', n=1) }}", "   a|1"),
        ("{% for x in state.items %}{{ loop.index }}/{{ loop.length }}{{ ', ' if not loop.last }}{% endfor %}", "1/3, 2/3, 3/3"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=1"),
        ("{% for x in [] %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{{ state.items | join(', ') }}{{ 'aXa' | replace('X', '-') }}{{ 'x' | center(3) }}", "1, 2, 3a-a x "),
        ("{{ ['a', 'b'] | tojson }}", '["a", "b"]'),
        ("{{ state.items | batch(2) | list }}", [[1, 2], [3]]),
        ("{% for i in range(50000) %}{% endfor %}done", "done"),
        ("{{ state.big * 10 }}", "x" * 10_000_000),
        ("{{ state.items | map('string') }}", ["1", "2", "3"]),
        ("{{ (1, 'a') }}", [1, "a"]),
        ("{{ state }}", STATE["state"]),
        ("{% for key in state %}{{ key }} {% endfor %}", "items text big "),
        ("{{ state.keys() | list }}", ["items", "text", "big"]),
        ("{{ state.get('text') }}", "a\tb"),
        ("{% set state = {'text': 'other'} %}{{ state.text }}", "other"),
        ("{{ 'é\\ud800' }}", "é\ud800"),
        ("{{ '[1, {\"a\": null}]' | fromjson }}", [1, {"a": None}]),
        ("{{ 'a' | sha256 }}", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
        ("{{ len(state.items) }}", 3),
        ("  {{ 1 }} ", 1),
        ("{{ 1 }}{{ 2 }}\n", "12\n"),
    ],
)  # fmt: skip
def test_what_is_ordinary_is_as_in_jinja(template, value):
    assert render(template, STATE) == value


def test_not_a_number_and_endless_ones_come_back():
    assert math.isnan(render("{{ state.x * 1 }}", {"state": {"x": math.nan}}))
    assert render("{{ -state.x }}", {"state": {"x": math.inf}}) == -math.inf


class Colour(enum.StrEnum):
    RED = "red"


@dataclass
class Person:
    name: str
    born: date


class Opaque:
    def __init__(self) -> None:
        self.size = 3
        self._hidden = 4

    def method(self) -> int:
        return 5

    def __str__(self) -> str:
        return "opaque"


HOST = {
    "state": {
        "path": Path("/tmp/x"),
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "person": Person("Ada", date(1815, 12, 10)),
        "numbers": {1: "one", (2, 3): "pair"},
        "ordered": OrderedDict(a=[Path("y")]),
        "set": {7},
        "tuple": (1, 2),
        "bytes": b"x",
        "colour": Colour.RED,
        "object": Opaque(),
    }
}


@pytest.mark.parametrize("key", HOST["state"])
def test_an_expression_that_only_names_a_value_gives_that_very_value(key):
    assert render("{{ state." + key + " }}", HOST) is HOST["state"][key]
    assert render("{{ state['" + key + "'] }}", HOST) is HOST["state"][key]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("at {{ state.path }}", "at /tmp/x"),
        ("{{ state.when }}!", "2026-01-02 00:00:00+00:00!"),
        ("{{ state.when.year }}", 2026),
        ("{{ state.person.name }}", "Ada"),
        ("by {{ state.person.name }}, {{ state.person.born }}", "by Ada, 1815-12-10"),
        ("{{ state.numbers[1] }}", "one"),
        ("{{ state.numbers[1] ~ state.numbers[(2, 3)] }}", "onepair"),
        ("{{ state.ordered.a[0] ~ '' }}", "y"),
        ("{{ 7 in state.set and state.set | length }}", 1),
        ("{{ state.tuple + (3,) }}", [1, 2, 3]),
        ("{{ state.colour ~ '' }}", "red"),
        ("{{ state.object }}.", "opaque."),
        ("{{ state.object.size }}", 3),
    ],
)
def test_values_that_are_no_json_are_looked_into_or_written_as_text(template, value):
    assert render(template, HOST) == value


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ state.object._hidden }}", "_hidden"),
        ("{{ state.object.method }}", "method"),
        ("{{ state.object.method() }}", "method"),
        ("{{ state.person.__class__ }}", "not allowed|__class__"),
        ("{{ state.text.upper }}", "not called"),
        ("{{ {1: 2} }}", "only texts can be keys"),
        ("{{ state.nothing }}", "no key 'nothing' .*items, text, big"),
        ("{{ state.nothing.deeper }}", "no key 'nothing'"),
        ("{{ nothing }}", "'nothing' is not defined"),
        ("{{ state.items[9] }}", "list has no 9"),
        ("{% for x in state.nothing %}{% endfor %}", "no key 'nothing'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_an_error(template, message):
    with pytest.raises(UsageError, match=message):
        render(template, {"state": STATE["state"] | {"person": Person("a", date(1815, 12, 10)), "object": Opaque()}})


def test_a_state_that_holds_itself_is_refused_only_where_the_result_would_have_no_end():
    state: dict = {"n": 1}
    state["self"] = state
    assert render("{{ state.n + 1 }}", {"state": state}) == 2
    assert render("{{ state.self.self | length }}", {"state": state}) == 2
    with pytest.raises(UsageError, match="nested too deeply"):
        render("{{ [state] }}", {"state": state})
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(TeaModelsError, match="nested too deeply"):
        render("{{ state | length }}", {"state": {"deep": deep}})


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 +* 2 }}",
        "{{ a",
        "{% for",
        "{{ a | spam }}",
        "{{ a is spam }}",
        "{{ " + "(" * 20_000 + " }}",
        "{{ " + "9" * 10_000 + " }}",
    ],
)
def test_what_does_not_parse_is_refused_without_running_it(template):
    with pytest.raises(UsageError, match=r"not a valid template|no (filter|test) 'spam'"):
        check({"key": ["fine", template]})


def test_conditions_have_the_limits_too(short):
    with pytest.raises(UsageError, match="not done after"):
        decide("9 ** (9 ** 9) > 1", STATE)


def test_file_line_and_node_are_named(tmp_path, short):
    path = tmp_path / "w.yaml"
    path.write_text("nodes:\n  - name: big\n    action: llm.call\n    params:\n      prompt: '{{ 9 ** (9 ** 9) }}'\n")
    with pytest.raises(TeaModelsError, match=r"w\.yaml:5: node big: prompt.*not done after"):
        run_workflow(path)
