"""`tea-runtime chat`: in one shot, and on a terminal with its commands."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tea_models.cli.frame import run
from tea_runtime.cli import group
from tests.scripted_model import build_scripted

pytest.importorskip("llama_cpp")
PROGRAM = [sys.executable, "-c", "from tea_runtime.cli import main; main()"]


@pytest.fixture
def model(tmp_path):
    build_scripted(tmp_path / "hello.gguf", [["Hello"]])
    return str(tmp_path / "hello.gguf")


@pytest.fixture
def chat(capfd, monkeypatch, model):
    """Type lines into a chat; what it printed comes back."""

    def chat(*lines, ref=model):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            keys.send_text("".join(lines))
            code = run(group(), ["chat", ref, "--temperature", "0"])
        out, err = capfd.readouterr()
        return code, out, err

    return chat


def one_shot(*argv, stdin=None):
    return subprocess.run(
        [*PROGRAM, "chat", *argv], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_question_and_what_comes_on_stdin_go_together(model):
    alone = one_shot(model, "what", "is it?", "--json", stdin="")
    both = one_shot(model, "what is it?", "--json", stdin="an error\n")
    assert json.loads(alone.stdout)["content"] == json.loads(both.stdout)["content"] == "Hello"
    tokens = [json.loads(done.stdout)["usage"]["prompt_tokens"] for done in (alone, both)]
    assert tokens[1] - tokens[0] == len("an error\n\n")
    assert one_shot(model, stdin="hi").stdout == "Hello\n"
    assert one_shot(model, "-m", "hi").stdout == "Hello\n"
    assert one_shot(model, "-m", "-", stdin="hi").stdout == "Hello\n"
    nothing = one_shot(model, stdin=" ")
    assert (nothing.returncode, "nothing to answer" in nothing.stderr) == (2, True)


def test_a_paste_of_several_lines_is_one_message(chat, tmp_path):
    code, out, _err = chat("\x1b[200~line one\nline two\x1b[201~\r", f"/save {tmp_path}/talk.json\r", "/bye\r")
    assert (code, out) == (0, "Hello\n")
    talk = json.loads((tmp_path / "talk.json").read_text())
    assert [(one["role"], one["content"]) for one in talk] == [("user", "line one\nline two"), ("assistant", "Hello")]


def test_a_conversation_is_saved_and_gone_on_with(chat, tmp_path):
    path = tmp_path / "a talk.json"
    chat("/system Be brief.\r", "one\r", "two\r", f"/save {path}\r", "\x04")
    roles = [one["role"] for one in json.loads(path.read_text())]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    _code, _out, err = chat(f"/load {path}\r", "/retry\r", "/stats\r", f"/save {path}\r", "\x04")
    assert "4 messages" in err
    assert "answers: 1, 1 tokens in" in err
    assert len(json.loads(path.read_text())) == 5
    _code, _out, err = chat("/clear\r", "/retry\r", "/load /nowhere.json\r", "/save\r", "\x04")
    for said in ("forgotten", "no question to ask again", "/nowhere.json: no such file", "name of a file"):
        assert said in err


def test_ctrl_c_clears_the_line_and_ctrl_d_ends_it(chat):
    code, out, _err = chat("half a quest\x03", "hi\r", "\x04")
    assert (code, out) == (0, "Hello\n")


def test_a_question_is_asked_again_until_it_is_forgotten(chat):
    _code, out, err = chat("/system Be brief.\r", "one\r", "/retry\r", "/clear\r", "/retry\r", "\x04")
    assert out == "Hello\nHello\n"
    for said in ("told this first", "forgotten", "no question to ask again"):
        assert said in err


def test_another_model_goes_on_with_the_conversation(chat, tmp_path):
    build_scripted(tmp_path / "other.gguf", [["Other"]])
    code, out, err = chat("hi\r", f"/model {tmp_path}/other.gguf\r", "hi\r", "/model /nope.gguf\r", "hi\r", "\x04")
    assert (code, out) == (0, "Hello\nOther\nOther\n")
    assert "nope.gguf" in err


def test_commands_are_listed_and_an_unknown_one_is_no_message(chat):
    _code, out, err = chat("/help\r", "/nope\r", "\x04")
    assert (out, "/retry" in err, "there is no command /nope" in err) == ("", True, True)


def test_a_text_that_does_not_fit_is_told_and_the_chat_goes_on(chat, tmp_path):
    build_scripted(tmp_path / "small.gguf", [["Hello"]], metadata={"llama.context_length": 64})
    code, out, err = chat("long " * 100 + "\r", "hi\r", "\x04", ref=str(tmp_path / "small.gguf"))
    assert (code, out) == (0, "Hello\n")
    assert "too many" in err


def test_what_was_typed_is_remembered_for_its_owner_only(chat, own_world):
    chat("remember me\r", "\x04")
    (path,) = own_world.rglob("chat_history")
    assert "remember me" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path, start):
    build_scripted(tmp_path / "endless.gguf", [[f"w{index} " for index in range(50)]], loop=True)
    main, side = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    argv = [*PROGRAM, "chat", str(tmp_path / "endless.gguf"), "--n-ctx", "8192"]
    process = start(argv, stdin=side, stdout=side, stderr=side, env=environ, start_new_session=True)
    os.close(side)
    try:
        shown = _until(main, b"", b"Ctrl-D ends it")
        os.write(main, b"go\r")
        shown = _until(main, shown, b"w20")
        process.send_signal(signal.SIGINT)
        _until(main, shown, b"stopped")
        _type_until_it_ends(process, main, b"/bye\r")
        assert process.wait(60) == 0
    finally:
        os.close(main)


def _until(terminal: int, shown: bytes, wanted: bytes) -> bytes:
    deadline = time.monotonic() + 120
    while wanted not in shown:
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 4096)
    return shown


def _type_until_it_ends(process: subprocess.Popen[bytes], terminal: int, text: bytes) -> None:
    """Type a line again each second: what comes before the prompt is there may be lost."""
    for _ in range(120):
        if process.poll() is not None:
            return
        os.write(terminal, text)
        with contextlib.suppress(OSError):
            while select.select([terminal], [], [], 1)[0] and os.read(terminal, 4096):
                pass
