"""A marked secret in addresses, settings and keys is in no byte that a command of `tea-runtime` prints or writes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tea_models.cli.frame import run
from tea_models.redact import redact
from tea_runtime.cassette.backend import shared
from tea_runtime.cli import COMMANDS, group
from tests.api_server import serve_api
from tests.hub_server import serve
from tests.scripted_model import build_scripted
from tests.test_secrets import SECRET, written

pytestmark = pytest.mark.real
PROGRAM = [sys.executable, "-c", "from tea_runtime.cli import main; main()"]
# What each command is given: ADDRESS is a model's address with credentials in it, local.yaml has it as settings.llm.model.
WITH_ADDRESS = [
    ["validate", "local.yaml"],
    ["run", "local.yaml"],
    ["run", "local.yaml", "--pull"],
    ["run", "local.yaml", "--record", "run.jsonl"],
    ["run", "local.yaml", "--replay", "run.jsonl"],
    ["run", "local.yaml", "--replay", "run.jsonl", "-i", "question=another"],
    ["run", "local.yaml", "--gguf", "ADDRESS"],
    ["run", "local.yaml", "--gguf", "ADDRESS", "--record", "gguf.jsonl"],
    ["run", "local.yaml", "--gguf", "ADDRESS", "--replay", "run.jsonl"],
    ["map", "local.yaml", "--over", "rows.jsonl", "-o", "mapped.jsonl"],
    ["map", "local.yaml", "--over", "rows.jsonl", "-o", "mapped.jsonl", "--gguf", "ADDRESS"],
    ["map", "local.yaml", "--over", "rows.jsonl", "-o", "named.jsonl", "--gguf", "ADDRESS"],
    ["compare", "local.yaml", "--over", "rows.jsonl", "--variants", "ADDRESS,ADDRESS"],
    ["chat", "ADDRESS", "hi"],
    ["chat", "ADDRESS", "hi", "--pull"],
    ["embed", "ADDRESS", "hi"],
    ["embed", "ADDRESS", "hi", "--pull"],
    ["serve", "ADDRESS", "OTHER", "--port", "0"],
    ["selftest", "ADDRESS"],
    ["selftest", "ADDRESS", "--pull"],
    ["cassette", "check", "run.jsonl", "--model", "ADDRESS"],
    ["cassette", "check", "recorded.jsonl", "--model", "ADDRESS"],
    ["cassette", "check", "recorded.jsonl"],
]
WITH_API = [
    ["validate", "api.yaml"],
    ["run", "api.yaml"],
    ["run", "auto.yaml"],
    ["run", "broken.yaml"],
    ["run", "api.yaml", "--backend", "auto"],
    ["run", "api.yaml", "--record", "run.jsonl"],
    ["run", "auto.yaml", "--record", "auto.jsonl"],
    ["run", "api.yaml", "--replay", "run.jsonl"],
    ["map", "api.yaml", "--over", "rows.jsonl", "-o", "mapped.jsonl"],
    ["map", "auto.yaml", "--over", "rows.jsonl", "-o", "auto.out.jsonl"],
    ["compare", "api.yaml", "--over", "rows.jsonl", "--variants", "a,b"],
]
FLOW = """
nodes:
  - {{name: said, action: {action}, params: {{prompt: "{{{{ state.question | default('why?') }}}}"}}, output: result}}
  - {{name: vector, action: llm.embed, params: {{text: x}}}}
settings: {{llm: {{{settings}}}}}
"""
RECORDED = """{"schema": "tea.cassette/1"}
{"request": {"kind": "call", "model": "m.gguf", "prompt": "x", "parameters": {}}, "answer": {"content": "y"}, "recorded": {}}
"""

Write = Callable[[str, str], None]
Check = Callable[[list[str]], int]


def test_every_command_is_here() -> None:
    assert {command[0] for command in WITH_ADDRESS} == set(COMMANDS)


@pytest.fixture
def give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write what commands are given; the working directory is where they write."""
    (tmp_path / "given").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tea_models.net.retry.RetryPolicy.wait", lambda *_: 0.0)

    def write(name: str, text: str) -> None:
        (tmp_path / "given" / name).write_text(text)

    write("rows.jsonl", '{"question": "one"}\n{"question": "two"}\n')
    write("recorded.jsonl", RECORDED)
    return write


@pytest.fixture
def check(
    tmp_path: Path,
    own_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Check:
    """Run a command for people and for programs, and look at all that was printed, logged and written."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpx2"):  # as in a process in which nothing was asked before
        monkeypatch.setattr(logging.getLogger(name), "filters", [])

    def check(arguments: list[str]) -> int:
        codes = set()
        with Path(os.devnull).open() as nothing:
            monkeypatch.setattr(sys, "stdin", nothing)
            for form in (arguments, [*arguments, "--json"]):
                found = [str(path) if (path := tmp_path / "given" / part).is_file() else part for part in form]
                codes.add(run(group(), found))
                shared.cache_clear()
        out, err = capfd.readouterr()
        assert SECRET not in out + err + caplog.text, arguments
        left = written(tmp_path / "work", own_world)
        assert not [name for name, data in left.items() if SECRET.encode() in data or SECRET in name], arguments
        assert "internal error" not in out + err
        (code,) = codes
        return code

    return check


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    path = tmp_path / "built.gguf"
    build_scripted(path, [["Hello"]])
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize("fault", ["none", "missing", "denied", "cut short", "nobody there", "dead proxy"])
def test_no_command_gives_away_the_secret_of_a_models_address(
    give: Write, check: Check, model: bytes, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "dead proxy":
        monkeypatch.setenv("http_proxy", f"http://user:{SECRET}@127.0.0.1:9")
    files = {} if fault == "missing" else {"/m.gguf": model[:5000] if fault == "cut short" else model}
    with serve(files=files, password="other" if fault == "denied" else f"user:{SECRET}") as server:
        host = server.url.removeprefix("http://") if fault != "nobody there" else "127.0.0.1:9"
        address = f"http://user:{SECRET}@{host}/m.gguf?token={SECRET}&download=true"
        give("local.yaml", FLOW.format(action="llm.chat", settings=f"backend: local, model: '{address}'"))
        codes: dict[str, list[int]] = {}
        for arguments in WITH_ADDRESS:
            # The second model of `serve` is never there: an endpoint that serves has a test of its own.
            replaced = [part.replace("ADDRESS", address).replace("OTHER", f"{address}&n=2") for part in arguments]
            codes.setdefault(arguments[0], []).append(check(replaced))
        assert (server.requests == []) == (fault in ("nobody there", "dead proxy"))
    done = {command for command, found in codes.items() if 0 in found}  # the self-test finds that the model is a toy
    assert done >= (set(COMMANDS) - {"serve", "selftest"} if fault == "none" else {"validate"})


@pytest.mark.parametrize(("action", "end"), [("llm.chat", f"?token={SECRET}"), ("llm.stream", "")])
@pytest.mark.parametrize(
    "mode", ["ok", "status:401", "status:500", "html", "close", "bad-event", "dead proxy", "nobody"]
)
def test_no_command_gives_away_the_secrets_of_an_api(
    give: Write, check: Check, monkeypatch: pytest.MonkeyPatch, mode: str, action: str, end: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    if mode == "dead proxy":
        monkeypatch.setenv("http_proxy", f"http://user:{SECRET}@127.0.0.1:9")
    with serve_api(mode) as server:
        host = server.base.removeprefix("http://") if mode != "nobody" else "127.0.0.1:9/v1"
        base = f"user:{SECRET}@{host}{end}"
        for backend in ("api", "auto"):
            settings = f"backend: {backend}, api_base: 'http://{base}', max_retries: 0"
            give(f"{backend}.yaml", FLOW.format(action=action, settings=settings))
        give("broken.yaml", FLOW.format(action=action, settings=f"backend: api, api_base: '{base}'"))
        codes = [check(arguments) for arguments in WITH_API]
        answered = mode == "ok"
        assert (0 in codes[1:]) == answered
        assert (server.requests == []) == (mode in ("dead proxy", "nobody"))
        if answered:
            assert {request["path"].partition("?")[2] for request in server.requests} == {end.removeprefix("?")}


def test_no_answer_of_an_endpoint_has_the_secrets_of_its_model(
    give: Write, own_world: Path, model: bytes, start: Callable[..., subprocess.Popen[str]]
) -> None:
    with serve(files={"/m.gguf": model}, password=f"user:{SECRET}") as server:
        address = f"{server.url.replace('//', f'//user:{SECRET}@')}/m.gguf?token={SECRET}"
        environ = os.environ | {"TEA_SERVE_KEY": SECRET}
        process = start(
            [*PROGRAM, "serve", address, "--pull", "--port", "0", "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
        )  # fmt: skip
        first = process.stdout.readline()  # type: ignore[union-attr]
        url = json.loads(first)["url"]
        with httpx2.Client(headers={"Authorization": f"Bearer {SECRET}"}, timeout=60) as client:
            said = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            named = client.get(f"{url}/models").json()["data"][0]["id"]
            assert named == redact(address) == f"{server.url}/m.gguf"
            answers = [
                client.get(f"{url}/models"),
                client.post(f"{url}/chat/completions", json=said),
                client.post(f"{url}/chat/completions", json=said | {"model": named}),
                client.post(f"{url}/chat/completions", json=said | {"stream": True}),
                client.post(f"{url}/embeddings", json={"input": "x"}),
                client.post(f"{url}/chat/completions", json=said | {"model": "other"}),
                client.post(f"{url}/chat/completions", json=said | {"messages": 1}),
                client.get(url.removesuffix("/v1") + "/metrics"),
                client.get(url.removesuffix("/v1") + "/"),
                client.get(f"{url}/models", headers={"Authorization": "Bearer wrong"}),
            ]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 404, 400, 200, 200, 401]
    assert SECRET not in first + out + err
    assert not [answer.url for answer in answers if SECRET in f"{answer.headers}{answer.text}"]
    assert not [name for name, data in written(own_world).items() if SECRET.encode() in data or SECRET in name]


def test_credentials_that_are_kept_for_a_host_are_in_nothing(
    give: Write, check: Check, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEA_MODELS_AUTH_127_0_0_1", f"user:{SECRET}")
    with serve(files={"/m.gguf": model}, password=f"user:{SECRET}") as server:
        give("local.yaml", FLOW.format(action="llm.chat", settings=f"backend: local, model: '{server.url}/m.gguf'"))
        codes = [
            check([part.replace("ADDRESS", f"{server.url}/m.gguf") for part in arguments])
            for arguments in WITH_ADDRESS
            if arguments[0] != "serve"
        ]
    assert codes.count(0) > len(codes) / 2
