"""Opening the model that a command names, and offering to fetch it when it is not here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import App, together
from tea_models.errors import MissingFileError, OfflineError, TeaModelsError
from tea_models.sizes import human_bytes
from tea_runtime.cli.screen import environment, logged, only_json

if TYPE_CHECKING:
    from tea_runtime.backend import LlmBackend
    from tea_runtime.llm_settings import LlmSettings

#: The options that decide how a model is loaded.
model_options = together(
    click.option("--n-ctx", metavar="N|max", help="Tokens of context.  [default: plan]"),
    click.option("--n-threads", type=click.IntRange(min=1), help="CPU threads.  [default: plan]"),
    click.option("--n-gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1 is all.  [default: plan]"),
    click.option("--pull", "auto_pull", is_flag=True, help="Download the model if it is not here yet."),
)


def opener(
    app: App, ref: str, *, embedding: bool = False, auto_pull: bool = False, **options: Any
) -> Callable[..., LlmBackend]:
    """What loads the model REF by its plan and further keys of `settings.llm`; with `auto_pull` it is fetched now."""
    from tea_runtime.factory import create_llm_backend
    from tea_runtime.llm_settings import LlmSettings

    fixed = {"backend": "local", "fallback": False, "embedding": embedding}
    settings = LlmSettings.parse(fixed, prefix=()).overridden(**options)
    environ = environment(app)
    require_models(app, settings, environ, gguf=ref, pull=auto_pull)
    return lambda **more: create_llm_backend(settings, gguf=ref, environ=environ, **more)


@contextlib.contextmanager
def opened(app: App, ref: str, **options: Any) -> Iterator[LlmBackend]:
    """Load the model REF, note what was chosen, and close it afterwards; what it prints is no part of JSON."""
    with only_json(wanted=app.out.as_json):
        load = opener(app, ref, **options)
        with logged(app.out), load() as backend:
            yield backend


def require_models(
    app: App,
    settings: LlmSettings,
    environ: Mapping[str, str],
    *,
    gguf: str | None = None,
    pull: bool = False,
    uses: Iterable[str | None] = (None,),
) -> None:
    """See that the models are here before anything runs, or fetch them; in `uses` None is the settings' own."""
    from tea_models.verbs.pull import pull_all
    from tea_runtime.api.backend import api_may_answer
    from tea_runtime.resolve import is_model_name, search

    for name in dict.fromkeys(uses):
        if settings.backend == "api" and not gguf:
            return
        block = settings
        if name is not None:
            if not is_model_name(name, environ):
                continue
            block = settings.model_copy(update={"model": name, "model_path": None, "profile": None})
        absent = search(block, gguf=gguf, environ=environ).absent
        if absent is None:
            continue
        if pull or block.auto_pull or _agreed(app, absent):
            if app.settings.offline:
                raise OfflineError(f"{absent} is not here, and nothing may be fetched (--offline)")
            pull_all([absent], app.caller)
        elif gguf or not api_may_answer(block, environ):
            hint = f"tea-models pull {absent}, or the same command with --pull"
            raise MissingFileError(f"{absent} is not here yet", hint=hint)


def _agreed(app: App, name: str) -> bool:
    if app.out.as_json or app.out.quiet or app.settings.offline or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from tea_models.sources import resolve

    try:
        sizes = [file.size or 0 for file in resolve(name, app.caller).files]
    except TeaModelsError:
        sizes = [0]
    size = f" ({human_bytes(sum(sizes))})" if all(sizes) else ""
    return click.confirm(f"{name} is not here yet{size}. Download it?", default=True, err=True)
