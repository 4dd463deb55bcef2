"""`tea-models render` prints the prompt to the byte, and says plainly what is wrong with what it was given."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tea_models.chat import render_chat
from tea_models.cli import main
from tests.gguf_build import build_gguf

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Be <brief>"}, {"role": "user", "content": "Grüße ☃"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(MESSAGES), "utf-8")
    return path


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(CHATML, "utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        build_gguf(
            {
                "general.architecture": "llama",
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.chat_template": CHATML,
            },
            [],
        )
    )
    return path


def run(capfdbinary: Any, *arguments: Any) -> tuple[int, bytes, str]:
    with pytest.raises(SystemExit) as done:
        main(["render", *map(str, arguments)])
    out, err = capfdbinary.readouterr()
    return int(str(done.value.code)), out, err.decode()


def test_the_prompt_is_printed_to_the_byte(capfdbinary: Any, model: Path, chat: Path) -> None:
    code, out, err = run(capfdbinary, model, "--messages", chat)
    expected = render_chat(CHATML, MESSAGES, bos_token="<s>", eos_token="</s>")
    assert (code, out.decode(), err) == (0, expected, "")
    assert out.endswith(b"<|im_start|>assistant\n")


def test_no_newline_is_added(capfdbinary: Any, tmp_path: Path, chat: Path) -> None:
    (tmp_path / "t").write_text("{{ messages[1].content }}")
    assert run(capfdbinary, "--template", tmp_path / "t", "--messages", chat)[1] == "Grüße ☃".encode()


def test_control_characters_are_not_altered_in_a_pipe(capfdbinary: Any, tmp_path: Path, template: Path) -> None:
    text = "\x00\x1b[31m\r\n\x7f\u2028\ud800"
    (tmp_path / "m").write_text(json.dumps([{"role": "user", "content": text}]))
    _, out, _ = run(capfdbinary, "--template", template, "--messages", tmp_path / "m")
    assert text.encode("utf-8", "surrogatepass") in out


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path, template: Path) -> None:
    (tmp_path / "m").write_text(json.dumps([{"role": "user", "content": "\x1b]0;gone\x07"}]))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tea_models.cli", "render", "--template", template, "--messages", tmp_path / "m"]
    subprocess.run([*command, "--no-generation-prompt"], stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert b"\x1b" not in shown
    assert rb"\x1b]0;gone\x07" in shown


def test_the_generation_prompt_can_be_left_out(capfdbinary: Any, template: Path, chat: Path) -> None:
    _, out, _ = run(capfdbinary, "--template", template, "--messages", chat, "--no-generation-prompt")
    assert out.endswith(b"<|im_end|>\n")


def test_tools_come_from_their_file_or_from_a_whole_request(
    capfdbinary: Any, tmp_path: Path, template: Path, chat: Path
) -> None:
    (tmp_path / "tools").write_text(json.dumps([TOOL]))
    (tmp_path / "request").write_text(json.dumps({"model": "x", "messages": MESSAGES, "tools": [TOOL]}))
    _, apart, _ = run(capfdbinary, "--template", template, "--messages", chat, "--tools", tmp_path / "tools")
    _, whole, _ = run(capfdbinary, "--template", template, "--messages", tmp_path / "request")
    assert apart == whole
    assert b'[{"type": "function"' in apart


def test_messages_are_read_from_stdin(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, template: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'[{"role": "user", "content": "piped"}]')))
    assert b"piped" in run(capfdbinary, "--template", template, "--messages", "-")[1]


def test_variables_and_the_clock_can_be_set(capfdbinary: Any, tmp_path: Path, chat: Path) -> None:
    (tmp_path / "t").write_text("{{ a + 1 }} {{ b }} {{ c is false }} {{ bos_token }} {{ strftime_now('%d %b %Y') }}")
    options = [
        "--var",
        "a=1",
        "--var",
        "b=text = b",
        "--var",
        "c=false",
        "--var",
        "bos_token=<b>",
        "--now",
        "2026-01-31",
    ]
    assert (
        run(capfdbinary, "--template", tmp_path / "t", "--messages", chat, *options)[1]
        == b"2 text = b True <b> 31 Jan 2026"
    )


def test_json_says_where_the_template_came_from_and_who_writes_bos(capfdbinary: Any, model: Path, chat: Path) -> None:
    code, out, _ = run(capfdbinary, model, "--messages", chat, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["prompt"] == render_chat(CHATML, MESSAGES, bos_token="<s>", eos_token="</s>")
    assert answer["template_source"] == "gguf:tokenizer.chat_template"
    assert len(answer["template_sha256"]) == 64
    assert answer["add_bos"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON, found nothing"),
        ('[{"role":\n "user",]', ":2: not valid JSON"),
        ("{}", "expected a list of messages, or an object with `messages`"),
        ('"hi"', "expected a list of messages, found a text"),
        ('{"messages": 3}', "messages: expected a list of messages, found a number"),
        ('["hi"]', "[0]: expected an object with `role` and `content`, found a text"),
        ('[{"content": "x"}]', "[0].role: expected a text such as user, found null"),
        ('[{"role": null, "content": "x"}]', "[0].role: expected a text such as user, found null"),
        ('[{"role": "user"}]', "[0].content: expected a text or a list of parts, found null"),
        ('[{"role": "user", "content": 1}]', "[0].content: expected a text or a list of parts, found a number"),
        ('[{"role": "user", "content": [1]}]', "[0].content[0]: expected an object with `type`"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "[0].content[0].text: expected a text"),
        ('[{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": 3}]', "[1].tool_calls: expected a list"),
        ('{"messages": [], "tools": {}}', "tools: expected a list of tools, found an object"),
        ('{"messages": [], "tools": [{"type": "function"}]}', "tools[0]: expected"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not usable JSON"),
        ("\xff\xfe", "not UTF-8"),
    ],
)  # fmt: skip
def test_wrong_messages_are_named_with_file_and_key(
    capfdbinary: Any, tmp_path: Path, template: Path, content: str, message: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content.encode("latin-1"))
    code, out, err = run(capfdbinary, "--template", template, "--messages", path)
    assert (code, out) == (2, b"")
    assert err.startswith(f"error: {path}")
    assert message in err
    assert "Traceback" not in err


def test_wrong_options_are_named(capfdbinary: Any, tmp_path: Path, template: Path, chat: Path) -> None:
    for options, code, message in [
        (["--messages", chat], 2, "expected a MODEL, or --template FILE"),
        (["--template", template], 2, "--messages"),
        (["--template", template, "--messages", tmp_path / "none.json"], 4, "no such file"),
        (["--template", tmp_path / "none", "--messages", chat], 4, "no such file"),
        (["--template", tmp_path, "--messages", chat], 2, "expected a file, found a folder"),
        (["--template", template, "--messages", "-", "--tools", "-"], 2, "both"),
        (["--template", template, "--messages", chat, "--var", "x"], 2, "expected NAME=VALUE"),
        (["--template", template, "--messages", chat, "--var", "messages=1"], 2, "not a variable"),
        (["--template", template, "--messages", chat, "--var", "timeout=1"], 2, "not a variable"),
        (["--template", template, "--messages", chat, "--now", "soon"], 2, "Invalid value for '--now'"),
        (["nosuchmodel", "--messages", chat], 4, "nosuchmodel"),
        ([tmp_path / "none.gguf", "--messages", chat], 4, "none.gguf"),
    ]:
        found, out, err = run(capfdbinary, *options)
        assert (found, out) == (code, b""), options
        assert message in err, options


def test_a_bad_template_is_one_error_also_as_json(capfdbinary: Any, tmp_path: Path, chat: Path) -> None:
    (tmp_path / "t").write_text("{% if %}")
    code, out, err = run(capfdbinary, "--template", tmp_path / "t", "--messages", chat)
    assert (code, out) == (1, b"")
    assert "line 1: does not parse" in err
    code, out, err = run(capfdbinary, "--template", tmp_path / "t", "--messages", chat, "--json")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "Template"


def test_a_model_without_a_template_says_what_to_do(
    capfdbinary: Any, tmp_path: Path, chat: Path, template: Path
) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(build_gguf({"general.architecture": "llama", "tokenizer.ggml.model": "llama"}, []))
    code, _, err = run(capfdbinary, path, "--messages", chat)
    assert code == 1
    assert "has no chat template" in err
    assert "--template FILE" in err
    assert run(capfdbinary, path, "--messages", chat, "--template", template)[0] == 0


@pytest.mark.real
def test_the_real_model_renders(capfdbinary: Any, real_model: Path, chat: Path) -> None:
    code, out, _ = run(capfdbinary, real_model, "--messages", chat)
    assert code == 0
    assert out.decode() == (
        "<|im_start|>system\nBe <brief><|im_end|>\n<|im_start|>user\nGrüße ☃<|im_end|>\n<|im_start|>assistant\n"
    )
