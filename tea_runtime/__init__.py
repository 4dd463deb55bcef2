"""Run local GGUF models from Python and YAML workflows. The public names; each is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.lazy import lazy_names

if TYPE_CHECKING:
    from tea_runtime.aio import AsyncLlmBackend as AsyncLlmBackend
    from tea_runtime.api.backend import ApiLlmBackend as ApiLlmBackend
    from tea_runtime.backend import LlmBackend as LlmBackend
    from tea_runtime.backend import LlmCallParams as LlmCallParams
    from tea_runtime.backend import LlmCallResult as LlmCallResult
    from tea_runtime.call import CancelScope as CancelScope
    from tea_runtime.factory import create_llm_backend as create_llm_backend
    from tea_runtime.host import register_actions as register_actions
    from tea_runtime.local import LocalLlmBackend as LocalLlmBackend
    from tea_runtime.resolve import get_model_info as get_model_info
    from tea_runtime.resolve import resolve_model_path as resolve_model_path
    from tea_runtime.workflow.runner import run_workflow as run_workflow

_HOME = {
    "ApiLlmBackend": "tea_runtime.api.backend",
    "AsyncLlmBackend": "tea_runtime.aio",
    "CancelScope": "tea_runtime.call",
    "LlmBackend": "tea_runtime.backend",
    "LlmCallParams": "tea_runtime.backend",
    "LlmCallResult": "tea_runtime.backend",
    "LocalLlmBackend": "tea_runtime.local",
    "create_llm_backend": "tea_runtime.factory",
    "get_model_info": "tea_runtime.resolve",
    "register_actions": "tea_runtime.host",
    "resolve_model_path": "tea_runtime.resolve",
    "run_workflow": "tea_runtime.workflow.runner",
    # What the TEA host reads about a package of actions.
    "__tea_actions__": "tea_runtime.host",
}

__all__ = [name for name in _HOME if not name.startswith("_")]
__getattr__ = lazy_names(__name__, _HOME)
