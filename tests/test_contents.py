"""Contents that are lists of parts, or null: every template gets what it takes, and what is no text is refused."""

from __future__ import annotations

import pytest

from tea_models.chat import render_segments
from tea_models.errors import UsageError
from tea_runtime import LocalLlmBackend
from tea_runtime.errors import UnsupportedError
from tea_runtime.llama.prompt import Contents
from tests.gguf_build import CHATML
from tests.scripted_model import build_scripted

PLAIN = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
ADDING = "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}]{% endfor %}"
)
HELLO = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


def rendered(template, messages):
    contents = Contents(lambda **given: render_segments(template, given.pop("messages"), **given))
    return "".join(segment.text for segment in contents.render(messages=contents.arranged(messages)))


@pytest.mark.parametrize(("template", "text"), [(PLAIN, "[hello]"), (ADDING, "[hello]"), (PARTS, "[<hel><lo>]")])
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_parts_are_joined_where_the_template_takes_none(template, text, role):
    assert rendered(template, [{"role": role, "content": HELLO}]) == text


def test_parts_stay_parts_only_for_roles_whose_parts_are_rendered():
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}[{{ m.content }}]{% else %}"
        "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
    )
    messages = [{"role": "system", "content": HELLO}, {"role": "user", "content": HELLO}]
    assert rendered(template, messages) == "[hello]<hel><lo>"


def test_parts_of_a_tools_answer_are_joined():
    assert rendered(PLAIN, [{"role": "tool", "content": HELLO}]) == "[hello]"


@pytest.mark.parametrize("template", [PLAIN, ADDING])
def test_no_content_is_an_empty_one_where_the_template_needs_a_text(template):
    assert rendered(template, [{"role": "user", "content": "None"}, CALL]) == "[None][]"


def test_a_template_that_asks_whether_there_is_content_gets_the_truth():
    template = "{% for m in messages %}{{ m.content if m.content is defined else 'calls' }}{% endfor %}"
    assert rendered(template, [CALL]) == "calls"


@pytest.mark.parametrize("template", [PLAIN, PARTS])
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_is_no_text_is_refused(template, kind):
    with pytest.raises(UnsupportedError, match=rf"messages\[0\]\.content\[1\].*{kind}"):
        rendered(template, [{"role": "user", "content": [*HELLO[:1], {"type": kind, kind: {"url": "http://x/y"}}]}])


@pytest.mark.parametrize("part", ["hello", {"text": "x"}, {"type": "text"}, {"type": "text", "text": 5}, None])
def test_a_part_without_a_type_or_a_text_is_a_mistake(part):
    with pytest.raises(UsageError, match=r"messages\[0\]\.content\[0\]"):
        rendered(PLAIN, [{"role": "user", "content": [part]}])


@pytest.mark.parametrize("template", [CHATML, None])
def test_a_backend_takes_parts_and_calls_without_content(tmp_path, template):
    pytest.importorskip("llama_cpp")
    path = tmp_path / "m.gguf"
    build_scripted(path, [["x"]])
    with LocalLlmBackend(path, n_threads=1, chat_format=template or "chatml") as backend:
        messages = [{"role": "user", "content": "hello"}, CALL | {"content": ""}, {"role": "user", "content": "b</s>"}]
        in_parts = [
            {"role": "user", "content": HELLO},
            CALL,
            {"role": "user", "content": [{"type": "text", "text": "b</s>"}]},
        ]
        assert backend.render(in_parts) == backend.render(messages)
        with pytest.raises(UnsupportedError, match="image_url"):
            backend.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}])
