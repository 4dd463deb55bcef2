"""The actions that a workflow may use: modules are imported, and names and parameters in nodes are checked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tea_models.errors import MissingFileError, UsageError
from tea_models.yamlfile import nearest
from tea_runtime.actions import LLM_ACTION, check_parameters

if TYPE_CHECKING:
    from tea_runtime.workflow.file import ImportSpec, Node, Workflow

Action = Callable[..., Any]


def import_actions(workflow: Workflow, registry: dict[str, Action], engine: Any) -> None:
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


def check_actions(workflow: Workflow, registry: Mapping[str, Action]) -> None:
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
