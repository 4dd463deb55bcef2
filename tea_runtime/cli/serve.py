"""`tea-runtime serve`: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import socket
import sys
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.errors import TeaModelsError, UsageError
from tea_runtime.cli.models import model_options, opened
from tea_runtime.errors import MissingExtraError


@click.command("serve")
@click.argument("ref")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--name", help="Name of the model for clients.  [default: REF]")
@click.option("--embedding", is_flag=True, help="The model is for embeddings.")
@model_options
@answering
def command(app: App, *, ref: str, host: str, port: int, name: str | None, **options: Any) -> int:
    """Serve the model REF: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health.

    If TEA_SERVE_KEY is set, clients must send it as their API key. Ctrl-C ends the server.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("serve", package=package, extra="server")
    from tea_runtime.server.app import build_app, serve

    key = app.settings.environ.get("TEA_SERVE_KEY", "")
    name = name or (Path(ref).name if Path(ref).is_file() else ref)
    with _listener(host, port) as listener, opened(app, ref, **options) as backend:
        url = f"http://{_shown(host)}:{listener.getsockname()[1]}/v1"
        if not _is_local(host) and not key:
            app.out.warn(f"anybody who reaches {host} can use this model; TEA_SERVE_KEY sets a key")
        if app.out.as_json:
            sys.stdout.write(json.dumps({"url": url, "model": name}) + "\n")
            sys.stdout.flush()
        app.out.note(f"serving {name} at {url}  (Ctrl-C ends it)")
        serve(build_app(backend, name=name, key=key), listener)
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


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
