"""`tea-runtime cassette check`: what a new engine or quantization changes in recorded answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line
from tea_models.errors import UsageError
from tea_models.registry.entries import Registry
from tea_models.store import Store
from tea_runtime.cassette.backend import Change, check_cassette
from tea_runtime.cassette.entries import Entry, read_cassette
from tea_runtime.cli.models import model_options, opened

_SHOWN = 200


@click.command("cassette")
@click.argument("action", type=click.Choice(["check"]))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", "ref", metavar="REF", help="The model to ask.  [default: the one that was recorded]")
@click.option("--max-changed", type=click.IntRange(min=0), default=0, show_default=True, help="More end with 1.")
@model_options
@answering
def command(
    app: App, action: str, file: Path, *, ref: str | None, max_changed: int, **options: Any
) -> int:  # action is `check`: there will be others
    """Ask a model every request of the cassette FILE again, and show what it answers otherwise now.

    Answers that were drawn at random (a temperature, and no seed) change each time: look at their likeness.
    """
    del action
    entries = read_cassette(file)
    changes: list[Change] = []
    for name, group in _by_model(app, entries, ref).items():
        embedding = all(entry.request["kind"] == "embed" for entry in group)
        with opened(app, name, embedding=embedding, **options) as backend:
            changes += check_cassette(group, backend)
    wrong = [change for change in changes if change.status != "same"]
    counts = {status: sum(change.status == status for change in changes) for status in ("same", "changed", "failed")}
    app.out.answer(
        {"cassette": str(file), **counts, "changes": [asdict(change) for change in wrong]},
        lambda: "\n\n".join([*map(_shown, wrong), ", ".join(f"{count} {name}" for name, count in counts.items())]),
    )
    return 1 if len(wrong) > max_changed else 0


def _by_model(app: App, entries: Sequence[Entry], ref: str | None) -> dict[str, list[Entry]]:
    """The entries by the model to ask: the one given, else what the recorded hash means here."""
    if ref is not None:
        return {ref: list(entries)}
    store, registry = Store.of(app.settings), Registry.load(app.settings)
    here = {record.sha256: str(store.root / record.file) for record in store.records()}
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        sha256 = str(entry.recorded.get("model_sha256"))
        known = registry.by_sha256(sha256)
        name = here.get(sha256) or (f"{known[0].name}:{known[1].name}" if known is not None else None)
        if name is None:
            asked = f"{entry.request['model']} ({sha256[:12]}…)"
            raise UsageError(f"{asked} is not known here", hint="name a model with --model")
        found.setdefault(name, []).append(entry)
    return found


def _shown(change: Change) -> str:
    request = change.request
    asked = (
        request.get("text")
        or request.get("prompt")
        or next((message.get("content") for message in reversed(request.get("messages", []))), "")
    )
    lines = [f"{change.status} ({change.similarity:.2f} alike): {_short(asked)}"]
    if change.before or change.now:
        lines += [f"  - {_short(change.before)}", f"  + {_short(change.now)}"]
    return "\n".join(lines)


def _short(text: Any) -> str:
    return one_line(" ".join(str(text).split()), _SHOWN)
