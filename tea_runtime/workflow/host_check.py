"""The Edge Agent's workflows: what of them is not part of this runner, and what they do otherwise there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tea_models.yamlfile import Document, dotted
from tea_runtime.errors import HostFeatureError

_PACKAGE = "tea_runtime"
_IGNORED_NODE_KEYS = {
    "action": "write `uses`",
    "params": "write `with`",
    "outputs": "write `output`, with templates over `result`",
    "next": "write an edge",
}
# Keys of The Edge Agent's workflows that change what a workflow does and that this runner does not have.
_HOST_NODE_KEYS = {
    "steps": "several steps in a node", "type": "loop and fan-out nodes", "fan_in": "parallel branches",
    "items": "fan-out nodes", "body": "loop nodes", "subgraph": "subgraphs", "on_error": "error handling of nodes",
    "retry": "retries", "checkpoint": "checkpoints", "dynamic_parallel": "fan-out nodes", "while_loop": "loop nodes",
}  # fmt: skip
_HOST_EDGE_KEYS = {"fan_in": "parallel branches"}
_HOST_KEYS = {
    "secrets": "secrets", "data": "data blocks", "input_schema": "input schemas", "endpoint": "HTTP endpoints",
    "error_handling": "error handling", "extends": "overlays", "checkpoint": "checkpoints",
}  # fmt: skip
_DROPPED_SETTINGS = ("fallback", "profile", "kv_type", "memory", "auto_pull", "embedding", "max_tokens", "prompt_cache")


class Difference(NamedTuple):
    """One thing that differs there: what, and what to write."""

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.what}"


def refuse_host_features(document: Document) -> None:
    """Refuse by name what only The Edge Agent has, with a `HostFeatureError` that says file, line and key."""
    for what, path in _host_features(document):
        raise HostFeatureError(
            f"{what} are not part of this runner",
            file=document.file,
            line=document.line(path),
            key=dotted(path),
            hint="The Edge Agent runs such workflows, with the same llm.* actions: see docs/tea.md",
        )


def _host_features(document: Document) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    for key in _HOST_KEYS.keys() & document.data.keys():
        yield _HOST_KEYS[key], (key,)
    for section, features in (("nodes", _HOST_NODE_KEYS), ("edges", _HOST_EDGE_KEYS)):
        for index, entry in enumerate(_entries(document, section)):
            for key in features.keys() & entry.keys():
                yield features[key], (section, index, key)
            if section == "edges" and entry.get("type") == "parallel":
                yield "parallel branches", (section, index, "type")


def host_differences(document: Document) -> list[Difference]:
    """What The Edge Agent's Python engine does otherwise, in the order of the file."""
    found = [*_of_imports(document), *_of_settings(document), *_of_nodes(document)]
    return sorted(found, key=lambda one: one.line or 0)


def _of_imports(document: Document) -> Iterator[Difference]:
    ours = our_imports(document)
    if not ours:
        yield _at(document, (), f"its own actions answer: import ours with {{package: {_PACKAGE}, namespace: ''}}")
    for number, (index, item) in enumerate(ours):
        if number:
            yield _at(document, ("imports", index), "a second import of one package is skipped")
        elif item.get("namespace"):
            text = f"`llm.call` stays the engine's own; ours is `{item['namespace']}.llm.call`"
            yield _at(document, ("imports", index), text)


def _of_settings(document: Document) -> Iterator[Difference]:
    block = document.data.get("settings")
    llm = block.get("llm") if isinstance(block, dict) else None
    for key in llm if isinstance(llm, dict) else ():
        if key in _DROPPED_SETTINGS:
            text = f"settings.llm.{key} is for these actions only: the engine's own (host.llm.…) do not see it"
            yield _at(document, ("settings", "llm", key), text)


def _of_nodes(document: Document) -> Iterator[Difference]:
    for index, node in enumerate(_entries(document, "nodes")):
        name = node.get("name")
        for key, instead in _IGNORED_NODE_KEYS.items():
            if key in node:
                yield _at(document, ("nodes", index, key), f"node {name}: `{key}` does nothing: {instead}")
        params = node.get("with") or node.get("params")
        uses = node.get("uses") or node.get("action")
        bare = isinstance(params, dict) and "prompt" in params and not {"system", "messages", "raw"} & params.keys()
        if bare and uses in ("llm.call", "llm.stream"):
            text = f"node {name}: {uses} chats with the prompt there and continues it here; `raw` says which"
            yield _at(document, ("nodes", index), text)


def our_imports(document: Document) -> list[tuple[int, dict[str, Any]]]:
    """The imports of this package, with their places, as a workflow for The Edge Agent has one."""
    entries = enumerate(_entries(document, "imports"))
    return [(index, item) for index, item in entries if item.get("package") == _PACKAGE]


def _entries(document: Document, key: str) -> list[dict[str, Any]]:
    entries = document.data.get(key) if isinstance(document.data, dict) else None
    return [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []


def _at(document: Document, path: tuple[str | int, ...], what: str) -> Difference:
    return Difference(document.file, document.line(path) if path and document.lines else None, what)
