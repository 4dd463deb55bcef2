"""The workflow runner, without a model: nodes, edges, templates, `run:` blocks, imports, and what errors say."""

from __future__ import annotations

import textwrap

import pytest

from tea_models.errors import ConfigError, MissingFileError, UsageError
from tea_runtime.errors import WorkflowError
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.workflow.file import read_workflow
from tea_runtime.workflow.runner import check_workflow, run_workflow
from tests.workflows import parse_workflow

ECHO = """
def register_actions(registry, engine):
    def echo(state, **params):
        return {"content": params.get("text"), "params": params}
    def plain(state, value=None, **_):
        return value
    def broken(state, **_):
        return {"error": "it broke", "success": False}
    def raising(state, **_):
        raise RuntimeError("boom")
    registry.update({"echo": echo, "plain": plain, "broken": broken, "raising": raising})
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "my_actions.py").write_text(ECHO)

    def run(text, state=None, **options):
        path = tmp_path / "flow.yaml"
        path.write_text("imports: [{path: my_actions.py}]\n" + textwrap.dedent(text).lstrip("\n"))
        return run_workflow(path, state, **options)

    return run


def test_without_edges_nodes_run_in_their_order(run):
    state = run("""
        nodes:
          - {name: a, run: "return {'log': ['a']}"}
          - {name: b, run: "state['log'].append('b')"}
          - {name: c, run: "return {'log': state['log'] + ['c']}"}
    """)
    assert state == {"log": ["a", "b", "c"]}


def test_edges_decide_where_to_go(run):
    flow = """
        nodes:
          - {name: left, run: "return {'way': 'left'}"}
          - {name: check, run: "return {'big': state['n'] > 5}"}
          - {name: right, run: "return {'way': 'right'}"}
        edges:
          - {from: __start__, to: check}
          - {from: check, to: left, when: "state.big"}
          - {from: check, to: right}
          - {from: left, to: __end__}
          - {from: right, to: __end__}
    """
    assert run(flow, {"n": 9})["way"] == "left"
    assert run(flow, {"n": 1})["way"] == "right"


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("when: big", True),
        ("when: '!big'", False),
        ("when: '{{ state.n > 5 }}'", True),
        ("when: \"state['n'] < 5\"", False),
        ("when: true", True),
        ("when: false", False),
        ("condition: state.n == 9", True),
        ("condition: {type: expression, value: state.n == 9}", True),
        ("{condition: state.n == 9, when: false}", False),
        ("when: not_there", False),
    ],
)
def test_conditions_may_be_written_in_every_documented_way(run, condition, taken):
    condition = condition.strip("{}") if condition.startswith("{c") else condition
    state = run(
        f"""
        nodes:
          - {{name: a, run: "return {{'seen': ['a']}}"}}
          - {{name: b, run: "state['seen'].append('b')"}}
        edges:
          - {{from: a, to: b, {condition}}}
          - {{from: a, to: __end__}}
    """,
        {"n": 9, "big": True},
    )
    assert (state["seen"] == ["a", "b"]) is taken


def test_goto_jumps_and_branches(run):
    state = run("""
        nodes:
          - name: count
            run: |
              return {"n": state.get("n", 0) + 1}
            goto:
              - {if: state.n < 3, to: count}
              - {to: done}
          - {name: never, run: "return {'never': True}"}
          - {name: done, run: "return {'done': True}", goto: __end__}
          - {name: after, run: "return {'after': True}"}
    """)
    assert state == {"n": 3, "done": True}


def test_a_loop_without_end_is_stopped(run):
    with pytest.raises(WorkflowError, match=r"flow\.yaml:3: node a: stopped after 20 steps"):
        run("nodes:\n  - {name: a, run: pass, goto: a}\n", max_steps=20)


def test_no_edge_that_applies_is_an_error(run):
    with pytest.raises(WorkflowError, match="no edge applies after 'a'"):
        run("nodes:\n  - {name: a, run: pass}\n  - {name: b, run: pass}\nedges:\n  - {from: a, to: b, when: 'false'}\n")


def test_a_single_expression_keeps_its_type_and_mixed_text_becomes_text(run):
    state = run(
        """
        nodes:
          - {name: a, action: plain, params: {value: "{{ state.messages }}"}}
          - {name: b, action: plain, params: {value: "n={{ state.n }}"}}
          - {name: c, action: plain, params: {value: {deep: ["{{ state.n }}", "{{ state.n + 1 }}"]}}}
          - {name: d, action: plain, params: {value: "{{ state.messages | tojson }}"}}
    """,
        {"messages": [{"role": "user", "content": "<ä>"}], "n": 2},
    )
    assert state["a"] == [{"role": "user", "content": "<ä>"}]
    assert state["b"] == "n=2"
    assert state["c"] == {"deep": [2, 3]}
    assert state["d"] == '[{"role": "user", "content": "<ä>"}]'


def test_what_users_write_is_never_a_template(run):
    flow = "nodes:\n  - {name: a, action: plain, params: {value: '{{ state.x }}', other: 'x{{ state.x }}'}}\n"
    assert run(flow, {"x": "{{ 7 * 7 }}"})["a"] == "{{ 7 * 7 }}"


def test_keys_of_the_state_come_before_methods(run):
    assert run("nodes:\n  - {name: a, action: plain, params: {value: '{{ state.items }}'}}\n", {"items": [1]})["a"] == [
        1
    ]


def test_what_a_node_leaves_in_the_state(run):
    state = run("""
        variables: {greeting: hi}
        nodes:
          - {name: main, uses: echo, with: {text: "{{ variables.greeting }}"}}
          - {name: whole, action: echo, params: {text: b}, output: result}
          - name: parts
            action: echo
            params: {text: c}
            outputs: {answer: "{{ action_result.content }}", both: "{{ result.content }}-{{ state.main }}"}
          - {name: mapped, action: echo, params: {text: d}, output: {title: "{{ result.content }}"}}
    """)
    assert state == {
        "main": "hi",
        "result": {"content": "b", "params": {"text": "b"}},
        "answer": "c",
        "both": "c-hi",
        "title": "d",
    }


def test_a_run_block_may_return_a_value_a_mapping_or_the_state_itself(run):
    state = run("""
        nodes:
          - {name: number, run: "return 41 + 1"}
          - {name: keys, run: "return {'k': 1}"}
          - {name: same, run: "state['m'] = 2; return state"}
          - {name: nothing, run: "x = 5"}
          - name: long
            run: |
              import math
              text = \"\"\"two
              lines\"\"\"
              return {"lines": text.count("\\n"), "pi": int(math.pi)}
    """)
    assert state == {"number": 42, "k": 1, "m": 2, "lines": 1, "pi": 3}


def test_run_blocks_see_variables_and_actions(run):
    flow = """
        variables: {n: 3}
        nodes:
          - {name: a, run: "return actions['plain'](state, value=variables['n'] * 2)"}
    """
    assert run(flow)["a"] == 6


def test_the_callers_input_is_not_changed(run):
    given = {"messages": []}
    run("nodes:\n  - {name: a, run: \"state['messages'].append(1)\"}\n", given)
    assert given == {"messages": []}


def test_initial_state_and_schema_fill_what_was_not_given(run):
    flow = """
        state_schema: {messages: 'list[dict]', memo: dict, question: str, n: int}
        initial_state: {question: why?, n: 1}
        nodes: [{name: a, run: pass}]
    """
    assert run(flow, {"n": 2}) == {"messages": [], "memo": {}, "question": "why?", "n": 2}


@pytest.mark.parametrize(
    ("key", "value"), [("messages", "text"), ("n", "3"), ("n", True), ("question", ["x"]), ("ok", 1)]
)
def test_input_of_another_type_than_declared_is_refused(run, key, value):
    flow = "state_schema: {messages: list, question: str, n: int, ok: bool}\nnodes: [{name: a, run: pass}]\n"
    with pytest.raises(UsageError, match=f"input '{key}'"):
        run(flow, {key: value})


def test_an_error_in_a_template_names_the_very_line_it_is_on(run):
    flow = """
        nodes:
          - name: a
            action: plain
            params:
              value:
                - {role: system, content: fine}
                - {role: user, content: "{{ state.nope }}"}
    """
    with pytest.raises(
        UsageError, match=r"flow\.yaml:8: node a: value\[1\]\.content: {{ state\.nope }}: there is no key"
    ):
        run(flow)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ("nodes:\n  - {name: a, action: plain, params: {value: '{{ state.qestion }}'}}\n", "flow.yaml:3: node a: value: {{ state.qestion }}: there is no key 'qestion' (there are: question)"),
        ("nodes:\n  - name: a\n    action: plain\n    params:\n      value: 'x {{ nope }}'\n", "flow.yaml:6: node a: value: x {{ nope }}: 'nope' is not defined"),
        ("nodes:\n  - name: a\n    run: |\n      x = 1\n      y = state['nope']\n", "flow.yaml:6: node a: KeyError: 'nope'"),
        ("nodes:\n  - {name: a, run: '1/0'}\n", "flow.yaml:3: node a: ZeroDivisionError: division by zero"),
        ("nodes:\n  - {name: a, action: raising}\n", "flow.yaml:3: node a: raising: RuntimeError: boom"),
        ("nodes:\n  - {name: a, action: broken}\n", "flow.yaml:3: node a: broken: it broke"),
        ("nodes:\n  - {name: a, action: plain, outputs: {x: '{{ action_result.y }}'}}\n", "node a: x: {{ action_result.y }}"),
        ("nodes:\n  - {name: a, run: pass}\n  - {name: b, run: pass}\nedges:\n  - {from: a, to: b, when: state.x > 1}\n", "flow.yaml:6: node a: {{ state.x > 1 }}"),
    ],
)  # fmt: skip
def test_a_node_that_fails_says_file_line_and_node(run, flow, message):
    with pytest.raises((WorkflowError, UsageError)) as caught:
        run(flow, {"question": "?"})
    assert message in caught.value.message
    assert "Traceback" not in caught.value.message


def test_a_failed_result_that_is_kept_whole_does_not_end_the_run(run):
    state = run("""
        nodes:
          - {name: a, action: broken, output: r}
          - {name: b, run: "return {'handled': state['r']['error']}"}
    """)
    assert state["handled"] == "it broke"


@pytest.mark.parametrize(
    ("flow", "message", "hint"),
    [
        ("nodes: [{name: a, run: pass}]\nstate_shema: {}\n", "flow.yaml:3: state_shema: unknown key", "state_schema"),
        ("nodes:\n  - {name: a, runn: x}\n", "flow.yaml:3: nodes[0].runn: unknown key", "run"),
        ("settings: {llm: {n_cxt: 1}}\nnodes: [{name: a, run: pass}]\n", "flow.yaml:2: settings.llm.n_cxt: unknown key", "n_ctx"),
        ("nodes:\n  - {name: a, action: plian}\n", "flow.yaml:3: nodes[0].action: there is no action 'plian'", "plain"),
        ("nodes:\n  - {name: a, uses: llm.chatt}\n", "flow.yaml:3: nodes[0].uses: there is no action", "llm.chat"),
        ("nodes:\n  - {name: a, run: pass}\nedges:\n  - {from: a, to: bb}\n", "flow.yaml:5: edges[0].to: there is no node 'bb'", "a"),
        ("nodes:\n  - {name: a, run: pass, goto: aa}\n", "flow.yaml:3: nodes[0].goto: there is no node 'aa'", "a"),
        ("nodes:\n  - {name: a, run: pass}\n  - {name: a, run: pass}\n", "flow.yaml:4: nodes[1].name: there are two nodes", ""),
        ("nodes:\n  - {name: a}\n", "expected one of action, uses and run; found none", ""),
        ("nodes:\n  - {name: a, run: x, action: y}\n", "found action and run", ""),
        ("nodes:\n  - {run: x}\n", "required key 'name' is missing", ""),
        ("nodes: []\n", "nodes", ""),
        ("name: x\n", "required key 'nodes' is missing", ""),
        ("nodes:\n  - {name: a, action: plain, params: {value: '{{ state. }}'}}\n", "flow.yaml:3: nodes[0].params.value", ""),
        ("nodes:\n  - {name: a, run: pass}\n  - {name: b, run: pass}\nedges:\n  - {from: a, to: b, when: 'state.x >'}\n", "flow.yaml:6: edges[0]", ""),
        ("nodes:\n  - {name: a, run: pass}\nedges:\n  - {from: a, to: a}\n  - {from: a, to: __end__}\n", "a second edge without a condition", "when"),
        ("nodes:\n  - {name: a, steps: []}\n", "flow.yaml:3: nodes[0].steps: several steps in a node are not part", "Edge Agent"),
        ("nodes:\n  - {name: a, run: pass}\nedges:\n  - {from: a, to: __end__, type: parallel}\n", "parallel branches", "Edge Agent"),
        ("nodes:\n  - {name: a, run: pass, language: lua}\n", "expected 'python', got 'lua'", ""),
        ("nodes:\n  - {name: __start__, run: pass}\n", "reserved", ""),
        ("nodes: [{name: a, run: pass}]\nsecrets: {}\n", "flow.yaml:3: secrets: secrets are not part", "Edge Agent"),
    ],
)  # fmt: skip
def test_a_wrong_workflow_is_refused_before_it_runs(run, flow, message, hint):
    with pytest.raises(ConfigError) as caught:
        run(flow)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_settings_may_come_from_the_environment(tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text(
        "variables: {size: 2048}\n"
        "settings: {llm: {model: \"{{ env.MODEL | default('smollm2-135m') }}\", n_ctx: '{{ variables.size }}'}}\n"
        "nodes: [{name: a, run: pass}]\n"
    )
    workflow = read_workflow(path)
    assert workflow.llm_settings({}).model == "smollm2-135m"
    assert workflow.llm_settings({"MODEL": "phi4-mini"}).model == "phi4-mini"
    assert workflow.llm_settings({}).n_ctx == 2048
    with pytest.raises(ConfigError, match=r"flow\.yaml:2: settings\.llm\.n_ctx"):
        parse_workflow(
            "\nsettings: {llm: {n_ctx: '{{ env.N }}'}}\nnodes: [{name: a, run: pass}]\n", name="flow.yaml"
        ).llm_settings({"N": "x"})


def test_a_model_that_lies_beside_the_workflow_is_found_there(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    path = tmp_path / "flow.yaml"
    path.write_text("settings: {llm: {model_path: m.gguf, profile: p.json}}\nnodes: [{name: a, run: pass}]\n")
    settings = read_workflow(path).llm_settings({})
    assert settings.model_path == str(tmp_path / "m.gguf")
    assert settings.profile == "p.json"


def test_a_registry_beside_the_workflow_counts_unless_another_is_named(tmp_path):
    flow = "nodes: [{name: a, action: where}]\nimports: [{path: where.py}]\n"
    (tmp_path / "flow.yaml").write_text(flow)
    (tmp_path / "where.py").write_text(
        "def register_actions(registry, engine):\n    registry['where'] = lambda state: engine.environ.get('TEA_REGISTRY')\n"
    )
    path = tmp_path / "flow.yaml"
    assert run_workflow(path, environ={})["a"] is None
    (tmp_path / "registry.yaml").write_text("images: [nginx]\n")
    assert run_workflow(path, environ={})["a"] is None
    (tmp_path / "registry.yaml").write_text("schema: tea.registry/1\n")
    assert run_workflow(path, environ={})["a"] == str(tmp_path / "registry.yaml")
    assert run_workflow(path, environ={"TEA_REGISTRY": "/mine.yaml"})["a"] == "/mine.yaml"


@pytest.mark.parametrize("code", ["def (", "return = 1", "  x = 1\n y = 2"])
def test_a_block_that_is_not_python_is_named(run, code):
    flow = "nodes:\n  - name: a\n    run: |\n" + textwrap.indent(code, "      ") + "\n"
    with pytest.raises((WorkflowError, ConfigError)) as caught:
        run(flow)
    assert "flow.yaml:" in caught.value.message


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{path: nope.py}", "no such file of actions"),
        ("{package: not_a_package_at_all}", "ModuleNotFoundError"),
        ("{path: empty.py}", "has no register_actions"),
        ("{path: bad.py}", "SyntaxError"),
        ("{}", "expected package or path"),
        ("{path: a.py, package: b}", "expected package or path"),
    ],
)
def test_an_import_that_fails_says_where(tmp_path, item, message):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "bad.py").write_text("def (")
    path = tmp_path / "flow.yaml"
    path.write_text(f"nodes: [{{name: a, run: pass}}]\nimports:\n  - {item}\n")
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        run_workflow(path)
    assert message in caught.value.message
    assert "flow.yaml:3" in caught.value.message


def test_a_namespace_goes_before_the_names(tmp_path):
    (tmp_path / "my_actions.py").write_text(ECHO)
    path = tmp_path / "flow.yaml"
    path.write_text(
        "imports: [{path: ./my_actions.py, namespace: my}]\nnodes: [{name: a, uses: my.plain, with: {value: 1}}]\n"
    )
    assert run_workflow(path) == {"a": 1}


def test_our_own_package_can_be_imported_as_hosts_do(tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text(
        "imports: [{package: tea_runtime, namespace: x}, {package: tea_runtime, namespace: ''}]\n"
        "nodes: [{name: a, run: \"return {'names': sorted(n for n in actions if 'chat' in n)}\"}]\n"
    )
    assert run_workflow(path)["names"] == ["llm.chat", "x.llm.chat"]


def test_a_workflow_may_be_plain_data():
    assert run_workflow({"nodes": [{"name": "a", "run": "return {'x': state['y']}"}]}, {"y": 1}) == {"y": 1, "x": 1}


def test_a_missing_file_and_a_folder_are_not_found(tmp_path):
    for path in (tmp_path / "nope.yaml", tmp_path):
        with pytest.raises(MissingFileError) as caught:
            run_workflow(path)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text", ["", "- a\n", "just text\n", "a: !!python/object:os.system x\n", "a: [\n", "a: 1\na: 2\n"]
)
def test_a_file_that_is_no_workflow_is_refused(tmp_path, text):
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"flow\.yaml"):
        run_workflow(path)


def test_templates_can_not_leave_the_sandbox(run):
    for expression in ("{{ state.__class__ }}", "{{ ''.__class__.__mro__ }}", "x{{ state.update({'a': 1}) }}"):
        with pytest.raises(UsageError):
            run(f'nodes:\n  - {{name: a, action: plain, params: {{value: "{expression}"}}}}\n')


@pytest.mark.parametrize(("code", "shown"), [("3", "3"), ("", ""), ("'bye'", "'bye'"), ("0", "0")])
def test_a_block_that_exits_fails_as_a_node_and_not_the_process(run, code, shown):
    with pytest.raises(WorkflowError, match=rf"flow\.yaml:6: node leave: it called sys\.exit\({shown}\)"):
        run(f"""
            nodes:
              - name: leave
                run: |
                  import sys
                  sys.exit({code})
        """)


def test_an_action_or_a_module_that_exits_is_an_error_of_the_workflow(run, tmp_path):
    (tmp_path / "leaving.py").write_text(
        "def register_actions(registry, engine):\n    registry['leave'] = lambda state: exit(2)\n"
    )
    flow = "imports: [{path: leaving.py}]\nnodes: [{name: a, action: leave}]\n"
    (tmp_path / "w.yaml").write_text(flow)
    with pytest.raises(WorkflowError, match=r"node a: leave: it called sys\.exit\(2\)"):
        run_workflow(tmp_path / "w.yaml")
    (tmp_path / "leaving.py").write_text("raise SystemExit(4)\n")
    with pytest.raises(ConfigError, match=r"leaving\.py: SystemExit: 4"):
        run_workflow(tmp_path / "w.yaml")


def test_an_interrupt_passes(run):
    with pytest.raises(KeyboardInterrupt):
        run("nodes: [{name: a, run: 'raise KeyboardInterrupt'}]")


def test_one_step_is_one_step(run):
    with pytest.raises(WorkflowError, match=r"stopped after 1 step\b"):
        run("nodes: [{name: a, run: 'pass'}, {name: b, run: 'pass'}]", max_steps=1)


@pytest.mark.parametrize(
    ("node", "message", "hint"),
    [
        ("{name: a, action: llm.chat, params: {prompt: x, max_token: 5}}", "nodes[0].params.max_token: llm.chat: unknown parameter 'max_token'", "max_tokens"),
        ("{name: a, uses: llm.call, with: {promt: x}}", "nodes[0].with.promt: llm.call: unknown parameter 'promt'", "prompt"),
        ("{name: a, action: llm.embed}", "nodes[0].action: llm.embed: text is missing", ""),
        ("{name: a, action: x.llm.embed, params: {texts: [a]}}", "llm.embed: unknown parameter 'texts'", "text"),
        ("{name: a, action: narrow, params: {wdith: 5}}", "narrow: unknown parameter 'wdith'", "width"),
        ("{name: a, action: narrow}", "narrow: width is missing", ""),
    ],
)  # fmt: skip
def test_a_misspelt_or_missing_parameter_is_found_before_anything_runs(tmp_path, node, message, hint):
    (tmp_path / "mine.py").write_text(
        "def register_actions(r, e):\n    r['narrow'] = lambda state, width, height=1: width\n"
    )
    path = tmp_path / "flow.yaml"
    path.write_text(f"imports: [{{path: mine.py}}, {{package: tea_runtime, namespace: x}}]\nnodes:\n  - {node}\n")
    for check in (run_workflow, check_workflow):
        with pytest.raises(ConfigError) as caught:
            check(path)
        assert message in caught.value.message
        assert caught.value.message.startswith(f"{path}:3: ")
        assert hint in caught.value.hint
    path.write_text("imports: [{path: mine.py}]\nnodes:\n  - {name: a, action: narrow, params: {width: 5}}\n")
    assert list(check_workflow(path).nodes) == ["a"]


def test_the_settings_are_read_once_a_run(tmp_path, monkeypatch):
    parsed = []
    own = LlmSettings.model_validate
    monkeypatch.setattr(LlmSettings, "model_validate", lambda *given, **more: parsed.append(1) or own(*given, **more))
    path = tmp_path / "w.yaml"
    path.write_text("settings: {llm: {backend: local}}\nnodes: [{name: a, run: return 1}]\n")
    run_workflow(path)
    assert len(parsed) == 1
