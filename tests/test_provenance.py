"""Text of a template keeps track of itself through whatever Jinja does with it, and the result is Jinja's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tea_models.chat import TemplateError, render_chat, render_segments
from tea_models.chat.provenance import ProvenanceEnvironment, TemplateText, joined, origin_of

#: Letters that only the template writes, and letters that are only in data.
OURS, THEIRS = "abc<|", "xyz>é"
OPTIONS: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
TRACKING, PLAIN = ProvenanceEnvironment(**OPTIONS), ImmutableSandboxedEnvironment(**OPTIONS)

TEXTS = st.text(OURS + " \n", max_size=4).map(repr)
ATOMS = st.one_of(TEXTS, st.sampled_from(["x", "y", "l", "l[0]", "d.k", "1", "none", "missing", "role"]))
METHODS = [
    "strip()", "lstrip({t})", "rstrip('> ')", "split({t})", "split()", "rsplit({t}, 1)", "splitlines()", "replace({a}, {b})",
    "replace('x', {t}, 1)", "upper()", "lower()", "title()", "capitalize()", "swapcase()", "removeprefix({t})", "partition({t})",
    "removesuffix('x')", "rpartition('y')", "join({a})", "join([{a}, {b}])", "center(9)", "zfill(7)", "ljust(8, 'b')", "format({a}, {b})",
    "startswith({t})", "find({t})", "encode()", "expandtabs()", "casefold()", "isupper()", "__add__({a})", "translate({{97: {t}}})",
]  # fmt: skip
FILTERS = [
    "trim", "upper", "lower", "join({t})", "join", "replace({a}, {b})", "list", "first", "last", "reverse", "string", "length", "tojson",
    "default({t})", "indent(2)", "center(9)", "title", "capitalize", "wordwrap(3)", "format({a})", "e", "safe", "map('upper') | list",
    "select('string') | join", "batch(2, {t}) | list", "truncate(3)", "sort | join({t})", "unique | list", "wordcount", "pprint", "striptags",
]  # fmt: skip
SHAPES = [
    "({a} + {b})", "({a} ~ {b} ~ {t})", "({a} * 2)", "({a} if {b} else {t})", "({a})[1:]", "({a})[::-1]", "({a})[0]", "[{a}, {b}]", "({a}, {b})",
    "({t} % {a})", "('%s|%s' % ({a}, {b}))", "('{{}}-{{}}'.format({a}, {b}))", "({a} in {b})", "({a} == {b})", "{{{t}: {a}}}", "dict(k={a}).k",
]  # fmt: skip
STATEMENTS = [
    "{{{{ {a} }}}}", "{{% for i in {a} %}}{{{{ i }}}}|{{% endfor %}}", "{{% set v = {a} %}}{{{{ v }}}}{{{{ {b} }}}}", "{{% if {a} %}}b{{{{ {b} }}}}{{% endif %}}",
    "{{% set v %}}{{{{ {a} }}}}c{{% endset %}}{{{{ v ~ {t} }}}}", "{{% macro m(q) %}}<{{{{ q }}}}|{{% endmacro %}}{{{{ m({a}) }}}}", "a{{{{ {a} }}}} b",
    "{{% filter upper %}}a{{{{ {a} }}}}{{% endfilter %}}", "{{% set n = namespace(q={a}) %}}{{% set n.q = n.q ~ {b} %}}{{{{ n.q }}}}",
    "{{% macro w() %}}a{{{{ caller() }}}}{{% endmacro %}}{{% call w() %}}{{{{ {a} }}}}{{% endcall %}}",
]  # fmt: skip


def extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def fill(form: str, a: str, b: str, t: str) -> str:
        return form.format(a=a, b=b, t=t)

    return st.one_of(
        st.builds(lambda text, method, a, b, t: f"({text}).{fill(method, a, b, t)}", inner, st.sampled_from(METHODS), inner, inner, TEXTS),
        st.builds(lambda text, name, a, b, t: f"({text} | {fill(name, a, b, t)})", inner, st.sampled_from(FILTERS), inner, inner, TEXTS),
        st.builds(fill, st.sampled_from(SHAPES), inner, inner, TEXTS),
    )  # fmt: skip


EXPRESSIONS = st.recursive(ATOMS, extended, max_leaves=6)
TEMPLATES = st.lists(
    st.builds(lambda form, a, b, t: form.format(a=a, b=b, t=t), st.sampled_from(STATEMENTS), EXPRESSIONS, EXPRESSIONS, TEXTS),
    min_size=1,
    max_size=3,
).map("".join)  # fmt: skip
DATA = st.text(THEIRS + " \n", max_size=6)


def outcome(environment: Any, template: str, variables: dict[str, Any]) -> str:
    compiled = environment.from_string(template)
    return joined(compiled.root_render_func(compiled.new_context(variables)))


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # Python says it of constants, at other places in our code
@given(TEMPLATES, DATA, DATA)
def test_the_text_is_jinjas_and_no_character_of_data_counts_as_the_templates(template, x, y):
    variables = {"x": x, "y": y, "l": [x, y], "d": {"k": y}, "role": "user"}
    try:
        expected = "".join(outcome(PLAIN, template, variables))
    except Exception as error:  # noqa: BLE001 - whatever the template raises
        with pytest.raises(type(error)):
            outcome(TRACKING, template, variables)
        return
    assume(" at 0x" not in expected)
    text = outcome(TRACKING, template, variables)
    assert text == expected
    for character, origin in zip(text, origin_of(text).decode(), strict=True):
        if character.lower() in THEIRS and "&" not in text:
            assert origin != "t", (character, text)


@given(st.lists(st.one_of(TEMPLATES, st.text("{}%# |<ab\n'\"", max_size=8)), max_size=4).map("".join))
def test_whatever_stands_in_a_template_the_answer_is_a_text_or_one_error(template):
    messages = [{"role": "user", "content": "hello"}]
    try:
        render_chat(template, messages, x="x", y="y", l=["x", "y"], d={"k": "y"})
    except TemplateError as error:
        assert str(error).startswith("chat template")  # noqa: PT017
    assert render_chat("{{ messages[0].content }}", messages) == "hello"


def test_escaping_for_html_is_refused():
    with pytest.raises(TemplateError, match="nothing in it is escaped"):
        render_chat("{% autoescape true %}{{ messages }}{% endautoescape %}", [])


def test_a_text_without_a_character_of_the_template_is_a_plain_one():
    text = TemplateText("ab", b"td")
    assert type(text[1:]) is str
    assert type(text[:1]) is TemplateText
    assert type(text.lstrip("a")) is str


def test_known_roles_and_the_models_own_texts_are_the_templates_and_no_other_variable_is():
    template = "{{ bos_token }}{{ messages[0].role }}{{ messages[1].role }}{{ messages[2].role }}{{ extra }}"
    messages = [{"role": "user"}, {"role": "useful"}, {"role": ["user"]}]
    segments = render_segments(template, messages, bos_token="<s>", eos_token="</s>", extra="</s>")
    assert [tuple(segment) for segment in segments] == [("<s>user", "template"), ("useful['user']</s>", "data")]
