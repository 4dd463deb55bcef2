"""`tea-runtime serve`: models behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import TeaModelsError, UsageError
from tea_models.net.client import is_loopback
from tea_models.redact import redact
from tea_runtime.cli.models import model_options, opener
from tea_runtime.cli.screen import logged
from tea_runtime.errors import MissingExtraError


@click.command("serve")
@click.argument("refs", metavar="REF…", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--name", help="Name of the model for clients, where there is one.  [default: REF]")
@click.option("--keep-alive", metavar="SECONDS", type=click.FloatRange(min=0), help="Close a model so long unused.")
@click.option("--allowed-host", "allowed_hosts", metavar="NAME", multiple=True, help="A further name of this server.")
@click.option("--allow-origin", "origins", metavar="ORIGIN", multiple=True, help="Web pages that may ask; * for all.")
@click.option("--embedding", is_flag=True, help="The models are for embeddings.")
@model_options
@answering
def command(
    app: App,
    *,
    refs: tuple[str, ...],
    host: str,
    port: int,
    name: str | None,
    keep_alive: float | None,
    allowed_hosts: tuple[str, ...],
    origins: tuple[str, ...],
    **options: Any,
) -> int:
    """Serve the models REF: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/models, /metrics.

    One model is loaded at once; of several each when somebody asks for it, and the longest unused one is closed where
    they don't fit together. If TEA_SERVE_KEY is set, clients must send it as their API key. Ctrl-C ends the server.
    """
    for package in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("serve", package=package, extra="server")
    from tea_models.plan.together import plan_together
    from tea_models.requirements import NodeModel
    from tea_runtime.llama.loading import find_file
    from tea_runtime.server.app import build_app, serve
    from tea_runtime.server.pool import ModelPool, ServedModel

    if name and len(refs) > 1:
        raise UsageError("--name: there are several models", hint="leave it out: each is served under its reference")
    key = app.settings.environ.get("TEA_SERVE_KEY", "")
    names = [name or (Path(ref).name if Path(ref).is_file() else redact(ref)) for ref in refs]
    with _listener(host, port) as listener, logged(app.out), contextlib.ExitStack() as stack:
        openers = [opener(app, ref, **options) for ref in refs]
        room = None
        if len(refs) > 1:  # what is loaded later must be there now, and has a share of the memory
            paths = [str(find_file(ref, app.settings)) for ref in refs]
            asked = [NodeModel(name, path, options) for name, path in zip(names, paths, strict=True)]
            shared = plan_together(asked, app.settings)
            room = shared.room
            share_of = {model.reference: model.share for model in shared.models}
            openers = [functools.partial(one, memory=share_of[path]) for one, path in zip(openers, paths, strict=True)]
            app.out.note(shared.reason)
        models = [ServedModel(name, one) for name, one in zip(names, openers, strict=True)]
        pool = ModelPool(models, keep_alive, room)
        stack.callback(pool.close)
        if len(models) == 1:
            models[0].backend = models[0].open()
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/v1"
        if not is_loopback(host) and not key:
            app.out.warn(f"anybody who reaches {host} can use this model; TEA_SERVE_KEY sets a key")
        if app.out.as_json:
            sys.stdout.write(json.dumps({"url": url, "model": names[0], "models": names}) + "\n")
            sys.stdout.flush()
        app.out.note(f"serving {', '.join(names)} at {url}, a page at {url.removesuffix('v1')}  (Ctrl-C ends it)")
        serve(build_app(pool, key=key, listen=host, allowed_hosts=allowed_hosts, origins=origins), listener)
        app.out.note("ended")
    return 130


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: {error.strerror}") from None
    except OSError as error:
        raise TeaModelsError(f"{host}:{port}: {error.strerror}", hint="--port 0 takes a free port") from None
