"""`tea-runtime validate`: does a workflow run here, and what differs in The Edge Agent?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import ConfigError
from tea_models.yamlfile import read_yaml
from tea_runtime.cli.screen import environment, logged
from tea_runtime.errors import HostFeatureError
from tea_runtime.workflow.host_check import host_differences, our_imports
from tea_runtime.workflow.inputs import required_inputs
from tea_runtime.workflow.runner import check_workflow


@click.command("validate")
@click.argument("workflow", type=click.Path(path_type=Path))
@answering
def command(app: App, *, workflow: Path) -> None:
    """Check WORKFLOW without running it, for this runner and for The Edge Agent.

    What only The Edge Agent has (several steps in a node, loops, parallel edges, …) is said and is no error here; nor
    is what this runner does not know in a workflow that imports tea_runtime, and so was written for The Edge Agent.
    """
    show_check(app, workflow)


def show_check(app: App, workflow: Path) -> None:
    here: dict[str, Any] = {"runs": True}
    try:
        with logged(app.out):
            read = check_workflow(workflow, environ=environment(app))
        here |= {"nodes": list(read.nodes), "inputs": [one.key for one in required_inputs(read)]}
    except HostFeatureError as error:
        here = {"runs": False, "reason": error.message}
    except ConfigError as error:
        if not our_imports(read_yaml(workflow)):
            raise
        here = {"runs": False, "reason": error.message}
    differences = host_differences(read_yaml(workflow))
    data = {
        "workflow": str(workflow),
        "here": here,
        "host": [{"line": one.line, "what": one.what} for one in differences],
    }

    def shown() -> str:
        if here["runs"]:
            needs = f"; needs {', '.join(here['inputs'])}" if here["inputs"] else ""
            lines = [f"here: ok, {' → '.join(here['nodes'])}{needs}"]
        else:
            lines = [f"here: {here['reason']}"]
        same = " the same" if here["runs"] else " nothing to change"
        lines.append("in The Edge Agent:" + ("" if differences else same))
        return "\n".join([*lines, *(f"  {difference}" for difference in differences)])

    app.out.answer(data, shown)
