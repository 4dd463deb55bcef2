"""`tea-runtime embed`: texts become vectors."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import printable, table
from tea_models.errors import UsageError
from tea_runtime.cli.models import model_options, opened
from tea_runtime.cli.screen import stdout_to_stderr


@click.command("embed")
@click.argument("ref")
@click.argument("texts", nargs=-1, metavar="[TEXT…|-]")
@model_options
@answering
def command(app: App, *, ref: str, texts: tuple[str, ...], **options: Any) -> None:
    """Turn TEXTs into vectors with the model REF; - (or nothing) reads one text a line from stdin.

    --json prints the vectors; without it you see how similar the texts are to the first one.
    """
    given = _texts(texts)
    redirected = stdout_to_stderr() if app.out.as_json else contextlib.nullcontext()
    with redirected, opened(app, ref, embedding=True, **options) as backend:
        vectors = backend.embed(given)
        name = getattr(backend, "model_path", ref)
    data = {
        "model": getattr(name, "name", str(name)),
        "dimensions": len(vectors[0]),
        "embeddings": [{"text": text, "embedding": vector} for text, vector in zip(given, vectors, strict=True)],
    }
    app.out.answer(data, lambda: _shown(given, vectors))


def _texts(texts: tuple[str, ...]) -> list[str]:
    if texts and texts != ("-",):
        return list(texts)
    if not texts and sys.stdin.isatty():
        raise UsageError("there is no text", hint="give texts as arguments, or one a line on stdin")
    given = [line.rstrip("\r\n") for line in sys.stdin]
    given = [line for line in given if line.strip()]
    if not given:
        raise UsageError("there is no text on stdin")
    return given


def _shown(texts: list[str], vectors: list[list[float]]) -> str:
    rows = []
    for text, vector in zip(texts, vectors, strict=True):
        start = ", ".join(f"{value:.3f}" for value in vector[:4])
        line = " ".join(text.split())
        shown = printable(line if len(line) <= 40 else line[:39] + "…")
        rows.append([shown, str(len(vector)), f"{_cosine(vectors[0], vector):.3f}", f"[{start}, …]"])
    return table(rows, header=["text", "dimensions", "similarity", "vector"], right=frozenset({1, 2}))


def _cosine(one: list[float], other: list[float]) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else 0.0
