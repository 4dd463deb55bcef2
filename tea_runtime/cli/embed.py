"""`tea-runtime embed`: texts become vectors."""

from __future__ import annotations

import sys
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line, table
from tea_models.errors import UsageError
from tea_runtime.call import cosine
from tea_runtime.cli.models import model_options, opened


@click.command("embed")
@click.argument("ref")
@click.argument("texts", nargs=-1, metavar="[TEXT…|-]")
@model_options
@answering
def command(app: App, *, ref: str, texts: tuple[str, ...], **options: Any) -> None:
    """Turn TEXTs into vectors with the model REF; - (or nothing) reads one text a line from stdin.

    --json prints the vectors; without it you see how similar the texts are to the first one.
    """
    given = list(texts)
    if not texts and sys.stdin.isatty():
        raise UsageError("there is no text", hint="give texts as arguments, or one a line on stdin")
    if texts in ((), ("-",)):
        given = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not given:
        raise UsageError("there is no text on stdin")
    with opened(app, ref, embedding=True, **options) as backend:
        vectors = backend.embed(given)
        name = getattr(backend, "model_path", ref)
    data = {
        "model": getattr(name, "name", str(name)),
        "dimensions": len(vectors[0]),
        "embeddings": [{"text": text, "embedding": vector} for text, vector in zip(given, vectors, strict=True)],
    }
    app.out.answer(data, lambda: _shown(given, vectors))


def _shown(texts: list[str], vectors: list[list[float]]) -> str:
    rows = []
    for text, vector in zip(texts, vectors, strict=True):
        start = ", ".join(f"{value:.3f}" for value in vector[:4])
        shown = one_line(" ".join(text.split()), 40)
        rows.append([shown, str(len(vector)), f"{cosine(vectors[0], vector):.3f}", f"[{start}, …]"])
    return table(rows, header=["text", "dimensions", "similarity", "vector"], right=frozenset({1, 2}))
