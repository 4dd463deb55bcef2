"""What a workflow needs from its caller is found before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tea_runtime.workflow.file import read_workflow
from tea_runtime.workflow.inputs import required_inputs
from tests.workflows import parse_workflow

EXAMPLES = Path(__file__).parent.parent / "examples"


def needed(text):
    return [one.key for one in required_inputs(parse_workflow(text))]


@pytest.mark.parametrize(
    ("nodes", "keys"),
    [
        ("- {name: a, action: llm.call, params: {prompt: '{{ state.q }} and {{ state.r }}'}}", ["q", "r"]),
        ("- {name: a, action: llm.chat, params: {messages: [{role: user, content: \"{{ state['q'] }}\"}]}}", ["q"]),
        ("- {name: a, action: llm.call, params: {prompt: \"{{ state.q | default('x') }}\"}}", []),
        ("- {name: a, action: llm.call, params: {prompt: \"{{ state.q | default('x') | upper }}\"}}", []),
        ("- {name: a, action: llm.call, params: {prompt: '{{ state.q | upper }}'}}", ["q"]),
        ("- {name: a, action: llm.call, params: {prompt: '{{ state.q is defined }}'}}", []),
        ("- {name: a, action: llm.call, params: {prompt: '{% if state.q %}{{ state.q }}{% endif %}'}}", []),
        ("- {name: a, run: \"return {'x': state['q']}\"}", ["q"]),
        ("- {name: a, run: \"return {'x': state.get('q')}\"}", []),
        ("- {name: a, run: \"if 'q' in state: return state['q']\"}", []),
        ("- {name: a, run: \"state['q'] = 1\"}\n- {name: b, run: \"return state['q']\"}", []),
        ("- {name: a, run: \"return {'q': 1}\"}\n- {name: b, action: llm.call, params: {prompt: '{{ state.q }}'}}", []),
        ("- {name: q, action: llm.call, params: {prompt: x}}\n- {name: b, run: \"return state['q']\"}", []),
        ("- {name: a, action: llm.call, params: {prompt: x}, output: r}\n- {name: b, run: \"return state['a']\"}", ["a"]),
        ("- {name: a, run: \"fill(state)\"}\n- {name: b, run: \"return state['q']\"}", []),
        ("- {name: a, action: mine.fill}\n- {name: b, run: \"return state['q']\"}", []),
        ("- {name: a, run: 'return 1', goto: [{if: a, to: b}, {to: b}]}\n- {name: b, run: \"return state['q']\"}", []),
        ("- {name: a, run: pass, goto: a}", []),
    ],
)  # fmt: skip
def test_only_what_every_run_needs_is_asked_for(nodes, keys):
    assert needed("nodes:\n" + "\n".join("  " + line for line in nodes.splitlines())) == keys


def test_what_the_workflow_gives_itself_is_not_asked_for():
    text = "state_schema: {m: list, q: str}\ninitial_state: {r: 1}\nnodes: [{name: a, run: \"return [state['m'], state['q'], state['r']]\"}]"
    (one,) = required_inputs(parse_workflow(text))
    assert (one.key, one.kind, one.node) == ("q", "str", "a")


def test_the_examples_say_what_they_need():
    found = {path.name: [one.key for one in required_inputs(read_workflow(path))] for path in EXAMPLES.glob("*.yaml")}
    assert found["llm-chat.yaml"] == ["question"]
    assert found["multi-turn.yaml"] == ["input"]
    assert found["local-chat.yaml"] == []
