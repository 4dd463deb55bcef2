"""The small workflow runner: nodes in order or along edges, templates, `run:` blocks, and any registered action."""

from __future__ import annotations

import ast
import copy
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tea_models.errors import TeaModelsError
from tea_models.yamlfile import dotted
from tea_runtime.actions import LlmActions
from tea_runtime.errors import WorkflowError
from tea_runtime.factory import BackendPool
from tea_runtime.workflow import conditions, templating
from tea_runtime.workflow.action_imports import Action, check_actions, import_actions
from tea_runtime.workflow.file import END, START, read_workflow, workflow_from_data

if TYPE_CHECKING:
    from tea_runtime.workflow.file import Node, Workflow

logger = logging.getLogger(__name__)

MAX_STEPS = 1000
_Keys = tuple[str | int, ...]
# Where the parts of an action's result are that a node without `output` keeps.
_MAIN_KEYS = ("content", "embedding", "results")


@dataclass(slots=True)
class WorkflowEngine:
    """What modules of actions see of the run: attributes of The Edge Agent's engine, as far as they matter to actions.

    Attributes:
        llm_actions: The `llm.*` actions, with `settings.llm` and the models that they opened.
        environ: The environment.
        variables: The workflow's constants.
        actions_registry: All actions, by name.
    """

    llm_actions: LlmActions
    environ: Mapping[str, str]
    variables: dict[str, Any] = field(default_factory=dict)
    actions_registry: dict[str, Action] = field(default_factory=dict)

    @property
    def llm_settings(self) -> dict[str, Any]:
        """`settings.llm` as plain data."""
        return self.llm_actions.settings.model_dump(exclude_unset=True)


@dataclass(frozen=True, slots=True)
class Step:
    """A node that has run.

    Attributes:
        node: Its name.
        action: Its action, or "" for a block.
        seconds: What it took.
        result: What it gave.
    """

    node: str
    action: str
    seconds: float
    result: Any


def run_workflow(
    workflow: str | Path | Mapping[str, Any] | Workflow,
    input: Mapping[str, Any] | None = None,  # noqa: A002 - the word that workflows and the command line use
    *,
    gguf: str | None = None,
    backend: str | None = None,
    on_text: Callable[[str], object] | None = None,
    on_step: Callable[[Step], object] | None = None,
    environ: Mapping[str, str] | None = None,
    max_steps: int = MAX_STEPS,
) -> dict[str, Any]:
    """Run a workflow to its end. A workflow is code: its `run:` blocks and imports do whatever Python can do.

    Args:
        workflow: Path of a YAML file, its data, or one that is read already.
        input: What the state starts with.
        gguf: A model that comes before everything the workflow and the environment say.
        backend: `local`, `api` or `auto`, in place of `settings.llm.backend`.
        on_text: Gets each piece of text that an `llm.stream` node generates, as it comes.
        on_step: Is told about each node that has run.
        environ: Environment; the process's own by default.
        max_steps: How many nodes may run at most; what ends a loop that has no end.

    Returns:
        The final state.

    Raises:
        ConfigError: The workflow is wrong; file, line and key are in the message.
        UsageError: The input does not fit the workflow's `state_schema`.
        WorkflowError: A node failed; file, line and node are in the message. What an `llm.*` action raises keeps its
            type and exit code.
    """
    with LoadedWorkflow(
        workflow, gguf=gguf, backend=backend, on_text=on_text, environ=environ, max_steps=max_steps
    ) as loaded:
        return loaded.run(input or {}, on_step=on_step)


class LoadedWorkflow:
    """A workflow that is read once and run many times, by several threads at once too; a context manager.

    Arguments and errors as for `run_workflow`; the models that its actions open stay open until it is closed.
    """

    def __init__(
        self,
        workflow: str | Path | Mapping[str, Any] | Workflow,
        *,
        gguf: str | None = None,
        backend: str | None = None,
        on_text: Callable[[str], object] | None = None,
        environ: Mapping[str, str] | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        self._workflow = _read(workflow)
        self._max_steps = max_steps
        given = os.environ if environ is None else environ
        settings = self._workflow.llm_settings(given).overridden(backend=backend or ("local" if gguf else None))
        environ = self._workflow.environment(given)
        self._pool = BackendPool(environ=environ, gguf=gguf)
        actions = LlmActions(settings, self._pool, on_text=on_text)
        self._engine = WorkflowEngine(actions, environ, variables=dict(self._workflow.spec.variables))
        _register(self._workflow, self._engine)

    def run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - as in run_workflow
        *,
        on_step: Callable[[Step], object] | None = None,
    ) -> dict[str, Any]:
        """Run it once from its start, and return the final state."""
        state = copy.deepcopy(self._workflow.initial_state(input))
        return _Run(self._workflow, self._engine, state, self._max_steps, on_step).to_the_end()

    def close(self) -> None:
        """Close the models that were opened."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_workflow(
    workflow: str | Path | Mapping[str, Any] | Workflow,
    input: Mapping[str, Any] | None = None,  # noqa: A002 - as in run_workflow
    *,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Check a workflow and its input without running a node; its imports are executed.

    Returns:
        The names of the nodes, in the order of the file.

    Raises:
        ConfigError: The workflow is wrong; file, line and key are in the message.
        UsageError: The input does not fit the workflow's `state_schema`.
    """
    workflow = _read(workflow)
    workflow.initial_state(input or {})
    LoadedWorkflow(workflow, environ=environ).close()
    return list(workflow.nodes)


def _read(workflow: str | Path | Mapping[str, Any] | Workflow) -> Workflow:
    if isinstance(workflow, str | Path):
        return read_workflow(Path(workflow))
    return workflow_from_data(workflow, folder=Path.cwd()) if isinstance(workflow, Mapping) else workflow


def _register(workflow: Workflow, engine: WorkflowEngine) -> None:
    engine.actions_registry.update(engine.llm_actions.table())
    import_actions(workflow, engine.actions_registry, engine)
    check_actions(workflow, engine.actions_registry)


@dataclass(slots=True)
class _Run:
    workflow: Workflow
    engine: WorkflowEngine
    state: dict[str, Any]
    max_steps: int
    on_step: Callable[[Step], object] | None = None

    def to_the_end(self) -> dict[str, Any]:
        current, steps = self._next(START), 0
        while current != END:
            steps += 1
            if steps > self.max_steps:
                raise WorkflowError(
                    f"{self._place(current)}: stopped after {self.max_steps:,} step{'s' * (self.max_steps != 1)}",
                    hint="a loop of the workflow does not end; check its conditions, or raise --max-steps",
                )
            self._step(self.workflow.nodes[current])
            current = self._next(current)
        return self.state

    def _step(self, node: Node) -> None:
        logger.debug("node %s", node.name)
        started = time.monotonic()
        if node.code:
            result = self._execute(node)
            self._told(node, started, result)
            self._merge(node, result)
            return
        params = {key: self._render(node, (node.params_key, key), value) for key, value in node.params.items()}
        result = self._call(node, params)
        self._told(node, started, result)
        if node.output:
            self.state[node.output] = result
        for key, template in node.outputs.items():
            extra = {"action_result": result, "result": result}
            self.state[key] = self._render(node, (node.outputs_key, key), template, extra)
        if not node.output and not node.outputs:
            self.state[node.name] = _main_value(result)

    def _told(self, node: Node, started: float, result: Any) -> None:
        if self.on_step is not None:
            self.on_step(Step(node.name, node.action, time.monotonic() - started, result))

    def _call(self, node: Node, params: dict[str, Any]) -> Any:
        try:
            result = self.engine.actions_registry[node.action](self.state, **params)
        except TeaModelsError as error:
            raise _placed(error, self._place(node.name, node.path("action"))) from error.__cause__
        except BrokenPipeError:  # whoever reads the streamed text went away: no fault of the node
            raise
        except SystemExit as error:
            raise self._failed(node, node.path(), f"{node.action}: {_exit(error)}") from error
        except Exception as error:
            raise self._failed(node, node.path(), f"{node.action}: {type(error).__name__}: {error}") from error
        failed = isinstance(result, Mapping) and result.get("success") is False and "error" in result
        if failed and not node.output:
            raise self._failed(node, node.path(), f"{node.action}: {result['error']}")
        return result

    def _execute(self, node: Node) -> Any:
        path = node.path(node.code_key)
        line = (self.workflow.document.line(path) or 1) + ("\n" in node.code)
        try:
            function = _function(node.code, self.workflow.document.file, line)
        except SyntaxError as error:
            where = f"line {error.lineno} of the block" if error.lineno else "the block"
            raise self._failed(node, path, f"{where} is not Python: {error.msg}") from None
        names = {
            "variables": self.engine.variables,
            "actions": self.engine.actions_registry,
            "json": json,
            "__name__": "__workflow__",
        }
        try:
            return function(names)(self.state)
        except TeaModelsError as error:
            raise _placed(error, self._place(node.name, path)) from error.__cause__
        except BrokenPipeError:
            raise
        except (Exception, SystemExit) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == _FUNCTION]
            absent = isinstance(error, KeyError) and error.args and error.args[0] not in self.state
            hint = "give it with --input" if absent else ""
            place = self._place(node.name, path, line=frames[-1].lineno if frames else None)
            problem = _exit(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
            raise WorkflowError(f"{place}: {problem}", hint=hint) from error

    def _merge(self, node: Node, result: Any) -> None:
        if isinstance(result, Mapping):
            if result is not self.state:
                self.state.update(result)
        elif result is not None:
            self.state[node.output or node.name] = result

    def _next(self, name: str) -> str:
        for route in self.workflow.routes[name]:
            try:
                if conditions.decide(route.condition, self._context()) is route.wanted:
                    return route.target
            except TeaModelsError as error:
                raise _placed(error, self._place(name, route.path)) from None
        where = "at the start" if name == START else f"after {name!r}"
        path = self.workflow.routes[name][0].path
        raise WorkflowError(
            f"{self._place(name, path)}: no edge applies {where}", hint="add one without a condition for what is left"
        )

    def _render(self, node: Node, keys: _Keys, value: Any, extra: Mapping[str, Any] | None = None) -> Any:
        """Fill in the templates of a value; an error names the place of the very text it is in."""
        if isinstance(value, Mapping):
            return {key: self._render(node, (*keys, key), item, extra) for key, item in value.items()}
        if isinstance(value, list):
            return [self._render(node, (*keys, index), item, extra) for index, item in enumerate(value)]
        try:
            return templating.render(value, {**self._context(), **(extra or {})})
        except TeaModelsError as error:
            raise _placed(error, f"{self._place(node.name, node.path(*keys))}: {dotted(keys[1:])}") from None

    def _context(self) -> dict[str, Any]:
        spec = self.workflow.spec
        return {
            "state": self.state,
            "variables": self.engine.variables,
            "settings": spec.settings,
            "env": self.engine.environ,
        }

    def _place(self, name: str, path: tuple[str | int, ...] = (), *, line: int | None = None) -> str:
        document = self.workflow.document
        if not path and name in self.workflow.nodes:
            path = self.workflow.nodes[name].path()
        line = (line or document.line(path)) if document.lines else None
        place = document.file + (f":{line}" if line else "")
        return f"{place}: node {name}" if name != START else place

    def _failed(self, node: Node, path: tuple[str | int, ...], problem: str, *, hint: str = "") -> WorkflowError:
        return WorkflowError(f"{self._place(node.name, path)}: {problem}", hint=hint)


_FUNCTION = "run"


def _function(code: str, file: str, line: int) -> Callable[[dict[str, Any]], Callable[[dict[str, Any]], Any]]:
    """Compile a block as the body of a function of `state`, so that it may `return`; lines are those of the file."""
    tree = ast.parse(code, file)
    wrapper = ast.parse(f"def {_FUNCTION}(state): pass")
    definition = wrapper.body[0]
    assert isinstance(definition, ast.FunctionDef)
    ast.increment_lineno(tree, line - 1)
    definition.body = tree.body or definition.body
    compiled = compile(wrapper, file, "exec")

    def bind(names: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
        exec(compiled, names)  # noqa: S102 - workflows are code, as the documentation says
        function: Callable[[dict[str, Any]], Any] = names[_FUNCTION]
        return function

    return bind


def _exit(error: SystemExit) -> str:
    """What to say of a node that would have ended the whole process."""
    code = "" if error.code is None else repr(error.code)
    return f"it called sys.exit({code}); a node ends by return, and a run by an edge to __end__"


def _main_value(result: Any) -> Any:
    if isinstance(result, Mapping):
        for key in _MAIN_KEYS:
            if key in result:
                return result[key]
    return result


def _placed(error: TeaModelsError, place: str) -> TeaModelsError:
    """The same error, of the same type and exit code, saying where in the workflow it happened."""
    error.message = f"{place}: {error.message}"
    error.args = (error.message,)
    return error
