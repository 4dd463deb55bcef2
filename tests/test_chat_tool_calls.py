"""Tool calls are read from what models of many families write; what is no call stays text."""

from __future__ import annotations

import json

import pytest

from tea_models.chat import ToolCall, parse_tool_calls

A, B = ("a", {"x": 1}), ("b", {})

READ: dict[str, tuple[str, str | None, str, list[tuple[str, dict[str, object]]]]] = {
    "hermes": ('<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>', "chatml", "", [A]),
    "hermes twice with text": (
        'Let me see.\n<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>\n<tool_call>{"name": "b", "arguments": {}}</tool_call> ok',
        "chatml",
        "Let me see.\n\n ok",
        [A, B],
    ),
    "hermes without its end": ('<tool_call>{"name": "a", "arguments": {"x": 1}}', "chatml", "", [A]),
    "hermes in a fence": (
        '<tool_call>\n```json\n{"name": "a", "arguments": {"x": 1}}\n```\n</tool_call>',
        "chatml",
        "",
        [A],
    ),
    "hermes with arguments as text": (
        '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>',
        "chatml",
        "",
        [A],
    ),
    "qwen3 coder": (
        "<tool_call>\n<function=a>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "chatml",
        "",
        [A],
    ),
    "phi": (
        '<|tool_call|>[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]<|/tool_call|>',
        "phi",
        "",
        [A, B],
    ),
    "granite": ('<|tool_call|>[{"name": "a", "arguments": {"x": 1}}]', "granite", "", [A]),
    "llama 3": ('{"name": "a", "parameters": {"x": 1}}', "llama-3", "", [A]),
    "llama 3 with a tag": ('<|python_tag|>{"name": "a", "parameters": {"x": 1}}<|eom_id|>', "llama-3", "", [A]),
    "llama 3, several": (
        '{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}',
        "llama-3",
        "",
        [A, B],
    ),
    "mistral": ('[TOOL_CALLS] [{"name": "a", "arguments": {"x": 1}}]</s>', "mistral", "", [A]),
    "mistral v11": ('ok[TOOL_CALLS]a[CALL_ID]abcdef123[ARGS]{"x": 1}[TOOL_CALLS]b{}</s>', "mistral", "ok", [A, B]),
    "command-r": ('Action: ```json\n[{"tool_name": "a", "parameters": {"x": 1}}]```', "command-r", "", [A]),
    "command-r7b": (
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "a", "parameters": {"x": 1}}]<|END_ACTION|>',
        "command-r",
        "",
        [A],
    ),
    "deepseek r1": (
        '<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>a\n```json\n{"x": 1}\n```<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>',
        "deepseek",
        "",
        [A],
    ),
    "deepseek v3.1": (
        'so<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>a<\uff5ctool\u2581sep\uff5c>{"x": 1}<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>',
        "deepseek",
        "so",
        [A],
    ),
    "harmony": (
        '<|channel|>commentary to=functions.a <|constrain|>json<|message|>{"x": 1}<|call|>',
        "harmony",
        "",
        [A],
    ),
    "harmony after thinking": (
        '<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.a<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|>",
        [A],
    ),
    "gemma 4": (
        '<|tool_call>call:a{n:-1.5,t:<|"|>say "hi", {x:1}<|"|>,o:{k:[true,<|"|>z<|"|>]}}<tool_call|>',
        "gemma-4",
        "",
        [("a", {"n": -1.5, "t": 'say "hi", {x:1}', "o": {"k": [True, "z"]}})],
    ),
    "gemma 4 without arguments": ("<|tool_call>call:b{}<tool_call|>", "gemma-4", "", [B]),
    "bare": ('{"name": "a", "arguments": {"x": 1}}', "gemma", "", [A]),
    "bare in a fence": ('```json\n{"name": "a", "arguments": {"x": 1}}\n```', None, "", [A]),
    "openai": (
        '[{"id": "q", "type": "function", "function": {"name": "a", "arguments": "{\\"x\\": 1}"}}]',
        None,
        "",
        [A],
    ),
    "marks of another family": ('<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>', "phi", "", [A]),
}


@pytest.mark.parametrize("name", READ)
def test_calls_are_read(name: str) -> None:
    text, chat_format, rest, expected = READ[name]
    content, calls = parse_tool_calls(text, chat_format)
    assert content == rest
    assert [(call.name, json.loads(call.arguments)) for call in calls] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": "a"}</tool_call>',
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": {"x": </tool_call>',
        "<tool_call><function=a></tool_call>",
        "<tool_call><function=a><parameter=x>1</function></tool_call>",
        '<|tool_call|>[{"name": "a", "arguments": {}}, 3]<|/tool_call|>',
        "[TOOL_CALLS] oh no",
        '[TOOL_CALLS][{"name": "a"',
        '{"name": "a", "parameters"',
        '{"answer": 42}',
        '{"name": "Ada", "age": 36}',
        '{"name": 3, "arguments": {}}',
        "<|channel|>final<|message|>{}<|call|>",
        "<\uff5ctool\u2581call\u2581begin\uff5c>a<\uff5ctool\u2581sep\uff5c>{",
        'I would call {"name": "a", "arguments": {}} now.',
        "<|tool_call>call:a{n:}<tool_call|>",
        '<|tool_call>call:a{"7":"8"}<tool_call|>',
        "<|tool_call>call:a{n:1",
        "<|tool_call>call:a" + "{n:" * 800 + "1" + "}" * 800 + "<tool_call|>",
        "[" * 100_000,
        '{"name": "a", "arguments": ' + '{"x": ' * 100_000,
    ],
    ids=lambda text: text[:40] or "nothing",
)
@pytest.mark.parametrize(
    "chat_format", ["chatml", "phi", "mistral", "llama-3", "deepseek", "harmony", "command-r", None]
)
def test_what_is_no_call_stays_text(text: str, chat_format: str | None) -> None:
    assert parse_tool_calls(text, chat_format) == (text, [])


def test_a_good_call_beside_a_bad_one_leaves_the_bad_one_in_the_text() -> None:
    content, calls = parse_tool_calls('<tool_call>{"name": "a", "arguments": {}}</tool_call><tool_call>{</tool_call>')
    assert content == "<tool_call>{</tool_call>"
    assert [call.name for call in calls] == ["a"]


def test_ids_are_the_models_own_or_nine_characters() -> None:
    _, calls = parse_tool_calls(
        '[TOOL_CALLS][{"name": "a", "arguments": {}, "id": "own"}, {"name": "b", "arguments": {}}]'
    )
    assert [call.id for call in calls] == ["own", "call00001"]


def test_a_call_is_given_in_the_form_of_the_api() -> None:
    call = ToolCall("id1", "a", '{"x": "é"}')
    assert call.to_openai() == {"id": "id1", "type": "function", "function": {"name": "a", "arguments": '{"x": "é"}'}}


def test_text_is_kept_as_it_is_in_arguments() -> None:
    _, (call,) = parse_tool_calls(
        '<tool_call>{"name": "a", "arguments": {"city": "Köln ☃ \\ud83d\\ude00\n"}}</tool_call>'
    )
    assert json.loads(call.arguments) == {"city": "Köln ☃ 😀\n"}
    assert "Köln" in call.arguments


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 20_000,
        "<tool_call>x" + " " * 300_000 + "y",
        "<function=a><parameter=x>" * 20_000,
        "[TOOL_CALLS]" * 20_000,
        "<|channel|>to=functions.a<|message|>" * 20_000,
        "```json" * 20_000,
        '{"name": "a", "parameters": {}}; ' * 10_000 + "x",
    ],
    ids=range(7),
)
def test_long_outputs_are_read_in_time_that_grows_with_their_length(text: str) -> None:
    for chat_format in ("chatml", "phi", "mistral", "llama-3", "deepseek", "harmony", "command-r"):
        content, _ = parse_tool_calls(text, chat_format)  # quadratic would take minutes
        assert len(content) > 1000
