"""A stand-in for The Edge Agent's engine: how it loads a workflow and calls actions, as far as actions can tell.

It imports packages before it has settings, keeps only some keys of `settings.llm` for itself, fills the parameters of
`llm.*` nodes with all of them, calls actions by name and by position, runs branches in threads, and prints its events as
NDJSON. Its own `llm.call` passes what it does not know on to a client that refuses it.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_KEPT = (
    "provider", "shell_provider", "temperature", "api_base", "timeout", "max_retries", "backend", "n_gpu_layers", "n_ctx",
    "n_threads", "model_path", "chat_format",
)  # fmt: skip
_FILLED = ("llm.call", "llm.chat", "llm.stream", "llm.tools", "actions.llm_call", "actions.llm_stream")
_CLIENT = {"max_tokens", "stop", "top_p", "seed", "response_format", "logprobs", "top_logprobs", "tools", "tool_choice"}
_OWN = (
    "llm.call", "actions.llm_call", "llm.stream", "actions.llm_stream", "llm.retry", "actions.llm_retry", "llm.tools",
    "actions.llm_tools", "llm.similarity", "actions.llm_similarity", "llm.chat", "llm.embed", "llm.local.call",
    "llm.local.chat", "llm.local.stream", "llm.local.embed",
)  # fmt: skip


class TraceContext:
    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    def current_span(self) -> dict[str, Any] | None:
        return self.spans[-1] if self.spans else None


class TeaEngine:
    """The engine. `asked` holds what reached its own actions."""

    def __init__(self, **cli_overrides: Any) -> None:
        self.cli_overrides: dict[str, Any] = cli_overrides
        self.actions_registry: dict[str, Any] = {name: self._own(name) for name in _OWN}
        self.actions_registry["semantic.probe"] = self._probe
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.closed = 0
        self._loaded: set[str] = set()
        self._llm_payload_capture: Any = False
        self._trace_context = TraceContext()

    def load(self, config: dict[str, Any]) -> TeaEngine:
        for item in config.get("imports", ()):
            if item["package"] in self._loaded:
                continue
            self._loaded.add(item["package"])
            local: dict[str, Any] = {}
            importlib.import_module(item["package"]).register_actions(local, self)
            prefix = f"{item['namespace']}." if item.get("namespace") else ""
            self.actions_registry.update({prefix + name: action for name, action in local.items()})
        self._config = config
        block = config.get("settings", {}).get("llm", {})
        self.llm_settings: dict[str, Any] = {}
        if "deployment" in block or "model" in block:
            self.llm_settings["model"] = self._process_template(block.get("deployment", block.get("model")), {})
        for key in _KEPT:
            if key in block:
                self.llm_settings[key] = self._process_template(block[key], {})
        return self

    def node(self, uses: str, /, given: dict[str, Any] | None = None, **state: Any) -> Any:
        """Run one node with `with: given`."""
        params = {key: self._process_template(value, state) for key, value in (given or {}).items()}
        if uses in _FILLED:
            for key, value in self.llm_settings.items():
                params.setdefault(key, self._process_template(value, state))
            if self._llm_payload_capture:
                params.setdefault("opik_trace", True)
        extra = {"config": {}, "node": "n", "graph": object(), "parallel_results": None}
        self._trace_context.spans.append({"metadata": {"node": "n"}})
        return self.actions_registry[uses](state=state, **params, **extra)

    def run(self, state: dict[str, Any], *, stream: bool = False) -> dict[str, Any]:
        """Run the nodes in their order; a list of nodes is run in parallel branches."""
        for entry in self._config["nodes"]:
            nodes = entry if isinstance(entry, list) else [entry]
            with ThreadPoolExecutor(max(1, len(nodes))) as threads:
                results = list(threads.map(lambda node, state=dict(state): self._guarded(node, state), nodes))
            for node, result in zip(nodes, results, strict=True):
                output = node.get("output")
                state |= {output: result} if output else result
                if stream:
                    sys.stdout.write(json.dumps({"type": "state", "node": node["name"], "state": state}) + "\n")
        return state

    def close(self) -> None:
        self.closed += 1

    def _guarded(self, node: dict[str, Any], state: dict[str, Any]) -> Any:
        tries = node.get("on_error", {}).get("max_retries", 0)
        while True:
            try:
                return self.node(node["uses"], node.get("with"), **state)
            except Exception as error:
                if tries == 0:
                    if node.get("on_error", {}).get("mode") == "graceful":
                        return {"__error__": str(error)}
                    raise
                tries -= 1

    @staticmethod
    def _process_template(value: Any, state: dict[str, Any]) -> Any:
        if not isinstance(value, str):
            return value
        whole = re.fullmatch(r"\{\{ *state\.(\w+) *\}\}", value)
        if whole:
            return state.get(whole[1])
        return re.sub(r"\{\{ *(?:state|env)\.(\w+)[^}]*\}\}", lambda match: str(state.get(match[1], "")), value)

    def _own(self, name: str) -> Any:
        def own(state: Any, model: Any = None, messages: Any = None, **params: Any) -> dict[str, Any]:
            kept = {"temperature", "provider", "shell_provider", "api_base", "timeout", "max_retries", "deployment"}
            extra = {"config", "node", "graph", "parallel_results", "opik_trace", "opik_project_name"}
            unknown = params.keys() - kept - extra - _CLIENT
            if unknown and params.get("provider") != "shell":
                raise TypeError(f"create() got an unexpected keyword argument {min(unknown)!r}")
            said = {key: value for key, value in params.items() if key not in extra}
            self.asked.append((name, {"model": model, "messages": messages, **said}))
            return {"content": "the host's", "usage": {}, "backend": "its own claim"}

        return own

    def _probe(self, state: Any, **_: Any) -> Any:
        """As some of its actions do: by position, with a model that it invents."""
        messages = [{"role": "user", "content": "yes or no?"}]
        return self.actions_registry["llm.call"](state or {}, "ollama/gemma3:4b", messages, max_tokens=10)


def workflow(llm: dict[str, Any] | None = None, nodes: list[Any] | None = None, namespace: str = "") -> dict[str, Any]:
    """A workflow that imports our actions."""
    return {
        "imports": [{"package": "tea_runtime", "namespace": namespace}],
        "settings": {"llm": llm or {}},
        "nodes": nodes or [],
    }
