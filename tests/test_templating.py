"""Templates of workflows: what they may cost."""

from __future__ import annotations

import pytest

from tea_models.errors import TeaModelsError, UsageError
from tea_runtime import run_workflow
from tea_runtime.workflow import template_limits
from tea_runtime.workflow.templating import render
from tea_runtime.workflow.templating import test as decide

STATE = {"state": {"items": [1, 2, 3], "text": "a\tb", "big": "x" * 1_000_000}}


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
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_stopped(template, monkeypatch):
    monkeypatch.setattr(template_limits, "STEPS", 20_000)
    with pytest.raises(UsageError):
        render(template, STATE)


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
        ("{{ state.big * 50 }}", "x" * 50_000_000),
    ],
)  # fmt: skip
def test_what_is_ordinary_is_as_before(template, value):
    assert render(template, STATE) == value


def test_conditions_have_the_limits_too():
    with pytest.raises(UsageError, match="bits"):
        decide("9 ** (9 ** 9) > 1", STATE)


def test_each_rendering_has_a_budget_of_its_own():
    for _ in range(3):
        assert len(render("{{ state.big * 60 }}", STATE)) == 60_000_000


def test_a_loop_over_what_is_missing_still_says_what_is_missing():
    with pytest.raises(UsageError, match="no key 'nothing'"):
        render("{% for x in state.nothing %}{% endfor %}", STATE)


def test_file_line_and_node_are_named(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text("nodes:\n  - name: big\n    action: llm.call\n    params:\n      prompt: '{{ 9 ** (9 ** 9) }}'\n")
    with pytest.raises(TeaModelsError, match=r"w\.yaml:5: node big: prompt.*bits"):
        run_workflow(path)
