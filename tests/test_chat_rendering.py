"""`render_chat` gives the text that `transformers` gives, on templates in the styles of many families."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tea_models.chat import TemplateError, render_chat
from tea_models.chat.sandbox import SANDBOX

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> & 'later' in a city, wie für Köln",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefgh9",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": 1.5}},
}
SYSTEM = say("system", 'You are terse.\nAnd <polite> & "quoted".')
TURNS = [say("user", "Hi there"), say("assistant", " Hello! "), say("user", "Bye ☃\u2028 {{ no }}")]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": TURNS[:1]},
    "several turns": {"messages": TURNS},
    "system and several turns": {"messages": [SYSTEM, *TURNS]},
    "finished": {"messages": [SYSTEM, *TURNS[:2]], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, TURNS[0]], "tools": [WEATHER, WEATHER]},
    "tools without system": {"messages": TURNS, "tools": [WEATHER]},
    "a call and its result": {
        "messages": [
            SYSTEM,
            TURNS[0],
            say("assistant", "", tool_calls=[CALL]),
            say("tool", '{"temperature": 21}', name="get_weather", tool_call_id="abcdefgh9"),
            say("assistant", "21 degrees."),
            TURNS[2],
        ],
        "tools": [WEATHER],
    },
    "a call without content": {
        "messages": [TURNS[0], say("assistant", None, tool_calls=[CALL])],
        "tools": [WEATHER],
        "add_generation_prompt": False,
    },
    "reasoning": {
        "messages": [TURNS[0], say("assistant", "<think>\nhm\n</think>\n\nYes", reasoning_content=None), TURNS[2]],
    },
    "reasoning apart": {
        "messages": [TURNS[0], say("assistant", "Yes", reasoning="hm")],
        "add_generation_prompt": False,
    },
    "thinking off": {"messages": TURNS, "enable_thinking": False, "thinking": True, "reasoning_effort": "high"},
    "documents": {"messages": TURNS, "documents": [{"title": "A & B", "text": "<b>"}]},
    "parts": {"messages": [say("user", [{"type": "text", "text": " one "}, {"type": "text", "text": "two"}])]},
    "two users": {"messages": [TURNS[0], TURNS[2]]},
    "control tokens": {
        "messages": [say("user", "a<|im_end|>\n<|im_start|>system\n</s>[INST]<end_of_turn>\x00\x1b[31m")]
    },
    "empty texts": {"messages": [say("system", ""), say("user", ""), say("assistant", "")]},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A `transformers` tokenizer without a model: its chat templates are the reference."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")


def reference(tokenizer: Any, template: str, conversation: dict[str, Any]) -> str:
    from jinja2.exceptions import TemplateError as JinjaError

    options = {"add_generation_prompt": True, **conversation}
    messages = options.pop("messages")
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))
    except (JinjaError, TypeError, KeyError) as error:
        return f"error: {error}"


def ours(template: str, conversation: dict[str, Any]) -> str:
    try:
        return render_chat(template, bos_token="<s>", eos_token="</s>", **conversation)
    except TemplateError as error:
        return f"error: {error.message}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_conversation_renders_as_in_transformers(tokenizer: Any, path: Path) -> None:
    template = path.read_text("utf-8")
    rendered = 0
    for name, conversation in CONVERSATIONS.items():
        expected, actual = reference(tokenizer, template, conversation), ours(template, conversation)
        if expected.startswith("error: "):
            assert actual.startswith("error: "), name
            assert expected.removeprefix("error: ") in actual, name
        else:
            rendered += 1
            assert actual == expected, name
    assert rendered >= 6


def test_there_are_templates_of_at_least_ten_families() -> None:
    assert len(TEMPLATES) >= 10


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{{ messages | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
        "{{ tools | tojson(true) }}",
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
        "a\n  {% if true %}\n  b\n  {%- endif %}\n c",
        "{# comment #}\n{% raw %}{{ raw }}{% endraw %}\n",
        "{{ missing }}|{{ messages[0].nope }}|{{ bos_token is defined }}|{{ nothing is defined }}",
        "{{ messages }} {{ tools }} {{ documents }} {{ true }} {{ 1.0 }} {{ none }} {{ 10 ** 20 }}",
        "{{ dict(a=1, b=messages[0].role) }} {{ dict({'k': 1}).items() | list }}",
        "{% set ns = namespace({'a': 1}, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.self }}",
        "{% set ns = namespace(_x=1) %}{{ ns._x }}",
        "{{ range(5) | list }}{{ cycler('a', 'b').next() }}{{ joiner(', ')() }}",
        "{% macro m(x) %}[{{ x }}|{{ caller() }}]{% endmacro %}{% call m(1) %}in{% endcall %}",
        "{{ messages | map(attribute='role') | join(',') }}{{ messages | length }}{{ 'é' | urlencode }}{{ '<a>' | e }}",
        "{{ 'x' | indent(4) }}{{ 'hello world' | title | center(30) | wordwrap(5) }}{{ 'a%s' | format('b') }}{{ '%d' % 3 }}",
        "{{ messages | map(attribute='content') | select('string') | list | pprint }}",
        "{{ strftime_now('%Y-%m') }}{{ strftime_now(format='%d') }}",
        "{{ raise_exception('said so: ' ~ messages[0].role) }}",
        "{{ messages[0].content.split(' ') }}{{ messages[0].items() | list }}{{ 'abc'[::-1] }}{{ 'x' in 'xyz' }}",
        "{% import 'x' as y %}",
        "{% include 'x' %}",
        "{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% else %}none{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ ''.join(['a', 'b']) }}{{ '{}'.format('x') }}{{ [3, 1, 2] | sort | first }}{{ [1, 2] | sum }}",
    ],
)
def test_features_of_the_language_behave_as_in_transformers(tokenizer: Any, template: str) -> None:
    conversation = {"messages": [SYSTEM, *TURNS], "tools": [WEATHER]}
    expected, actual = reference(tokenizer, template, conversation), ours(template, conversation)
    if expected.startswith("error: "):
        assert actual.startswith("error: ")
    else:
        assert actual == expected


def test_a_fixed_clock_gives_a_fixed_text() -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M:%S') }}"
    moment = datetime(2026, 1, 31, 4, 5, 6, 70, tzinfo=UTC)
    assert render_chat(template, [], now=moment) == "31 Jan 2026 04:05:06"


def test_lone_surrogates_nul_and_astral_characters_pass_unchanged() -> None:
    text = "\ud800 \x00 \udfff\U0001f600\u2028\r\n\x7f"
    assert render_chat(CHATML, [say("user", text)]) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_long_prompt_comes_back_whole() -> None:
    text = "Füße " * 200_000
    assert text in render_chat(CHATML, [say("user", text)])


def test_the_messages_of_the_caller_are_not_changed() -> None:
    messages = [say("assistant", "x", reasoning="r", tool_calls=None)]
    before = json.dumps(messages)
    render_chat("{{ messages }}", messages)
    assert json.dumps(messages) == before


@dataclass
class Turn:
    role: str
    content: str


class Model:
    """Looks like a pydantic model."""

    def model_dump(self) -> dict[str, str]:
        return {"role": "user", "content": "dumped"}


def test_dataclasses_and_models_inside_the_variables_become_objects() -> None:
    text = render_chat("{{ extra.role }} {{ messages[0].content }}", [Model()], extra=Turn("user", "x"))  # type: ignore[list-item]
    assert text == "user dumped"


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), 1j, datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_variable_that_is_no_json_is_named(value: object) -> None:
    with pytest.raises(TemplateError, match=r"variable 'extra' can't be given to a chat template: .*not JSON"):
        render_chat(CHATML, [], extra=value)


def test_a_variable_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TemplateError, match="variable 'extra'"):
        render_chat(CHATML, [], extra=loop)


def test_a_variable_nested_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested too deeply"):
        render_chat(CHATML, [], extra=deep)


@pytest.mark.parametrize(
    ("messages", "found"), [("hello", "a str"), (["hello"], r"messages\[0\]"), ([3], r"messages\[0\]"), (7, "int")]
)
def test_messages_that_are_none_are_refused(messages: Any, found: str) -> None:
    with pytest.raises(TemplateError, match=found):
        render_chat(CHATML, messages)


def test_an_error_names_the_line_of_the_template() -> None:
    with pytest.raises(TemplateError, match="line 3: refuses these messages: no"):
        render_chat("a\nb\n{{ raise_exception('no') }}", [])
    with pytest.raises(TemplateError, match="line 2: does not parse"):
        render_chat("a\n{% endif %}", [])


@pytest.mark.real
def test_the_real_template_of_smollm2_renders_as_in_transformers(real_model: Path, tokenizer: Any) -> None:
    from tea_models import resolve_profile

    template = resolve_profile(real_model).chat.template.value
    assert template
    for name in ("one turn", "several turns", "system and several turns", "finished", "control tokens"):
        assert ours(template, CONVERSATIONS[name]) == reference(tokenizer, template, CONVERSATIONS[name])


def test_the_worker_is_kept_between_renders() -> None:
    render_chat(CHATML, [])
    assert SANDBOX._process is not None
    process = SANDBOX._process.pid
    render_chat("{{ 1 }}", [])
    assert SANDBOX._process.pid == process
