"""Every example of the repository, run as it stands, on the real model."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tea_runtime.workflow.file import read_workflow
from tea_runtime.workflow.runner import run_workflow

EXAMPLES = Path(__file__).parent.parent / "examples"
ALL = sorted(EXAMPLES.glob("*.yaml"))


@pytest.fixture
def run(real_model):
    """Run an example: on SmolLM2 by the name that stands in it, on another model (`TEA_TEST_MODEL`) by its path."""
    environ = {**os.environ, "TEA_MODELS_DIR": str(real_model.parent)}
    other = str(real_model) if os.environ.get("TEA_TEST_MODEL") else None

    def run(name, state=None, **options):
        return run_workflow(EXAMPLES / name, state, environ=environ, gguf=other, **options)

    return run


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_every_example_is_valid_and_names_the_small_model(path):
    assert read_workflow(path).llm_settings({}).model == "smollm2-135m"


def test_there_is_an_example_for_every_action():
    assert {"llm-call.yaml", "llm-chat.yaml", "llm-stream.yaml", "llm-embed.yaml", "multi-turn.yaml"} <= {
        p.name for p in ALL
    }


@pytest.mark.real
def test_call_continues_the_prompt(run):
    state = run("llm-call.yaml")
    assert state["complete"].strip() == "Paris" or os.environ.get("TEA_TEST_MODEL")


@pytest.mark.real
def test_chat_answers_the_question(run):
    state = run("llm-chat.yaml", {"question": "Write one line of Python that prints hello."})
    assert "print" in state["chat_response"]
    assert "<|im_" not in state["chat_response"]


@pytest.mark.real
def test_stream_comes_in_pieces_that_make_the_whole(run):
    pieces: list[str] = []
    state = run("llm-stream.yaml", on_text=pieces.append)
    assert "".join(pieces) == state["stream_response"]
    assert "cod" in state["stream_response"] or os.environ.get("TEA_TEST_MODEL")


@pytest.mark.real
def test_embed_makes_a_vector_of_length_one(run):
    vector = run("llm-embed.yaml", {"document": "Models are files."})["embed_text"]
    assert all(isinstance(value, float) for value in vector)
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)


@pytest.mark.real
def test_multi_turn_keeps_the_conversation(run):
    first = run("multi-turn.yaml", {"messages": [], "input": "My name is Ada. Say hello to me."})
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"]
    assert first["messages"][1]["content"] == first["get_response"] == first["response"]
    again = run("multi-turn.yaml", {"messages": first["messages"], "input": "What is my name?"})
    assert [message["role"] for message in again["messages"]] == ["user", "assistant"] * 2


@pytest.mark.real
def test_the_demo_streams_its_answer(run):
    pieces: list[str] = []
    state = run("local-chat.yaml", on_text=pieces.append)
    assert "".join(pieces) == state["answer"]
    assert len(pieces) > 3
    if not os.environ.get("TEA_TEST_MODEL"):
        assert "Paris" in state["answer"]
