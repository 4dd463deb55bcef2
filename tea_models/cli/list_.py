"""`tea-models list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.registry.entries import Entry, Variant
    from tea_models.store import Store


# As in registry.Kind; repeated here so that `--help` needs no pydantic.
KINDS = ("chat", "text", "embedding", "reranker", "projector", "adapter", "test")


@click.command("list", short_help="Models of the registry, and which are installed.")
@click.option("--installed", is_flag=True, help="Only what is in the store.")
@click.option("--kind", type=click.Choice(KINDS), help="Only models of this kind.")
@click.option("--fit", is_flag=True, help="Say of each model whether it fits this machine.")
@answering
def command(app: App, installed: bool, kind: str | None, fit: bool) -> None:
    """Show the models of the registry, their variants, sizes and what is installed."""
    from tea_models.registry.entries import Registry
    from tea_models.store import Store

    registry = Registry.load(app.settings)
    store = Store.of(app.settings)
    entries = [entry for entry in registry.entries.values() if kind in (None, entry.kind)]
    rows = [_row(entry, variant, store) for entry in entries for variant in entry.variants.values()]
    if installed:
        rows = [row for row in rows if row["installed"]]
    if fit:
        from tea_models.plan.choice import fit_table

        fits = fit_table(entries, app.settings)
        for row in rows:
            row["fit"] = fits.get((row["name"], row["variant"]))
    app.out.answer(rows, lambda: _human(app, rows, installed=installed))


def _row(entry: Entry, variant: Variant, store: Store) -> dict[str, Any]:
    paths = [store.path_of(file) for file in variant.files]
    known = [file.size for file in variant.files]
    return {
        "name": entry.name,
        "variant": variant.name,
        "default": variant.name == entry.default,
        "kind": entry.kind,
        "license": entry.license,
        "size": None if None in known else sum(size for size in known if size),
        "pinned": all(file.sha256 for file in variant.files),
        "installed": all(path is not None for path in paths),
        "path": str(paths[0]) if paths[0] is not None else None,
        "description": entry.description,
        "aliases": list(entry.aliases),
        "origin": entry.origin,
    }


def _human(app: App, rows: list[dict[str, Any]], *, installed: bool) -> str:
    if not rows:
        return "nothing installed yet; start with: tea-models pull smollm2-135m" if installed else "no such models"
    columns = {
        "NAME": [row["name"] if row["default"] else f"{row['name']}:{row['variant']}" for row in rows],
        "SIZE": [human_bytes(row["size"]) if row["size"] else "?" for row in rows],
        "INSTALLED": ["yes" if row["installed"] else "" for row in rows],
        "KIND": [row["kind"] for row in rows],
        "VARIANT": [row["variant"] for row in rows],
        "LICENSE": [row["license"] for row in rows],
    }
    if "fit" in rows[0]:
        summaries = [str(row["fit"]["summary"]) if row["fit"] else "unknown" for row in rows]
        columns = {"NAME": columns.pop("NAME"), "SIZE": columns.pop("SIZE"), "HERE": summaries, **columns}
    text = _table(columns)
    while len(columns) > 2 and max(map(len, text.splitlines())) > app.out.width:
        columns.popitem()  # the last columns are the least wanted
        text = _table(columns)
    total = sum(row["size"] or 0 for row in rows if row["installed"])
    if installed:
        return f"{text}\n\n{human_bytes(total)} in {app.settings.store_dir}"
    return f"{text}\n\nnext: tea-models pull NAME, or tea-models plan NAME to see whether it fits"


def _table(columns: dict[str, list[str]]) -> str:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return table(rows, header=list(columns), right=frozenset({1}))
