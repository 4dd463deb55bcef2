"""Pages to send to somebody: `plan --html`, `inspect --html` and `run --trace`."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tea_models.cli import group as models
from tea_models.cli import plan_view
from tea_models.cli.frame import run
from tea_models.cli.page import fill
from tea_models.cli.plan_view import PARTS, SOURCES, shown
from tea_models.engine.formula import MemoryUse
from tea_models.plan.curve import verdict
from tea_models.plan.resolve import resolve_plan
from tea_models.plan.types import MemoryPlan
from tea_models.sizes import human_bytes
from tea_runtime.cli import group as runtime
from tests.api_server import USAGE, serve_api
from tests.gguf_build import build_gguf, small_llama_metadata, small_llama_tensors
from tests.scripted_model import build_scripted

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>&amp;\u202egnp"
ELEMENTS = {
    "b", "code", "dd", "details", "div", "dl", "dt", "footer", "h1", "h2", "h3", "header", "html", "i", "li", "main", "meta", "p",
    "pre", "section", "small", "span", "strong", "style", "summary", "table", "td", "th", "title", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {"aria-label", "charset", "class", "content", "http-equiv", "lang", "name", "role", "style", "title"}


def build_model(**metadata):
    values = small_llama_metadata(**metadata)
    return build_gguf(values, small_llama_tensors(values))


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its attributes, and the text that a person reads."""

    def __init__(self, source):
        super().__init__()
        self.source, self.elements, self.attributes, self.parts, self.styles = source, set(), set(), [], []
        self._open = []
        self.feed(source)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.styles += [value for name, value in attributes if name == "style"]
        self._open.append(tag)

    def handle_data(self, data):
        (self.styles if self._open[-1:] == ["style"] else self.parts).append(data)

    def handle_endtag(self, _tag):
        while self._open and self._open.pop() != _tag:
            pass

    def __contains__(self, text):
        return " ".join(str(text).split()) in self.text


@pytest.fixture
def tea(tmp_path, monkeypatch, capfd):
    """Run a command of either program in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def tea(program, *argv):
        code = run(program(), list(map(str, argv)))
        out, err = capfd.readouterr()
        return code, out, err

    return tea


@pytest.fixture
def page(tmp_path):
    """A page that was written, after the promises that all pages keep were checked."""

    def page(name):
        found = Page((tmp_path / name).read_text("utf-8"))
        assert found.source.startswith("<!doctype html>")
        assert "default-src 'none'; style-src 'unsafe-inline'" in found.source
        assert "prefers-color-scheme: dark" in found.source
        assert found.elements <= ELEMENTS
        assert found.attributes <= ATTRIBUTES
        assert not [style for style in found.styles if "url(" in style or "@import" in style]
        return found

    return page


@pytest.fixture
def flow(tmp_path):
    def flow(text, name="flow.yaml"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return flow


def test_a_plan_as_a_page_holds_what_its_json_holds(tea, page, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    code, out, err = tea(models, "plan", "tiny.gguf", "--estimate", "--html", "plan.html", "--plot", "--json")
    assert (code, "wrote plan.html" in err) == (0, True)
    plan, found = json.loads(out), page("plan.html")
    for decision in plan["decisions"]:
        head = f"{decision['setting']} {shown(decision['setting'], decision['value'])} {SOURCES[decision['source']]}"
        assert f"{head} {decision['reason']}" in found
        for other in decision["rejected"]:
            assert f"not {shown(decision['setting'], other['value'])}: {other['reason']}" in found
    assert {decision["setting"] for decision in plan["decisions"]} == set(plan["settings"])
    memory = plan["memory"]
    for part, label in PARTS.items():
        assert f"{label} {human_bytes(memory[part])}" in found
    assert f"{human_bytes(memory['total'])} of the {human_bytes(memory['budget'])} that may be used" in found
    assert memory["budget_reason"] in found
    assert [note for note in plan["notes"] if note not in found] == []
    assert len(plan["curve"]) > 3
    for point in plan["curve"]:
        assert f"{point['n_ctx']:,} {human_bytes(point['total'])}" in found
    assert f"{plan['settings']['n_ctx']:,} {human_bytes(plan['curve'][-1]['total'])} ◂ planned" in found


def test_a_page_is_written_beside_the_usual_answer(tea, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    usual = tea(models, "plan", "tiny.gguf", "--estimate", "--memory", "1GiB")
    assert tea(models, "plan", "tiny.gguf", "--estimate", "--memory", "1GiB", "--html", "p.html", "-q") == usual
    usual = tea(models, "inspect", "tiny.gguf", "--json")
    assert tea(models, "inspect", "tiny.gguf", "--json", "--html", "i.html", "-q") == usual


def test_what_does_not_fit_leaves_no_page(tea, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    assert tea(models, "plan", "tiny.gguf", "--estimate", "--memory", "5MiB", "--html", "p.html")[0] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_memory_over_the_budget_is_marked_in_page_and_picture(tea, page, tmp_path):
    (tmp_path / "long.gguf").write_bytes(build_model(llama__context_length=1 << 20))
    argv = ("plan", "long.gguf", "--estimate", "--memory", "300MiB", "--html", "p.html", "--plot", "p.svg", "--json")
    code, out, _err = tea(models, *argv)
    plan = json.loads(out)
    assert (code, plan["settings"]["n_ctx"] < 1 << 20) == (0, True)
    found, svg = page("p.html"), (tmp_path / "p.svg").read_text("utf-8")
    over = [point for point in plan["curve"] if point["total"] > plan["memory"]["budget"]]
    assert over
    for point in over:
        assert f"{point['n_ctx']:,} {human_bytes(point['total'])} too much" in found
    assert svg.count("too much") == len(over)
    assert svg.count("<rect") == 1 + 2 * len(plan["curve"])


def test_each_gpu_has_a_bar_of_its_own(page, tmp_path):
    mib = 1 << 20
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    plan = resolve_plan(tmp_path / "tiny.gguf")
    devices = {"CUDA0": (300 * mib, 20 * mib, 10 * mib), "CUDA1": (100 * mib, 0, 0)}
    use = MemoryUse(500 * mib, 30 * mib, 15 * mib, 40 * mib, "measured", devices=devices)
    memory = MemoryPlan(1000 * mib, "as asked for", {"CUDA0": 660 * mib, "CUDA1": 400 * mib}, use)
    facts = {"plan": replace(plan, memory=memory), "curve": [], "view": plan_view, "verdict": verdict}
    (tmp_path / "p.html").write_text(fill("plan.html", **facts), "utf-8")
    found = page("p.html")
    for text in (
        "This machine: 155 MiB of the 1000 MiB that may be used (16 %)",
        "CUDA0: 330 MiB of the 660 MiB that may be used (50 %)",
        "CUDA1: 100 MiB of the 400 MiB that may be used (25 %)",
    ):
        assert text.replace("1000 MiB", human_bytes(1000 * mib)) in found


def test_an_inspection_as_a_page_holds_what_its_json_holds(tea, page, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_model(tokenizer__ggml__bos_token_id=5000))
    code, out, _err = tea(models, "inspect", "tiny.gguf", "--html", "i.html", "--tensors", "--json")
    assert code == 0
    document, found = json.loads(out), page("i.html")
    for key, value in document["metadata"].items():
        told = str(value).lower() if isinstance(value, bool) else value
        if isinstance(value, dict):
            told = f"{value['count']:,} \u00d7 {value['type']}"
        elif isinstance(value, str) and "\n" in value:
            told = f"{len(value):,} characters {value}"
        assert f"{key} {told}" in found
    for tensor in document["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        assert f"{tensor['name']} {shape} {tensor['type']} {tensor['offset']:,} {tensor['bytes']:,}" in found
    assert document["warnings"]
    assert [warning for warning in document["warnings"] if warning not in found] == []
    for label, fact in (("architecture", "llama"), ("context", "2,048 tokens"), ("license", "mit")):
        assert f"{label} {fact}" in found


def test_arrays_are_whole_in_the_page_where_they_are_whole_in_the_json(tea, page, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    whole = json.loads(tea(models, "inspect", "tiny.gguf", "--html", "i.html", "--full", "--json")[1])
    tokens = whole["metadata"]["tokenizer.ggml.tokens"]
    assert f"tokenizer.ggml.tokens {len(tokens):,} values {' '.join(tokens[:20])}" in page("i.html")


def test_a_hostile_file_is_text_and_nothing_else(tea, page, tmp_path):
    texts = {"general__name": HOSTILE, "general__license": HOSTILE, "<script>x</script>": HOSTILE}
    name = "<img src=x onerror=alert(1)>.gguf"
    (tmp_path / name).write_bytes(build_model(**texts))
    assert tea(models, "inspect", name, "--html", "i.html", "--tensors")[0] == 0
    assert tea(models, "plan", name, "--estimate", "--html", "p.html", "--plot", "p.svg")[0] == 0
    visible = HOSTILE.replace("\u202e", "\\x202e")
    found = page("i.html")
    assert f"<script>x</script> {visible}" in found
    assert found.text.count(visible) >= 3
    assert "\u202e" not in found.source
    assert "<img src=x" in page("p.html")
    assert "<img" not in (tmp_path / "p.svg").read_text("utf-8")


@pytest.mark.parametrize("argv", [("plan", "absent.gguf", "--html"), ("inspect", "absent.gguf", "--html")])
def test_where_a_page_cannot_be_it_is_said_before_the_work(tea, tmp_path, argv):
    (tmp_path / "notes.html").write_text("<p>mine")
    (tmp_path / "folder").mkdir()
    for target, code, said in (
        ("notes.html", 2, "notes.html: it is another program's file"),
        ("folder", 2, "is a directory"),
        ("nowhere/p.html", 1, "nowhere/p.html: can't be written: no such file"),
        ("fresh.html", 4, "absent.gguf"),
    ):
        found, out, err = tea(models, *argv, target)
        assert (found, out, said in err) == (code, "", True), err
    assert (tmp_path / "notes.html").read_text() == "<p>mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "notes.html"]


def test_a_page_may_be_written_again(tea, page, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(build_gguf())
    (tmp_path / "p.html").touch()  # an empty file is nobody's loss
    for argv in (("inspect", "tiny.gguf"), ("plan", "tiny.gguf", "--estimate"), ("plan", "tiny.gguf", "--estimate")):
        assert tea(models, *argv, "--html", "p.html")[0] == 0
    assert "Each setting, and why" in page("p.html")


def test_pages_go_without_answers_that_they_do_not_hold(tea):
    for argv in (("plan", "x", "--compare"), ("inspect", "x", "--template"), ("inspect", "x", "--key", "general.name")):
        code, _out, err = tea(models, *argv, "--html", "p.html")
        assert (code, "--html" in err) == (2, True)


LOCAL = """
    name: two answers
    settings: {llm: {backend: local, model_path: hello.gguf, temperature: 0}}
    nodes:
      - {name: before, run: "return {'question': state['question'] + '?'}"}
      - {name: answer, action: llm.chat, params: {prompt: "{{ state.question }}"}}
      - {name: streamed, action: llm.stream, params: {prompt: "{{ state.question }}", raw: false}}
      - {name: many, action: llm.batch, params: {prompts: [one, two], raw: false}}
"""


def test_a_trace_has_each_step_with_time_tokens_and_backend_and_no_text(tea, page, flow, tmp_path):
    pytest.importorskip("llama_cpp")
    build_scripted(tmp_path / "hello.gguf", [["Hello", "ween"]])
    argv = ("run", flow(LOCAL), "-i", "question=MYSECRET", "--trace", "t.html", "--json")
    code, out, err = tea(runtime, *argv)
    assert (code, json.loads(out)["answer"], "wrote t.html" in err) == (0, "Helloween", True)
    trace, found = json.loads((tmp_path / "t.json").read_text()), page("t.html")
    assert (trace["schema"], trace["workflow"], trace["error"]) == ("tea.run-trace/1", "two answers", None)
    assert [step["node"] for step in trace["steps"]] == ["before", "answer", "streamed", "many"]
    assert [step["action"] for step in trace["steps"]] == ["run", "llm.chat", "llm.stream", "llm.batch"]
    assert [step["backend"] for step in trace["steps"]] == [None, "local", "local", "local"]
    assert [step["completion_tokens"] for step in trace["steps"]] == [None, 2, 2, 4]
    ends = [step["start"] + step["seconds"] for step in trace["steps"]]
    starts = [step["start"] for step in trace["steps"]]
    assert all(end <= start + 0.001 for end, start in zip(ends, starts[1:], strict=False))
    assert ends[-1] <= trace["seconds"] + 0.001
    for step in trace["steps"][1:]:
        assert step["tokens_per_s"] == pytest.approx(step["completion_tokens"] / step["seconds"], abs=0.1)
        told = [f"{step['node']} {step['action']}", step["model"], step["backend"]]
        told += [f"{step['prompt_tokens']:,} tokens of prompt", f"{step['completion_tokens']:,} of answer"]
        assert [text for text in told if text not in found] == []
    assert found.source.count('<i class="local"') == 3
    assert "It ran to its end." in found
    for file in ("t.html", "t.json"):
        assert not [text for text in ("MYSECRET", "Helloween") if text in (tmp_path / file).read_text()]


def test_a_trace_named_json_is_only_data(tea, flow, tmp_path):
    assert tea(runtime, "run", flow("nodes: [{name: a, run: return 1}]"), "--trace", "t.json")[:2] == (0, "a: 1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.yaml", "t.json"]


def test_a_run_that_fails_leaves_a_trace_with_the_node_and_its_error(tea, page, flow, tmp_path):
    with serve_api() as api:
        text = f"""
            settings: {{llm: {{backend: api, api_base: '{api.base}', max_retries: 0}}}}
            nodes:
              - {{name: asked, action: llm.call, params: {{prompt: x}}}}
              - {{name: broken, run: "return 1 / 0"}}
              - {{name: never, run: return 1}}
        """
        code, out, err = tea(runtime, "run", flow(text), "--trace", "t.html", "--json")
    assert (code, list(json.loads(out))) == (1, ["error"])
    trace, found = json.loads((tmp_path / "t.json").read_text()), page("t.html")
    assert [step["node"] for step in trace["steps"]] == ["asked", "broken"]
    asked, broken = trace["steps"]
    assert (asked["backend"], asked["error"]) == ("api", None)
    assert {name: asked[name] for name in ("prompt_tokens", "completion_tokens")}.items() <= USAGE.items()
    assert broken["error"] == trace["error"]
    assert broken["error"]["type"] == "Workflow"
    assert "flow.yaml:5: node broken: ZeroDivisionError" in broken["error"]["message"]
    assert f"It failed. Workflow: {broken['error']['message']}" in found
    assert found.source.count('<i class="failed"') == 1
    assert "wrote t.html" in err


@pytest.mark.parametrize(
    ("text", "steps", "problem"),
    [
        ("nodes: [{name: a, run: return 1}]\nedges: [{from: __start__, to: a, when: false}]", 0, "no edge applies"),
        ("nodes: [{name: a, run: return 1, goto: a}]", 3, "stopped after 3 steps"),
        ("nodes: [{name: a, run: return 1}, {name: b, action: llm.call, params: {prompt: '{{ state.x }}'}}]", 2, "'x'"),
    ],
)
def test_a_run_that_fails_between_or_before_nodes_leaves_a_trace_too(tea, page, flow, tmp_path, text, steps, problem):
    if "llm" in text:
        text += "\nsettings: {llm: {backend: api, api_base: 'http://127.0.0.1:9'}}"
    assert tea(runtime, "run", flow(text), "-i", "y=1", "--max-steps", "3", "--trace", "t.html")[0] != 0
    trace = json.loads((tmp_path / "t.json").read_text())
    assert (len(trace["steps"]), problem in trace["error"]["message"]) == (steps, True)
    assert trace["error"]["message"] in page("t.html")


def test_a_failure_that_a_node_keeps_is_in_the_trace(tea, page, flow, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def fail(state): return {'success': False, 'error': 'no <luck>', 'usage': {'completion_tokens': 'many'}}\n"
        "def register_actions(registry, engine): registry['fail'] = fail\n"
    )
    text = "imports: [{path: mine.py, namespace: my}]\nnodes: [{name: a, action: my.fail, output: result}]"
    assert tea(runtime, "run", flow(text), "--trace", "t.html")[0] == 0
    trace = json.loads((tmp_path / "t.json").read_text())
    assert (trace["error"], trace["steps"][0]["error"]) == (None, {"type": "Error", "message": "no <luck>"})
    assert trace["steps"][0]["completion_tokens"] is None
    assert "Error: no <luck>" in page("t.html")


def test_an_interrupted_run_leaves_a_trace(flow, tmp_path, start):
    text = "nodes: [{name: waits, run: 'import time, pathlib; pathlib.Path(\"begun\").touch(); time.sleep(600)'}]"
    program = [sys.executable, "-c", "from tea_runtime.cli import main; main()"]
    process = start([*program, "run", flow(text), "--trace", "t.html"], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    trace = json.loads((tmp_path / "t.json").read_text())
    assert (trace["error"]["type"], [step["node"] for step in trace["steps"]]) == ("KeyboardInterrupt", ["waits"])


def test_a_hostile_workflow_is_text_and_nothing_else(tea, page, flow):
    text = json.dumps({"name": HOSTILE, "nodes": [{"name": HOSTILE, "run": f"raise ValueError({HOSTILE!r})"}]})
    assert tea(runtime, "run", flow(text), "--trace", "t.html")[0] == 1
    assert HOSTILE.replace("\u202e", "\\x202e") in page("t.html")


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("t.txt", 2, "expected a name that ends in .html or .json"),
        ("input.html", 2, "input.json: it is another program's file"),
        ("input.json", 2, "input.json: it is another program's file"),
        ("folder.html", 2, "is a directory"),
        ("other.html", 1, "other.json: not a file"),
        ("nowhere/t.html", 1, "nowhere/t.json: can't be written"),
    ],
)
def test_where_a_trace_cannot_be_it_is_said_before_a_node_runs(tea, flow, tmp_path, target, code, said):
    (tmp_path / "input.json").write_text('{"question": 1}')
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "other.json").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    text = "nodes: [{name: a, run: 'import pathlib; pathlib.Path(\"ran\").touch()'}]"
    found, out, err = tea(runtime, "run", flow(text), "-i", "@input.json", "--trace", target)
    assert (found, out, said in err) == (code, "", True), err
    assert (tmp_path / "input.json").read_text() == '{"question": 1}'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "flow.yaml"])


def test_a_trace_may_be_written_again(tea, flow, tmp_path):
    for value in (1, 2):
        name = flow(f"name: run{value}\nnodes: [{{name: a, run: return {value}}}]")
        assert tea(runtime, "run", name, "--trace", "t.html")[0] == 0
    assert json.loads((tmp_path / "t.json").read_text())["workflow"] == "run2"
    assert tea(runtime, "run", name, "--trace", "t.json")[0] == 0
