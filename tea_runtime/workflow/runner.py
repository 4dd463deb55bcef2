"""The small workflow runner: nodes in order or along edges, templates, `run:` blocks, and any registered action."""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import inspect
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tea_models.errors import MissingFileError, TeaModelsError, UsageError
from tea_models.yamlfile import Document, dotted, nearest
from tea_runtime.actions import LLM_ACTION, NODE_SETTINGS, LlmActions, check_parameters
from tea_runtime.errors import WorkflowError
from tea_runtime.factory import BackendPool
from tea_runtime.workflow import templating
from tea_runtime.workflow.file import END, START, ImportSpec, Node, Workflow, read_workflow, workflow_of

logger = logging.getLogger(__name__)

MAX_STEPS = 1000
_Keys = tuple[str | int, ...]
Action = Callable[..., Any]
# Where the parts of an action's result are that a node without `output` keeps.
_MAIN_KEYS = ("content", "embedding", "results")


@dataclass(slots=True)
class WorkflowEngine:
    """What modules of actions see of the run: attributes of The Edge Agent's engine, as far as actions need them."""

    llm_actions: LlmActions
    environ: Mapping[str, str]
    variables: dict[str, Any]
    actions_registry: dict[str, Action]

    @property
    def llm_settings(self) -> dict[str, Any]:
        """`settings.llm` as plain data."""
        return self.llm_actions.settings.model_dump(exclude_unset=True)


class Step(NamedTuple):
    """A node that has run, when (by `time.monotonic`), what it took, and what it gave or how it failed."""

    node: str
    action: str  # `run` for a block
    started: float
    seconds: float
    result: Any
    error: BaseException | None


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
        on_step: Is told about each node that has run, also about one that failed.
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


class LoadedWorkflow(AbstractContextManager["LoadedWorkflow"]):
    """A workflow that is read once and run many times, by several threads at once too; see `run_workflow`."""

    def __init__(
        self,
        workflow: str | Path | Mapping[str, Any] | Workflow,
        *,
        gguf: str | None = None,
        backend: str | None = None,
        on_text: Callable[[str], object] | None = None,
        environ: Mapping[str, str] | None = None,
        max_steps: int = MAX_STEPS,
        n_threads: int | None = None,
    ) -> None:
        self._workflow = _read(workflow)
        self._max_steps = max_steps
        given = os.environ if environ is None else environ
        settings = self._workflow.llm_settings(given).overridden(backend=backend or ("local" if gguf else None))
        settings = settings.overridden(n_threads=n_threads if settings.n_threads is None else None)
        environ = self._workflow.environment(given)
        self._pool = BackendPool(environ=environ, gguf=gguf)
        actions = LlmActions(settings, self._pool, on_text=on_text)
        registry: dict[str, Action] = actions.table()
        self._engine = WorkflowEngine(actions, environ, dict(self._workflow.spec.variables), registry)
        _import_actions(self._workflow, registry, self._engine)
        _check_actions(self._workflow, registry)
        # A template is only known when the node runs; the models that several nodes name are planned together.
        blocks = []
        for node in self._workflow.nodes.values():
            asked = {key: value for key, value in node.params.items() if key in NODE_SETTINGS}
            if hasattr(registry.get(node.action), LLM_ACTION) and not any(map(templating.is_template, asked.values())):
                with suppress(TeaModelsError):  # the node says what is wrong when it runs
                    blocks.append((node.name, actions.settings_for(asked)[0]))
        self._pool.nodes = [(name, block) for name, block in blocks if block.backend != "api"]

    def run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - as in run_workflow
        *,
        on_step: Callable[[Step], object] | None = None,
    ) -> dict[str, Any]:
        """Run it once from its start, and return the final state."""
        state = copy.deepcopy(self._workflow.initial_state(input))
        return _Run(self._workflow, self._engine, state, self._max_steps, on_step).to_the_end()

    def __exit__(self, *_: object) -> None:
        self._pool.close()


def check_workflow(path: Path, *, environ: Mapping[str, str] | None = None) -> Workflow:
    """Read a workflow, and check it without running a node, but its imports."""
    workflow = read_workflow(path)
    with LoadedWorkflow(workflow, environ=environ):
        return workflow


def _read(workflow: str | Path | Mapping[str, Any] | Workflow) -> Workflow:
    if isinstance(workflow, str | Path):
        return read_workflow(Path(workflow))
    if isinstance(workflow, Mapping):
        return workflow_of(Document("workflow", dict(workflow), {}), Path.cwd())
    return workflow


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
        started, result, failed = time.monotonic(), None, None
        try:
            if node.code:
                result = self._execute(node)
            else:
                params = {key: self._render(node, (node.params_key, key), value) for key, value in node.params.items()}
                result = self._call(node, params)
            self._keep(node, result)
        except BaseException as error:
            failed = error
            raise
        finally:
            if self.on_step is not None:
                seconds = time.monotonic() - started
                self.on_step(Step(node.name, node.action or "run", started, seconds, result, failed))

    def _keep(self, node: Node, result: Any) -> None:
        """Put what a node gave where it belongs in the state."""
        if node.code:
            if isinstance(result, Mapping):
                self.state.update(dict(result))
            elif result is not None:
                self.state[node.output or node.name] = result
            return
        if node.output:
            self.state[node.output] = result
        elif not node.outputs:
            parts = (result[key] for key in _MAIN_KEYS if isinstance(result, Mapping) and key in result)
            self.state[node.name] = next(parts, result)
        for key, template in node.outputs.items():
            extra = {"action_result": result, "result": result}
            self.state[key] = self._render(node, (node.outputs_key, key), template, extra)

    def _call(self, node: Node, params: dict[str, Any]) -> Any:
        action = self.engine.actions_registry[node.action]
        result = self._attempt(node, node.path("action"), lambda: action(self.state, **params))
        failed = isinstance(result, Mapping) and result.get("success") is False and "error" in result
        if failed and not node.output:
            raise WorkflowError(f"{self._place(node.name)}: {node.action}: {result['error']}")
        return result

    def _execute(self, node: Node) -> Any:
        path = node.path(node.code_key)
        line = (self.workflow.document.line(path) or 1) + ("\n" in node.code)
        names = {"variables": self.engine.variables, "actions": self.engine.actions_registry, "json": json}
        try:
            function = _function(node.code, self.workflow.document.file, line, {**names, "__name__": "__workflow__"})
        except SyntaxError as error:
            where = f"line {error.lineno} of the block" if error.lineno else "the block"
            raise WorkflowError(f"{self._place(node.name, path)}: {where} is not Python: {error.msg}") from None
        return self._attempt(node, path, lambda: function(self.state))

    def _attempt(self, node: Node, path: _Keys, call: Callable[[], Any]) -> Any:
        """What an action or a block answers; an error of it says where it happened."""
        try:
            return call()
        except TeaModelsError as error:
            raise _placed(error, self._place(node.name, path)) from error.__cause__
        except BrokenPipeError:  # whoever reads the streamed text went away: no fault of the node
            raise
        except (Exception, SystemExit) as error:
            block = (self.workflow.document.file, _FUNCTION)
            frames = [f for f in traceback.extract_tb(error.__traceback__) if (f.filename, f.name) == block]
            place = self._place(node.name, path, line=frames[-1].lineno if frames else None)
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, SystemExit):  # which would have ended the whole process
                code = "" if error.code is None else repr(error.code)
                problem = f"it called sys.exit({code}); a node ends by return, and a run by an edge to __end__"
            absent = node.code and isinstance(error, KeyError) and error.args and error.args[0] not in self.state
            what = f"{node.action}: " if node.action else ""
            raise WorkflowError(f"{place}: {what}{problem}", hint="give it with --input" if absent else "") from error

    def _next(self, name: str) -> str:
        for route in self.workflow.routes[name]:
            try:
                if templating.decide(route.condition, self._context()):
                    return route.target
            except TeaModelsError as error:
                raise _placed(error, self._place(name, route.path)) from None
        where = "at the start" if name == START else f"after {name!r}"
        place = self._place(name, self.workflow.routes[name][0].path)
        raise WorkflowError(f"{place}: no edge applies {where}", hint="add one without a condition for what is left")

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
        settings, variables = self.workflow.spec.settings, self.engine.variables
        return {"state": self.state, "variables": variables, "settings": settings, "env": self.engine.environ}

    def _place(self, name: str, path: _Keys = (), *, line: int | None = None) -> str:
        document = self.workflow.document
        if not path and name in self.workflow.nodes:
            path = self.workflow.nodes[name].path()
        line = (line or document.line(path)) if document.lines else None
        place = document.file + (f":{line}" if line else "")
        return f"{place}: node {name}" if name != START else place


_FUNCTION = "run"


def _function(code: str, file: str, line: int, names: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A block as the body of a function of `state`, so that it may `return`; lines are those of the file."""
    tree = ast.parse(code, file)
    wrapper = ast.parse(f"def {_FUNCTION}(state): pass")
    definition = wrapper.body[0]
    assert isinstance(definition, ast.FunctionDef)
    ast.increment_lineno(tree, line - 1)
    definition.body = tree.body or definition.body
    exec(compile(wrapper, file, "exec"), names)  # noqa: S102 - workflows are code, as the documentation says
    function: Callable[[dict[str, Any]], Any] = names[_FUNCTION]
    return function


def _placed(error: TeaModelsError, place: str) -> TeaModelsError:
    """The same error, of the same type and exit code, saying where in the workflow it happened."""
    error.message = f"{place}: {error.message}"
    error.args = (error.message,)
    return error


def _import_actions(workflow: Workflow, registry: dict[str, Action], engine: Any) -> None:
    """Register the actions of the modules that a workflow imports; the modules are executed."""
    for index, item in enumerate(workflow.spec.imports):
        path = ("imports", index)
        name = item.package or item.path or ""
        registered: dict[str, Action] = {}
        failed = ""
        try:
            register = getattr(_module(item, workflow.folder or Path.cwd()), "register_actions", None)
            failed = "register_actions failed: "
            if callable(register):
                register(registered, engine)
        except MissingFileError as error:
            place = f"{workflow.document.file}:{workflow.document.line(path)}"
            raise MissingFileError(f"{place}: {error.message}", hint=error.hint) from None
        except (Exception, SystemExit) as error:
            raise workflow.document.error(f"{name}: {failed}{type(error).__name__}: {error}", path) from error
        if not callable(register):
            raise workflow.document.error(f"{name}: has no register_actions(registry, engine)", path)
        prefix = f"{item.namespace}." if item.namespace else ""
        registry.update({prefix + key: action for key, action in registered.items()})


def _module(item: ImportSpec, folder: Path) -> Any:
    if item.package:
        return importlib.import_module(item.package)
    file = folder / Path(item.path or "").expanduser()
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file of actions")
    spec = importlib.util.spec_from_file_location(f"_tea_actions_{file.stem}_{abs(hash(file))}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_actions(workflow: Workflow, registry: Mapping[str, Action]) -> None:
    """Refuse actions that do not exist and parameters that they do not take, before anything runs."""
    for node in workflow.nodes.values():
        if not node.action:
            continue
        key = "action" if workflow.spec.nodes[node.index].action else "uses"
        action = registry.get(node.action)
        if action is None:
            hint = nearest(node.action, sorted(registry))
            raise workflow.document.error(f"there is no action {node.action!r}", node.path(key), hint=hint)
        try:
            _check_parameters(node, action)
        except UsageError as error:
            named = next((name for name in node.params if repr(name) in error.message), None)
            path = node.path(node.params_key, named) if named else node.path(key)
            raise workflow.document.error(error.message, path, hint=error.hint) from None


def _check_parameters(node: Node, action: Action) -> None:
    name = getattr(action, LLM_ACTION, None)
    if isinstance(name, str):
        check_parameters(name, list(node.params))
        return
    try:
        parameters = list(inspect.signature(action).parameters.values())[1:]
    except (TypeError, ValueError):
        return  # a callable that does not say
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    known = [one.name for one in named]
    for given in node.params:
        if given not in known and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            raise UsageError(f"{node.action}: unknown parameter {given!r}", hint=nearest(given, known))
    for one in named:
        if one.default is one.empty and one.name not in node.params:
            raise UsageError(f"{node.action}: {one.name} is missing")
