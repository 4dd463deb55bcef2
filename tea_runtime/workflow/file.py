"""A workflow as it stands in a YAML file: read, validated, every name checked, before anything runs."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tea_models.errors import MissingFileError, UsageError
from tea_models.settings import is_registry
from tea_models.yamlfile import Document, nearest, read_yaml, validate
from tea_runtime.llm_settings import LlmSettings, expand
from tea_runtime.workflow import templating
from tea_runtime.workflow.host_check import refuse_host_features

logger = logging.getLogger("tea_runtime")

START, END = "__start__", "__end__"
_ALIKE = 0.75
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "string": (str,), "int": (int,), "integer": (int,), "float": (int, float), "number": (int, float),
    "bool": (bool,), "boolean": (bool,), "list": (list,), "array": (list,), "dict": (dict,), "object": (dict,),
}  # fmt: skip


def _empty(kind: type) -> BeforeValidator:
    """A key without a value means an empty list, mapping or text."""
    return BeforeValidator(lambda value: kind() if value is None else value)


Params = Annotated[dict[str, Any], _empty(dict)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class ImportSpec(_Strict):
    """A module of actions: `package` (installed) or `path` (a file beside the workflow), and a prefix for its names."""

    package: str | None = None
    path: str | None = None
    namespace: Annotated[str, _empty(str)] = ""


class GotoRule(_Strict):
    to: str
    condition: bool | str = Field(True, alias="if")


class ConditionSpec(_Strict):
    type: Literal["expression"] = "expression"
    value: str | bool


class EdgeSpec(_Strict):
    """An edge: from a node to the next, always or under a condition."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")
    when: bool | str | None = None
    condition: bool | str | ConditionSpec | None = None
    type: str | None = None


class NodeSpec(_Strict):
    name: str = Field(min_length=1)
    description: str | None = None
    action: str | None = None
    uses: str | None = None
    params: Params = Field(default_factory=dict)
    with_: Params = Field(default_factory=dict, alias="with")
    output: str | dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    run: str | None = None
    script: str | None = None
    language: Literal["python"] | None = None
    goto: str | list[GotoRule] | None = None


class WorkflowSpec(_Strict):
    """The keys of a workflow. `config`, `version`, `metadata` and `tags` are for hosts and for people."""

    name: str = "workflow"
    description: str | None = None
    version: Any = None
    metadata: Any = None
    tags: Any = None
    config: Any = None
    state_schema: Params = Field(default_factory=dict)
    initial_state: Params = Field(default_factory=dict)
    variables: Params = Field(default_factory=dict)
    settings: Params = Field(default_factory=dict)
    imports: Annotated[list[ImportSpec], _empty(list)] = Field(default_factory=list)
    nodes: list[NodeSpec] = Field(min_length=1)
    edges: Annotated[list[EdgeSpec], _empty(list)] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Route:
    """A way out of a node; `condition` is True for one that is always open."""

    target: str
    condition: bool | str
    path: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    action: str
    params: Mapping[str, Any]
    params_key: str
    output: str
    outputs: Mapping[str, Any]
    outputs_key: str
    code: str
    code_key: str
    index: int

    def path(self, *keys: str | int) -> tuple[str | int, ...]:
        """Where the node, or a value in it, stands in the file."""
        return ("nodes", self.index, *keys)


@dataclass(frozen=True, slots=True)
class Workflow:
    """A validated workflow: its nodes in the order of the file, its ways in the order in which they are tried."""

    document: Document
    spec: WorkflowSpec
    nodes: Mapping[str, Node]
    routes: Mapping[str, Sequence[Route]]
    folder: Path | None  # of the file, for paths in it
    settings: LlmSettings | None  # None where it has templates, which need the environment

    def llm_settings(self, environ: Mapping[str, str]) -> LlmSettings:
        """Its `settings.llm` with templates filled in; relative paths are looked for beside the workflow too."""
        names = {"env": environ, "variables": self.spec.variables}
        settings = self.settings or _parse_llm(self.spec.settings.get("llm"), self.document, names)
        beside = {}
        for key in ("model_path", "profile"):
            path = getattr(settings, key)
            if path and self.folder and not (plain := Path(expand(path, environ))).exists():
                beside[key] = str(found) if (found := self.folder / plain).is_file() else None
        return settings.overridden(**beside)

    def environment(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """The environment with the registry beside the workflow as a layer, unless another one is named."""
        beside = self.folder / "registry.yaml" if self.folder else None
        if beside is None or environ.get("TEA_REGISTRY") or not beside.is_file() or not is_registry(beside):
            return environ
        return {**environ, "TEA_REGISTRY": str(beside)}

    def initial_state(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The state a run starts with: `initial_state`, then what was given; declared lists and dicts start empty."""
        state: dict[str, Any] = {}
        for key, kind in self.spec.state_schema.items():
            # `list[dict]` says more than is checked here.
            allowed = _TYPES.get(kind.partition("[")[0].strip().lower()) if isinstance(kind, str) else None
            value = given.get(key, self.spec.initial_state.get(key))
            if allowed in ((list,), (dict,)) and value is None:
                state[key] = allowed[0]()
            elif allowed and value is not None:
                found = type(value).__name__
                if not isinstance(value, allowed) or isinstance(value, bool) != (bool in allowed):  # which is an int
                    raise UsageError(f"input {key!r}: {self.document.file} declares {kind}, found {found}")
        state.update({key: value for key, value in self.spec.initial_state.items() if value is not None})
        state.update({key: value for key, value in given.items() if value is not None or key not in state})
        return state


def read_workflow(path: Path) -> Workflow:
    """Read a workflow file; where it is wrong, the `ConfigError` says file, line, key and what was expected."""
    if path.is_dir():
        raise MissingFileError(f"{path}: is a folder, expected a workflow file")
    return workflow_of(read_yaml(path), path.resolve().parent)


def workflow_of(document: Document, folder: Path | None) -> Workflow:
    """Make a workflow of a parsed document; raises as `read_workflow` does, without lines where it has none."""
    if not isinstance(document.data, dict):
        raise document.error("expected a workflow: keys such as name and nodes", hint="docs/yaml.md shows one")
    refuse_host_features(document)
    spec = validate(WorkflowSpec, document)
    block = spec.settings.get("llm")
    settings: LlmSettings | None = _parse_llm(block, document, {})
    if isinstance(block, dict) and any(map(templating.is_template, block.values())):
        settings = None
    for key in spec.settings:
        # Other keys of `settings` belong to hosts, so they are no errors; one that nearly says `llm` is hardly meant.
        if key != "llm" and difflib.get_close_matches("llm", [key.lower()], cutoff=_ALIKE):
            problem = document.error("means nothing here; did you mean settings.llm?", ("settings", key))
            logger.warning("%s", problem.message)
    nodes: dict[str, Node] = {}
    for index, node_spec in enumerate(spec.nodes):
        node = _node(node_spec, index, document)
        if node.name in nodes:
            raise document.error(f"there are two nodes with the name {node.name!r}", node.path("name"))
        _check_templates(document, node)
        nodes[node.name] = node
    for index, item in enumerate(spec.imports):
        if (item.package is None) == (item.path is None):
            raise document.error("expected package or path, one of them", ("imports", index))
    return Workflow(document, spec, nodes, _routes(spec, nodes, document), folder, settings)


def _parse_llm(block: Any, document: Document, names: Mapping[str, Any]) -> LlmSettings:
    if isinstance(block, dict):
        filled = {}
        for key, value in block.items():
            if names or not templating.is_template(value):
                # Before a run there are no names: what is a template is looked at when there are.
                place = ("settings", "llm", key)
                filled[key] = document.parsed(place, lambda text: templating.render(text, names), value)
        block = filled
    return LlmSettings.parse(block, document=document)


def _node(spec: NodeSpec, index: int, document: Document) -> Node:
    given = [key for key in ("action", "uses", "run", "script") if getattr(spec, key) is not None]
    if spec.name in (START, END):
        raise document.error(f"{spec.name!r} is reserved", ("nodes", index, "name"))
    if spec.params and spec.with_:
        raise document.error("params and with mean the same; use one of them", ("nodes", index, "with"))
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        problem = f"node {spec.name!r}: expected one of action, uses and run; found {found}"
        raise document.error(problem, ("nodes", index))
    mapped = spec.output if isinstance(spec.output, dict) else {}
    return Node(
        name=spec.name,
        action=spec.action or spec.uses or "",
        params=spec.params or spec.with_,
        params_key="with" if spec.with_ else "params",
        output=spec.output if isinstance(spec.output, str) else "",
        outputs={**mapped, **(spec.outputs or {})},
        outputs_key="output" if mapped else "outputs",
        code=spec.run or spec.script or "",
        code_key="script" if spec.script is not None else "run",
        index=index,
    )


def _check_templates(document: Document, node: Node) -> None:
    for key, values in ((node.params_key, node.params), (node.outputs_key, node.outputs)):
        for name, value in values.items():
            document.parsed(node.path(key, name), templating.check, value)


def _routes(spec: WorkflowSpec, nodes: Mapping[str, Node], document: Document) -> dict[str, list[Route]]:
    names = list(nodes)
    routes: dict[str, list[Route]] = {}
    for index, edge in enumerate(spec.edges):
        path = ("edges", index)
        _check_target(edge.source, [START, *names], document, (*path, "from"))
        routes.setdefault(edge.source, []).append(Route(edge.target, _condition(edge, document, path), path))
    routes.setdefault(START, [Route(names[0], True, ("nodes", 0))])
    for index, node in enumerate(spec.nodes):
        goto = ("nodes", index, "goto")
        if isinstance(node.goto, str):
            routes[node.name] = [Route(node.goto, True, goto)]
        elif node.goto is not None:
            rules = enumerate(node.goto)
            routes[node.name] = [Route(rule.to, rule.condition, (*goto, number)) for number, rule in rules]
        elif node.name not in routes:
            # As in The Edge Agent: without an edge of its own a node leads to the next one in the file.
            target = names[index + 1] if index + 1 < len(names) else END
            routes[node.name] = [Route(target, True, ("nodes", index))]
    for ways in routes.values():
        for way in ways:
            place = way.path if way.path[-1] == "goto" else (*way.path, "to")
            _check_target(way.target, [*names, END], document, place)
            document.parsed(way.path, templating.check_condition, way.condition)
        ways.sort(key=lambda way: way.condition is True)  # the way that is always open is what is left
        if [way.condition for way in ways[-2:]] == [True, True]:
            problem = "a second edge without a condition leaves the same node"
            raise document.error(problem, ways[-1].path, hint="add a `when` to one of them")
    return routes


def _condition(edge: EdgeSpec, document: Document, path: tuple[str | int, ...]) -> bool | str:
    if edge.condition is None:
        # `when: true` said aloud may stand beside an edge without a condition, and is tried first.
        return "true" if edge.when is True else True if edge.when is None else edge.when
    condition = edge.condition.value if isinstance(edge.condition, ConditionSpec) else edge.condition
    wanted = str(edge.when).lower()
    if wanted not in ("none", "true", "false"):
        raise document.error("expected true or false beside a condition", (*path, "when"))
    if wanted == "false":
        return not condition if isinstance(condition, bool) else f"!{condition}"
    return condition


def _check_target(name: str, known: list[str], document: Document, path: tuple[str | int, ...]) -> None:
    if name not in known:
        raise document.error(f"there is no node {name!r}", path, hint=nearest(name, known))
