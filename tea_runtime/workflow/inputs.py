"""Which keys of the state a workflow needs from its caller: read from its templates and blocks, before it runs."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError

from tea_runtime.workflow.file import END, START

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tea_runtime.workflow.file import Node, Workflow


@dataclass(frozen=True, slots=True)
class RequiredInput:
    """A key that a run can't do without.

    Attributes:
        key: The key of the state.
        kind: Its type by `state_schema`, or "".
        node: The first node that uses it.
    """

    key: str
    kind: str
    node: str


def required_inputs(workflow: Workflow) -> list[RequiredInput]:
    """The keys that must be given, in the order in which they are used.

    Only nodes that every run passes are looked at, and only uses that have no default: a key that is not listed may
    still be missed, a key that is listed is needed.
    """
    made = set(workflow.initial_state({}))
    needed: dict[str, RequiredInput] = {}
    for node in _certain(workflow):
        use = _Use()
        use.of_node(node)
        for key in use.read:
            if key not in made and key not in needed:
                needed[key] = RequiredInput(key, str(workflow.spec.state_schema.get(key) or ""), node.name)
        if use.unknown:
            break
        made |= use.written
    return list(needed.values())


def _certain(workflow: Workflow) -> Iterator[Node]:
    """The nodes that every run passes, up to the first branch."""
    seen = {START}
    current = START
    while True:
        ways = workflow.routes[current]
        if len(ways) != 1 or ways[0].condition is not True or not ways[0].wanted:
            return
        current = ways[0].target
        if current == END or current in seen:
            return
        seen.add(current)
        yield workflow.nodes[current]


@dataclass(slots=True)
class _Use:
    """Keys of the state that a node reads without a default and that it writes; `unknown`: it may write any."""

    read: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    unknown: bool = False

    def of_node(self, node: Node) -> None:
        if node.code:
            self._of_code(node.code)
            if node.output:
                self.written.add(node.output)
            return
        self._of_value(node.params)
        self.unknown = not node.action.startswith("llm.")  # whatever else is imported may write what it likes
        self.written |= {node.output} if node.output else set(node.outputs) or {node.name}

    def _of_value(self, value: Any) -> None:
        if isinstance(value, str) and "{" in value:
            try:
                tree = Environment().parse(value)  # noqa: S701 - parsed, never rendered
            except TemplateSyntaxError:
                return
            guarded = {key for part in tree.find_all(_GUARDS) for key in _keys(part)}
            self.read += [key for key in _keys(tree) if key not in guarded]
        elif isinstance(value, dict):
            for item in value.values():
                self._of_value(item)
        elif isinstance(value, list):
            for item in value:
                self._of_value(item)

    def _of_code(self, code: str) -> None:
        try:
            tree = ast.parse(f"def block(state):\n  pass\n{_indented(code)}")
        except SyntaxError:
            self.unknown = True
            return
        # What is read after a branch may depend on what is there.
        branching = (ast.If, ast.Try, ast.IfExp, ast.Compare, ast.BoolOp, ast.While)
        certain = not any(isinstance(part, branching) for part in ast.walk(tree))
        for part in ast.walk(tree):
            if isinstance(part, ast.Subscript) and _is_state(part.value) and isinstance(part.slice, ast.Constant):
                if isinstance(part.ctx, ast.Store):
                    self.written.add(str(part.slice.value))
                elif isinstance(part.slice.value, str) and part.slice.value not in self.read:
                    self.read.append(part.slice.value)
            elif isinstance(part, ast.Call) and _changes_state(part):
                self.unknown = True
            elif isinstance(part, ast.Return) and part.value is not None:
                self._of_return(part.value)
        self.unknown = self.unknown or not certain
        self.read = [key for key in self.read if certain and key not in self.written]

    def _of_return(self, value: ast.expr) -> None:
        if isinstance(value, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in value.keys]
            self.written |= {key for key in keys if isinstance(key, str)}
            self.unknown = self.unknown or None in keys
        elif not _is_state(value):
            self.unknown = self.unknown or not isinstance(value, ast.Constant | ast.List | ast.JoinedStr | ast.BinOp)


_GUARDS = (nodes.If, nodes.CondExpr, nodes.Test, nodes.Or, nodes.And, nodes.Filter, nodes.For)


def _keys(tree: nodes.Node) -> Iterator[str]:
    """The keys in `state.x` and `state['x']`, each once, in their order; under a filter only where it is `default`."""
    if isinstance(tree, nodes.Filter) and tree.name not in ("default", "d"):
        return
    found: dict[str, None] = {}
    uses: list[nodes.Getattr | nodes.Getitem] = [*tree.find_all(nodes.Getattr), *tree.find_all(nodes.Getitem)]
    for part in uses:
        if isinstance(part.node, nodes.Name) and part.node.name == "state":
            key = part.attr if isinstance(part, nodes.Getattr) else getattr(part.arg, "value", None)
            if isinstance(key, str) and key not in dir(dict):
                found[key] = None
    yield from found


def _is_state(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "state"


def _changes_state(call: ast.Call) -> bool:
    """Whether a call may write keys: the state goes into it, or it is a method of the state."""
    method = isinstance(call.func, ast.Attribute) and _is_state(call.func.value) and call.func.attr != "get"
    return method or any(_is_state(value) for value in call.args)


def _indented(code: str) -> str:
    return "\n".join("  " + line for line in code.splitlines())
