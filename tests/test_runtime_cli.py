"""`tea-runtime` as people type it: what goes to stdout and stderr, exit codes, interrupts."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import httpx2
import pytest

from tea_models.cli.frame import run
from tea_runtime.cli import COMMANDS, group
from tests.api_server import serve_api
from tests.scripted_model import build_scripted

PROGRAM = [sys.executable, "-c", "from tea_runtime.cli import main; main()"]
STREAM = """
name: flow
nodes:
  - name: answer
    action: llm.stream
    params: {prompt: "{{ state.question | default('why?') }}"}
"""


@pytest.fixture
def server():
    with serve_api() as api:
        yield api


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """Write a workflow; the working directory is where it lies."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="flow.yaml"):
        (tmp_path / name).write_text(textwrap.dedent(text).lstrip("\n"))
        return name

    return write


@pytest.fixture
def cli(capfd):
    def cli(*argv):
        code = run(group(), list(argv))
        out, err = capfd.readouterr()
        return code, out, err

    return cli


def with_server(server, text=STREAM):
    return text + f"settings: {{llm: {{backend: api, api_base: '{server.base}', max_retries: 0}}}}\n"


def test_streamed_text_is_shown_once_and_then_only_what_is_new(cli, flow, server):
    server.content = "Paris is it."
    code, out, err = cli("run", flow(with_server(server)), "--input", '{"question": "capital?"}')
    assert code == 0
    assert out == "Paris is it.\n"
    more = STREAM + "  - {name: length, run: \"return len(state['answer'])\"}\n"
    assert cli("run", flow(with_server(server, more)), "-i", "question=x")[1] == "Paris is it.\n\nlength: 12\n"
    whole = STREAM.rstrip() + "\n    output: result\n"
    assert "content: Paris is it." in cli("run", flow(with_server(server, whole)))[1]
    assert "backend: api" in err
    assert server.bodies[0]["prompt"] == "capital?"


def test_with_json_stdout_is_exactly_the_state_and_the_text_goes_to_stderr(cli, flow, server):
    text = with_server(server) + "  \n"
    noisy = text.replace(
        "nodes:", "nodes:\n  - {name: noise, run: \"print('loud'); import os; os.system('echo louder')\"}"
    )
    code, out, err = cli("run", flow(noisy), "--json")
    assert code == 0
    assert json.loads(out) == {"answer": "Paris."}
    assert "Paris." in err
    assert "loud\n" in err
    assert "louder" in err


def test_quiet_says_nothing_but_the_answer(cli, flow, server):
    _code, _out, err = cli("run", flow(with_server(server)), "-q")
    assert err == ""


def test_input_may_come_from_a_file_and_from_stdin(cli, flow, tmp_path, monkeypatch):
    name = flow("nodes: [{name: a, run: \"return state['x'] + 1\"}]")
    (tmp_path / "in.json").write_text('\ufeff{"x": 1}')
    assert json.loads(cli("run", name, "--input", "@in.json", "--json")[1]) == {"x": 1, "a": 2}
    reader, writer = os.pipe()
    os.write(writer, b'{"x": 5}')
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert json.loads(cli("run", name, "--input", "@-", "--json")[1]) == {"x": 5, "a": 6}


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["run", "flow.yaml", "--input", "{"], 2, "--input: not valid JSON"),
        (["run", "flow.yaml", "--input", "[1]"], 2, "expected a JSON object, found a list"),
        (["run", "flow.yaml", "--input", "null"], 2, "expected a JSON object, found null"),
        (["run", "flow.yaml", "--input", "[" * 100_000], 2, "--input"),
        (["run", "flow.yaml", "--input", "@nope.json"], 4, "nope.json: no such file"),
        (["run", "nope.yaml"], 4, "nope.yaml: no such file"),
        (["run", "."], 4, "is a folder"),
        (["run"], 2, "WORKFLOW"),
        (["run", "flow.yaml", "--backend", "cloud"], 2, "--backend"),
        (["run", "flow.yaml", "--gguf", "not-a-model-at-all"], 4, "not-a-model-at-all"),
        (["run", "flow.yaml"], 4, "no backend can be used"),
        (["run", "flow.yaml", "--backend", "api"], 4, "OPENAI_API_KEY"),
        (["chat", "not-a-model-at-all", "-m", "hi"], 4, "not-a-model-at-all"),
        (["chat", "./nope.gguf", "-m", "hi"], 4, "nope.gguf"),
        (["chat", "x", "-m", " "], 2, "nothing to answer"),
        (["embed", "./nope.gguf", "hi"], 4, "nope.gguf"),
        (["serve", "./nope.gguf", "--port", "0"], 4, "nope.gguf"),
        (["selftest", "./nope.gguf"], 4, "nope.gguf"),
        (["nonsense"], 2, "no command 'nonsense'"),
        (["chta"], 2, "Did you mean 'chat'?"),
    ],
)
def test_a_mistake_is_one_clear_message_and_the_right_code(cli, flow, argv, code, said):
    flow(STREAM)
    assert cli(*argv)[0] == code
    got, out, err = cli(*argv, "--json")
    assert got == code
    message = json.loads(out)["error"]
    assert said in message["message"]
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "argv", [["chat", "./m.gguf", "-m", "hi"], ["selftest", "./m.gguf"], ["run", "flow.yaml", "--gguf", "./m.gguf"]]
)
def test_a_model_that_was_typed_is_said_to_come_from_the_command_line(cli, flow, tmp_path, argv):
    pytest.importorskip("llama_cpp")
    flow(STREAM)
    build_scripted(tmp_path / "m.gguf", [["Hello"]])
    assert "backend: local (m.gguf), named on the command line\n" in cli(*argv)[2]
    (tmp_path / "m.gguf").unlink()
    code, _, err = cli(*argv)
    assert (code, "the command line: m.gguf: no such file" in err, "--gguf" in err) == (4, True, False)


def test_an_action_that_fails_keeps_its_exit_code_and_says_where(cli, flow, server):
    server.mode = "status:404"
    code, _out, err = cli("run", flow(with_server(server)))
    assert code == 1
    assert "error: flow.yaml:4: node answer: API 127.0.0.1" in err


def test_a_wrong_setting_names_file_line_and_the_nearest_key(cli, flow):
    code, _out, err = cli("run", flow("nodes: [{name: a, run: pass}]\nsettings:\n  llm:\n    n_cxt: 5\n"))
    assert code == 2
    assert "flow.yaml:4: settings.llm.n_cxt: unknown key" in err
    assert "did you mean 'n_ctx'?" in err


def test_a_workflow_can_be_checked_without_running(cli, flow):
    name = flow("nodes: [{name: a, run: 1/0}, {name: b, action: llm.call, params: {prompt: x}}]\n")
    assert cli("validate", name)[1].startswith("here: ok, a → b\n")
    assert cli("run", name, "--check") == cli("validate", name)
    data = json.loads(cli("validate", name, "--json")[1])
    assert (data["workflow"], data["here"]) == ("flow.yaml", {"runs": True, "nodes": ["a", "b"], "inputs": []})
    assert cli("validate", flow("nodes: [{name: a, action: llm.cal}]\n"))[0] == 2


def test_a_loop_is_stopped_where_the_option_says(cli, flow):
    code, _out, err = cli("run", flow("nodes: [{name: a, run: pass, goto: a}]\n"), "--max-steps", "7")
    assert (code, "stopped after 7 steps" in err) == (1, True)


def test_whatever_is_in_the_state_json_can_hold_it(cli, flow):
    name = flow("""
        nodes:
          - name: a
            run: |
              import datetime, pathlib
              return {"day": datetime.date(2026, 1, 2), "path": pathlib.Path("x"), "set": {1}, "nan": float("nan"),
                      "bytes": b"x", "lone": "\\ud800", 5: "number", "deep": {"t": (1, 2)}}
    """)
    code, out, _err = cli("run", name, "--json")
    assert code == 0
    state = json.loads(out)
    assert (state["day"], state["path"], state["set"], state["nan"], state["5"]) == (
        "2026-01-02",
        "x",
        [1],
        None,
        "number",
    )
    assert cli("run", name)[0] == 0


def test_what_json_cant_hold_is_said_once_with_its_place(cli, flow):
    name = flow("nodes: [{name: a, run: \"return {'x': [1.0, float('nan')], 'y': {'z': object()}, 's': (1,)}\"}]")
    code, out, err = cli("run", name, "--json")
    assert (code, json.loads(out)["x"]) == (0, [1.0, None])
    assert err.count("JSON can't hold") == 1
    assert "x[1] (nan became null), y.z (object became a text)" in err
    assert "can't hold" not in cli("run", flow("nodes: [{name: a, run: 'return 1.5'}]"), "--json")[2]


@pytest.mark.parametrize("argv", [["validate"], ["run", "--json"]])
def test_a_key_that_nearly_says_llm_is_remarked(cli, flow, argv):
    text = "nodes: [{name: a, run: 'return 1'}]\nsettings:\n  lm: {}\n  opik: {}\n"
    code, _, err = cli(*argv, flow(text))
    assert code == 0
    assert "flow.yaml:3: settings.lm: means nothing here; did you mean settings.llm?" in err
    assert "opik" not in err


def test_a_vector_is_shortened_for_people_and_whole_in_json(cli, flow):
    name = flow('nodes: [{name: v, run: "return [0.25] * 100"}]\n')
    assert cli("run", name)[1] == "v: [0.25, 0.25, 0.25, 0.25, … 100 numbers]\n"
    assert len(json.loads(cli("run", name, "--json")[1])["v"]) == 100


def test_every_command_has_help(cli):
    for name in COMMANDS:
        code, out, _err = cli(name, "--help")
        assert code == 0
        assert out.startswith(f"Usage: tea-runtime {name}")


@pytest.fixture
def program(start):
    """Start `tea-runtime` as a process of its own."""
    return lambda *argv: start([*PROGRAM, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_in_the_middle_ends_with_130(flow, server, program):
    server.mode = "silent"
    process = program("run", flow(with_server(server)))
    while not server.requests:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_before_the_end_gets_no_message_and_no_success(flow, server, program):
    server.content = "word " * 20_000
    process = program("run", flow(with_server(server)), "-q")
    process.stdout.read(10)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (1, "")


def test_escape_sequences_from_a_model_do_not_reach_a_terminal(flow, server, start):
    server.content = "a\x1b]0;title\x07b"
    name = flow(with_server(server))
    main, side = pty.openpty()
    process = start([*PROGRAM, "run", name, "-q"], stdout=side, stderr=subprocess.DEVNULL)
    os.close(side)
    shown = b""
    try:
        while part := os.read(main, 4096):
            shown += part
    except OSError:
        pass
    assert process.wait() == 0
    os.close(main)
    assert b"\x1b]0" not in shown
    assert b"\\x1b]0;title\\x07b" in shown


@pytest.mark.parametrize("tail", [[], ["--json"]])
def test_a_run_that_fails_while_nobody_reads_is_no_success(flow, program, tail):
    name = flow("nodes: [{name: a, run: \"print('x' * 200000, flush=True)\"}, {name: b, run: 1/0}]\n")
    process = program("run", name, "-q", *tail)
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 1


def test_a_run_that_ended_is_a_success_though_only_the_start_was_read(flow):
    name = flow("nodes: [{name: a, run: \"return 'one'\"}, {name: b, run: \"return 'two'\"}]\n")
    line = f"{shlex.join(PROGRAM)} run {name} -q | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "a: one\n0\n"


def test_main_may_be_called_again_in_one_process(flow):
    name = flow("nodes: [{name: a, run: return 1}]\n")
    calls = [["run", name], ["run", name, "--json"], ["run", "nope.yaml"], ["run"], ["--version"], ["validate", name]]
    code = (
        "import contextlib, io, json\n"
        "from tea_runtime.cli import main\n"
        "def call(argv):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try: main(argv)\n"
        "        except SystemExit as end: return end.code, out.getvalue(), err.getvalue()\n"
        f"for argv in {calls!r}: print(call(argv) == call(argv), end=' ')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"] * len(calls)


@pytest.mark.parametrize(
    ("given", "state"),
    [
        (["q=why?"], {"q": "why?"}),
        (["q=a=b", "doc=@doc.txt"], {"q": "a=b", "doc": "a text\n"}),
        (["q=", "n=3", "list=[1, 2]"], {"q": "", "n": 3, "list": [1, 2]}),
        (["free=3"], {"free": "3"}),
        (["free:=3", 'more:={"a": null}'], {"free": 3, "more": {"a": None}}),
        (['{"q": "one", "n": 1}', "q=two"], {"q": "two", "n": 1}),
        (["@in.json", "n=5"], {"q": "file", "n": 5}),
        (["q=@missing"], "missing: no such file"),
        (["n=many"], "--input n: expected int, found 'many'"),
        (["why?"], "not valid JSON"),
    ],
)
def test_inputs_may_be_typed_as_they_are(cli, flow, tmp_path, given, state):
    (tmp_path / "doc.txt").write_text("a text\n")
    (tmp_path / "in.json").write_text('{"q": "file"}')
    name = flow("state_schema: {q: str, n: int, list: 'list[int]'}\nnodes: [{name: end, run: pass}]\n")
    arguments = [part for one in given for part in ("-i", one)]
    _code, out, _err = cli("run", name, "--json", *arguments)
    if isinstance(state, str):
        assert state in json.loads(out)["error"]["message"]
    else:
        assert json.loads(out) == {"list": [], **state}


def test_one_value_is_printed_alone(cli, flow, server):
    name = flow(with_server(server, STREAM.rstrip() + "\n    output: result\n  - {name: n, run: 'return [1, 2]'}\n"))
    assert cli("run", name, "--get", "result.content")[1] == "Paris.\n"
    assert "Paris." in cli("run", name, "--get", "n")[2]
    assert cli("run", name, "--get", "n")[1] == "[1, 2]\n"
    assert cli("run", name, "--get", "n.1", "--json")[1] == "2\n"
    code, _out, err = cli("run", name, "--get", "nope")
    assert (code, "no 'nope'" in err, "result, n" in err) == (2, True, True)


def test_a_missing_input_is_named_with_the_command_to_type_before_a_model_is_looked_for(cli, flow, own_world):
    name = flow("""
        state_schema: {question: str}
        settings: {llm: {model: smollm2-135m}}
        nodes:
          - {name: answer, action: llm.chat, params: {prompt: "{{ state.question }} {{ state.doc }}"}}
    """)
    code, out, err = cli("run", name, "-i", "doc=x")
    assert (code, out) == (2, "")
    assert "error: flow.yaml needs question (str): node answer uses it" in err
    assert 'tea-runtime run flow.yaml -i doc=… -i question="…"' in err
    assert json.loads(cli("validate", name, "--json")[1])["here"]["inputs"] == ["question", "doc"]


@pytest.mark.parametrize("where", ["settings: {llm: {backend: local, model: phi4-mini}}\n", ""])
def test_a_missing_model_is_named_with_the_way_to_get_it(cli, flow, where):
    node = "{name: a, action: llm.chat, params: {prompt: x%s}}" % (
        "" if where else ", model: phi4-mini, backend: local"
    )
    code, _out, err = cli("run", flow(where + f"nodes: [{node}]\n"))
    assert (code, "phi4-mini" in err, "tea-models pull phi4-mini" in err) == (4, True, True)


def test_a_missing_model_is_pulled_when_that_is_asked_for(cli, flow, tmp_path):
    pytest.importorskip("llama_cpp")
    build_scripted(tmp_path / "hello.gguf", [["Hello"]])
    (tmp_path / "registry.yaml").write_text(
        "schema: tea.registry/1\nmodels:\n  mine:\n    kind: chat\n    license: MIT\n    default: only\n"
        f"    variants: {{only: {{files: [{{filename: h.gguf, sources: ['file:{tmp_path}/hello.gguf']}}]}}}}\n"
    )
    name = flow("settings: {llm: {model: mine}}\nnodes: [{name: a, action: llm.chat, params: {prompt: x}}]\n")
    assert cli("run", name)[0] == 4
    assert cli("run", name, "--pull")[:2] == (0, "a: Hello\n")
    assert cli("run", name)[:2] == (0, "a: Hello\n")


def test_answers_are_recorded_and_replayed(cli, flow, server, tmp_path):
    name = flow(with_server(server))
    assert cli("run", name, "--record", "answers.jsonl")[1] == "Paris.\n"
    server.content = "Rome."
    assert cli("run", name, "--replay", "answers.jsonl")[1] == "Paris.\n"
    assert cli("run", name, "--replay", "answers.jsonl", "-i", "question=other")[0] != 0
    assert cli("run", name, "--replay", "a", "--record", "b")[0] == 2


def test_what_differs_in_the_host_is_told(cli, flow):
    name = flow("""
        imports: [{package: tea_runtime, namespace: ""}]
        settings: {llm: {model: smollm2-135m, fallback: false}}
        nodes:
          - {name: a, action: llm.call, params: {prompt: x}, outputs: {b: "{{ result.content }}"}}
    """)
    code, out, _err = cli("validate", name)
    assert code == 0
    assert "here: ok, a" in out
    for said in (
        "flow.yaml:2: settings.llm.fallback",
        "`action` does nothing: write `uses`",
        "`outputs`",
        "llm.call chats",
    ):
        assert said in out
    assert "flow.yaml:4: node a: `params`" in out
    host_only = flow("nodes: [{name: a, steps: []}]\n")
    code, out, _err = cli("validate", host_only)
    assert (code, "several steps in a node are not part of this runner" in out) == (0, True)
    assert cli("validate", flow("nodes: [{name: a}]\n"))[0] == 2


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("uses: reflection.loop", "nodes[0].uses: there is no action 'reflection.loop'"),
        ("run: x, language: lua", "nodes[0].language: expected 'python', got 'lua'"),
        ("uses: llm.call, with: {prompt: q, raw: true, shell_provider: x}", "unknown parameter 'shell_provider'"),
    ],
)
def test_what_this_runner_does_not_know_is_no_error_in_a_workflow_for_the_host(cli, flow, node, said):
    nodes = f"nodes: [{{name: a, {node}}}]\n"
    code, out, _err = cli("validate", flow(f"imports: [{{package: tea_runtime}}]\n{nodes}"))
    assert (code, said in out, "in The Edge Agent: nothing to change" in out) == (0, True, True)
    assert cli("validate", flow(nodes))[0] == 2


# With a real model ----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_chat_answers_once_without_a_terminal(cli, real_model):
    code, out, _err = cli(
        "chat", str(real_model), "-m", "What is the capital of France?", "--temperature", "0", "--max-tokens", "20"
    )
    assert code == 0
    assert out.strip()
    code, out, _err = cli("chat", str(real_model), "-m", "Say hi.", "--max-tokens", "5", "--json")
    assert (code, json.loads(out)["backend"]) == (0, "local")


@pytest.mark.real
def test_a_model_that_is_not_here_is_pulled_when_that_is_asked_for(cli, real_model, tmp_path, monkeypatch):
    (tmp_path / "registry.yaml").write_text(
        "schema: tea.registry/1\nmodels:\n  mine:\n    kind: chat\n    license: Apache-2.0\n    default: only\n"
        "    variants:\n      only:\n        files:\n"
        f"          - {{filename: {real_model.name}, sources: ['file:{real_model}']}}\n"
    )
    monkeypatch.chdir(tmp_path)
    code, _out, err = cli("embed", "mine", "a")
    assert (code, "tea-models pull mine" in err) == (4, True)
    assert cli("embed", "mine", "a", "--pull")[0] == 0


@pytest.mark.real
def test_embed_prints_vectors_and_how_alike_they_are(cli, real_model):
    code, out, _err = cli("embed", str(real_model), "a cat", "a dog")
    assert code == 0
    assert "similarity" in out
    assert "1.000" in out
    code, out, _err = cli("embed", str(real_model), "a cat", "--json")
    data = json.loads(out)
    assert data["dimensions"] == len(data["embeddings"][0]["embedding"])
    assert data["model"] == real_model.name


@pytest.mark.real
def test_selftest_passes_on_the_real_model(cli, real_model):
    code, out, err = cli("selftest", str(real_model), "--json")
    report = json.loads(out)
    assert [check for check in report["checks"] if check["status"] == "failed"] == [], err
    assert (code, report["passed"]) == (0, True)


@pytest.mark.real
def test_serve_answers_and_ends_at_once_when_told(real_model, program):
    process = program("serve", str(real_model), "--port", "0", "--json", "-q")
    where = json.loads(process.stdout.readline())
    assert where["model"] == real_model.name
    # The address is known before the server accepts; the connection waits in the queue of the listener.
    body = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4}
    answer = httpx2.post(where["url"] + "/chat/completions", json=body, timeout=300)
    assert answer.json()["usage"]["completion_tokens"] <= 4
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 130


def test_only_locked_models_answer_where_that_is_asked_for(cli, flow, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp")
    build_scripted(tmp_path / "hello.gguf", [["Hello"]])
    build_scripted(tmp_path / "other.gguf", [["Other"]])
    node = "{name: a, action: llm.chat, params: {prompt: x}}"
    named = flow(f"settings: {{llm: {{model: 'file:{tmp_path}/hello.gguf', backend: local}}}}\nnodes: [{node}]\n")
    code, _out, err = cli("run", named, "--locked")
    assert (code, "locked" in err) == (1, True)
    path = flow(
        f"settings: {{llm: {{model_path: '{tmp_path}/other.gguf', fallback: true}}}}\nnodes: [{node}]\n", "p.yaml"
    )
    assert cli("run", path)[:2] == (0, "a: Other\n")
    code, _out, err = cli("run", path, "--locked")
    assert (code, "locked" in err) == (1, True)
