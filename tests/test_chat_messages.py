"""Messages as an API has them reach templates as they want them."""

from __future__ import annotations

from typing import Any

import pytest

from tea_models.chat import TemplateError
from tea_models.chat.messages import arguments_as_objects
from tea_models.errors import UsageError
from tea_runtime.backend import LlmCallParams
from tea_runtime.llama.chat_formats import ChatFormat

AS_JSON = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
AS_TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}{% endfor %}"
)


def called(arguments: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]


@pytest.mark.parametrize("template", [AS_JSON, AS_TEXT], ids=["object", "text"])
def test_a_call_that_is_sent_back_reaches_the_model_as_it_was(template: str) -> None:
    chat_format = ChatFormat(template, "custom", (), tools=True)
    segments = chat_format.render(called('{"city": "Köln"}'))
    assert "".join(segment.text for segment in segments) == '{"city": "Köln"}'


def test_an_error_of_a_template_is_not_asked_for_twice() -> None:
    chat_format = ChatFormat("{{ raise_exception('no') }}", "custom", (), tools=True)
    with pytest.raises(TemplateError, match="no"):
        chat_format.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("arguments", ["not json", "[1]", "3", '{"a":', {"a": 1}, None, 7])
def test_what_is_no_json_object_stays_as_it_is(arguments: Any) -> None:
    assert arguments_as_objects(called(arguments)) == called(arguments)


def test_empty_arguments_are_an_empty_object() -> None:
    assert arguments_as_objects(called("")) == called({})


def test_the_messages_of_the_caller_are_not_changed() -> None:
    messages = called('{"a": 1}')
    assert arguments_as_objects(messages) == called({"a": 1})
    assert messages == called('{"a": 1}')


@pytest.mark.parametrize("calls", [None, "text", [3], [{}], [{"function": 3}]])
def test_calls_of_another_shape_are_left_to_the_template(calls: Any) -> None:
    messages = [{"role": "assistant", "content": "x", "tool_calls": calls}]
    assert arguments_as_objects(messages) == messages


@pytest.mark.parametrize("name", ["messages", "timeout", "template", "now", "bos_token", 3])
def test_variables_of_a_request_can_not_replace_what_the_call_means(name: Any) -> None:
    with pytest.raises(UsageError, match="chat_template_kwargs"):
        LlmCallParams("", chat_template_kwargs={name: 1})


def test_every_public_name_can_be_imported() -> None:
    import tea_models.chat as chat

    assert all(getattr(chat, name) is not None for name in chat.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        chat.nothing  # noqa: B018
