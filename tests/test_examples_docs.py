"""docs/yaml.md: its workflows run, and its tables list what there is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tea_runtime import actions
from tea_runtime.llm_settings import LlmSettings
from tea_runtime.workflow.file import WorkflowSpec
from tea_runtime.workflow.runner import run_workflow
from tests.workflows import parse_workflow

PAGE = (Path(__file__).parent.parent / "docs" / "yaml.md").read_text("utf-8")
RUNNABLE = re.findall(r"<!-- run (\{.*?\}) -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)


def rows(heading):
    """Names in the first column of the tables under a heading."""
    if f"\n{heading}\n" not in PAGE:
        return set()
    section = PAGE.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#+ ", section, maxsplit=1)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


@pytest.mark.parametrize(("given", "text"), RUNNABLE, ids=range(len(RUNNABLE)))
def test_workflows_of_the_page_are_valid(given, text):
    workflow = parse_workflow(text, name="yaml.md")
    assert isinstance(workflow.initial_state(json.loads(given)), dict)


@pytest.mark.real
@pytest.mark.parametrize(("given", "text"), RUNNABLE, ids=range(len(RUNNABLE)))
def test_workflows_of_the_page_run(given, text, real_model):
    environ = {**os.environ, "TEA_MODELS_DIR": str(real_model.parent)}
    other = str(real_model) if os.environ.get("TEA_TEST_MODEL") else None
    state = run_workflow(parse_workflow(text, name="yaml.md"), json.loads(given), environ=environ, gguf=other)
    assert set(json.loads(given)) < set(state)


def test_every_setting_is_in_the_table():
    assert rows("## `settings.llm`") == set(LlmSettings.model_fields)


@pytest.mark.parametrize("name", list(actions.PARAMETERS))
def test_every_parameter_is_in_a_table(name):
    generating = rows("### `llm.call`, `llm.chat`, `llm.stream`")
    own = rows(f"### `{name}`") | generating if name == "llm.batch" else rows(f"### `{name}`") or generating
    assert set(actions.PARAMETERS[name]) <= own | rows("## `settings.llm`")
    every = {one for parameters in actions.PARAMETERS.values() for one in parameters}
    assert own <= every


def test_every_key_of_a_workflow_is_in_the_table():
    documented = {name.split(".")[0] for name in rows("## Keys of a workflow")}
    assert documented == set(WorkflowSpec.model_fields)


def test_the_page_names_the_defaults_there_are():
    defaults = LlmSettings.parse(None)
    assert f"`{actions.DEFAULT_MAX_TOKENS}`" in PAGE
    for line in PAGE.splitlines():
        found = re.match(r"\| `(\w+)` \|.*\| `(\w+)` \|$", line)
        if found and found[1] in ("backend", "embedding", "auto_pull"):
            assert str(getattr(defaults, found[1])).lower() == found[2]
