"""`tea-models list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import human_size, table

if TYPE_CHECKING:
    from tea_models.cli.frame import App
    from tea_models.registry import Entry, Variant
    from tea_models.store import Store


@click.command("list", short_help="Models of the registry, and which are installed.")
@click.option("--installed", is_flag=True, help="Only what is in the store.")
@click.option("--kind", help="Only models of this kind (chat, text, embedding, reranker, test).")
@click.option("--fit", is_flag=True, help="Say of each model whether it fits this machine.")
@answering
def command(app: App, installed: bool, kind: str | None, fit: bool) -> None:
    """Show the models of the registry, their variants, sizes and what is installed."""
    from tea_models.registry import Registry
    from tea_models.store import Store

    registry = Registry.load(app.settings)
    store = Store(app.settings.store_dir)
    entries = [entry for entry in registry.entries.values() if kind in (None, entry.kind)]
    rows = [_row(entry, variant, store) for entry in entries for variant in entry.variants.values()]
    if installed:
        rows = [row for row in rows if row["installed"]]
    if fit:
        from tea_models.plan_choice import fit_table

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
    cells = []
    for row in rows:
        name = row["name"] if row["default"] else f"{row['name']}:{row['variant']}"
        size = human_size(row["size"]) if row["size"] else "?"
        mark = "yes" if row["installed"] else ""
        line = [name, row["variant"], size, row["kind"], mark, row["license"]]
        if "fit" in row:
            line.insert(5, str(row["fit"]["summary"]) if row["fit"] else "unknown")
        cells.append(line)
    header = ["NAME", "VARIANT", "SIZE", "KIND", "INSTALLED", "LICENSE"]
    if "fit" in rows[0]:
        header.insert(5, "HERE")
    text = table(cells, header=header, right=frozenset({2}))
    total = sum(row["size"] or 0 for row in rows if row["installed"])
    if installed:
        return f"{text}\n\n{human_size(total)} in {app.settings.store_dir}"
    return f"{text}\n\nnext: tea-models pull NAME, or tea-models plan NAME to see whether it fits"
