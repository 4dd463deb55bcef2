"""`get_model_info`: what a workflow wants to know about a model file, from its header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from tea_models.settings import Settings

# Architectures by their llama.cpp names → the family that people speak of.
_FAMILIES = ("gemma", "llama", "mistral", "phi", "qwen", "smollm", "deepseek", "falcon", "granite", "olmo", "bert")


def get_model_info(model_path: str | os.PathLike[str], *, settings: Settings | None = None) -> dict[str, Any]:
    """Facts about a model, from the header of its file and never from its name.

    Args:
        model_path: A file, or a reference; a remote one is asked for its header only.
        settings: Where the store and the hosts are; by default from the process's environment.

    Returns:
        `n_ctx` (trained context, in tokens), `chat_format` (None without a template), `family`, `architecture`, `name`,
        `kind`, `quantization`, `parameters`, `embedding_length`, `license`, `system_role`, `tools`, `stop`.

    Raises:
        MalformedGGUFError: The file is not GGUF, or broken.
        NotAvailableError: It can't be found or reached.
    """
    from pathlib import Path

    from tea_models import resolve_profile

    reference = model_path if isinstance(model_path, str) else Path(model_path)
    profile = resolve_profile(reference, settings=settings)
    architecture = profile.architecture.value
    return {
        "n_ctx": profile.context_length.value,
        "chat_format": profile.chat.format.value,
        "family": next((family for family in _FAMILIES if family in architecture), architecture),
        "architecture": architecture,
        "name": profile.name.value,
        "kind": profile.kind.value,
        "quantization": profile.quantization.value,
        "parameters": profile.parameters.value,
        "embedding_length": profile.embedding_length.value,
        "license": profile.license.value,
        "system_role": profile.chat.system_role.value,
        "tools": profile.chat.tools.value,
        "stop": list(profile.chat.stop.value),
    }
