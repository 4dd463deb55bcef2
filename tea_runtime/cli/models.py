"""Opening the model that a command names: shared by `chat`, `embed`, `serve` and `selftest`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tea_runtime.cli.screen import environment, logged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tea_models.cli.frame import App
    from tea_runtime.backend import LlmBackend


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that decide how a model is loaded."""
    for option in (
        click.option("--pull", "auto_pull", is_flag=True, help="Download the model if it is not here yet."),
        click.option(
            "--n-gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1 is all.  [default: plan]"
        ),
        click.option("--n-threads", type=click.IntRange(min=1), help="CPU threads.  [default: plan]"),
        click.option("--n-ctx", metavar="N|max", help="Tokens of context.  [default: plan]"),
    ):
        function = option(function)
    return function


def opener(
    app: App, ref: str, *, embedding: bool = False, auto_pull: bool = False, **options: Any
) -> Callable[[], LlmBackend]:
    """What loads the model REF by its plan.

    Args:
        app: The invocation.
        ref: A file or a reference.
        embedding: Plan for embeddings.
        auto_pull: Download the model first if it is not here, with a progress bar.
        **options: Further keys of `settings.llm`.

    Raises:
        TeaModelsError: It was to be downloaded, and that failed.
    """
    from tea_runtime.factory import create_llm_backend
    from tea_runtime.llm_settings import LlmSettings

    settings = LlmSettings.parse({"backend": "local", "fallback": False, "embedding": embedding}, prefix=())
    settings = settings.overridden(**{key: value for key, value in options.items() if value is not None})
    if auto_pull and not Path(ref).exists():
        from tea_models.cli.progress import progress_for
        from tea_models.verbs.pull import pull

        pull([ref], settings=app.settings, progress=progress_for(app.out), note=app.out.note)
    return lambda: create_llm_backend(settings, gguf=ref, environ=environment(app))


@contextlib.contextmanager
def opened(app: App, ref: str, **options: Any) -> Iterator[LlmBackend]:
    """Load the model REF by its plan, note what was chosen, and close it afterwards; see `opener`.

    Raises:
        TeaModelsError: The model is not there, does not fit, or can't be loaded.
    """
    load = opener(app, ref, **options)
    with logged(app.out):
        backend = load()
        try:
            yield backend
        finally:
            backend.close()
