"""Workflows from a text."""

from __future__ import annotations

from tea_models.yamlfile import load_yaml
from tea_runtime.workflow.file import Workflow, workflow_of


def parse_workflow(text: str, *, name: str = "workflow") -> Workflow:
    return workflow_of(load_yaml(text, name), None)
