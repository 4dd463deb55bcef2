"""Which keys of the state a workflow needs from its caller: read from its templates and blocks, before it runs."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from jinja2 import nodes
from jinja2.exceptions import TemplateSyntaxError

from tea_runtime.workflow.file import END, START, Node, Workflow
from tea_runtime.workflow.templating import PARSER, keys_asked, texts

_BRANCHES = (ast.If, ast.Try, ast.IfExp, ast.Compare, ast.BoolOp, ast.While)
_DEFAULT = ("default", "d")
_GUARDS = (nodes.If, nodes.CondExpr, nodes.Test, nodes.Or, nodes.And, nodes.Filter, nodes.For)


class RequiredInput(NamedTuple):
    """A key that a run can't do without: its type by `state_schema` (or ""), and the first node that uses it."""

    key: str
    kind: str
    node: str


def required_inputs(workflow: Workflow) -> list[RequiredInput]:
    """The keys that must be given, as far as nodes that every run passes use them without a default."""
    made = set(workflow.initial_state({}))
    needed: dict[str, RequiredInput] = {}
    for node in _certain(workflow):
        read, written = _of_code(node) if node.code else _of_action(node)
        for key in read:
            if key not in made and key not in needed:
                needed[key] = RequiredInput(key, str(workflow.spec.state_schema.get(key) or ""), node.name)
        if written is None:
            break
        made |= written
    return list(needed.values())


def _certain(workflow: Workflow) -> Iterator[Node]:
    """The nodes that every run passes, up to the first branch."""
    seen = {START}
    current = START
    while True:
        ways = workflow.routes[current]
        if len(ways) != 1 or ways[0].condition is not True:
            return
        current = ways[0].target
        if current == END or current in seen:
            return
        seen.add(current)
        yield workflow.nodes[current]


def _of_action(node: Node) -> tuple[list[str], set[str] | None]:
    """The keys that an action reads without a default, and those that it writes; None: it may write any."""
    read = []
    for text in texts(node.params):
        try:
            tree = PARSER.parse(text)
        except TemplateSyntaxError:
            continue
        guards = (
            part for part in tree.find_all(_GUARDS) if not isinstance(part, nodes.Filter) or part.name in _DEFAULT
        )
        guarded = {key for part in guards for key in _state_keys(part)}
        read += [key for key in _state_keys(tree) if key not in guarded]
    if not node.action.startswith("llm."):
        return read, None  # whatever else is imported may write what it likes
    return read, {node.output} if node.output else set(node.outputs) or {node.name}


def _state_keys(tree: nodes.Node) -> list[str]:
    return [key for name, key in keys_asked(tree) if name == "state" and not hasattr(dict, key)]


def _of_code(node: Node) -> tuple[list[str], set[str] | None]:
    """As `_of_action`, of a block; what is read after a branch may depend on what is there."""
    try:
        parts = list(ast.walk(ast.parse("def block(state):\n  pass\n" + textwrap.indent(node.code, "  "))))
    except SyntaxError:
        return [], None
    if any(isinstance(part, _BRANCHES) for part in parts):
        return [], None
    read: list[str] = []
    written = {node.output} if node.output else set()
    unknown = False
    for part in parts:
        if isinstance(part, ast.Subscript) and _is_state(part.value) and isinstance(part.slice, ast.Constant):
            if isinstance(part.ctx, ast.Store):
                written.add(str(part.slice.value))
            elif isinstance(part.slice.value, str):
                read.append(part.slice.value)
        elif isinstance(part, ast.Return) and isinstance(part.value, ast.Dict):
            written |= {str(key.value) for key in part.value.keys if isinstance(key, ast.Constant)}
            unknown = unknown or not all(isinstance(key, ast.Constant) for key in part.value.keys)
        else:  # a call that gets the state or is a method of it, a return of who knows what
            unknown = unknown or _may_change_state(part)
    return [key for key in read if key not in written], None if unknown else written


def _may_change_state(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):
        method = isinstance(part.func, ast.Attribute) and _is_state(part.func.value) and part.func.attr != "get"
        return method or any(map(_is_state, part.args))
    return isinstance(part, ast.Return) and part.value is not None and not _is_state(part.value)


def _is_state(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "state"
