"""What `tea-models list` shows: the models of the registry, installed ones first. Without click, for a fast start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tea_models.cli.output import Output, one_line, table
from tea_models.files import total_size
from tea_models.registry.entries import Entry, Registry, Variant
from tea_models.settings import Settings
from tea_models.sizes import human_bytes
from tea_models.store import Installed, Store


def show(settings: Settings, out: Output, words: Sequence[str], *, every: bool, installed: bool, fit: bool) -> None:
    """Print the models of the registry that have all words in their name, kind, licence or description."""
    registry = Registry.load(settings)
    entries = [entry for entry in registry.entries.values() if _matches(entry, words)]
    items = [item for item in Store.of(settings).installed() if item.state != "missing"]
    rows = [_row(entry, variant, items) for entry in entries for variant in entry.variants.values()]
    if fit:
        from tea_models.plan.choice import fit_table

        fits = fit_table(entries, settings)
        for row in rows:
            row["fit"] = fits.get((row["name"], row["variant"]))
    named = {row["path"] for row in rows}
    for item in items:
        known = str(item.path) in named or registry.by_sha256(item.record.sha256)
        if not known and all(word.lower() in item.record.model.lower() for word in words):
            rows.append(_unnamed(item))
    if installed:
        rows = [row for row in rows if row["installed"]]
    out.answer(rows, lambda: _human(settings, out, rows, every=every, installed=installed))


def _matches(entry: Entry, words: Sequence[str]) -> bool:
    parts = (entry.name, *entry.aliases, entry.kind, entry.license, entry.description, *entry.variants)
    text = " ".join(parts).lower()
    return all(word.lower() in text for word in words)


def _row(entry: Entry, variant: Variant, items: Sequence[Installed]) -> dict[str, Any]:
    found = [next((item for item in items if item.record.means(file)), None) for file in variant.files]
    known = {name: getattr(entry, name) for name in ("name", "kind", "license", "description", "aliases", "origin")}
    return known | {
        "variant": variant.name,
        "default": variant.name == entry.default,
        "size": total_size(variant.files),
        "pinned": all(file.sha256 for file in variant.files),
        "installed": None not in found,
        "path": str(found[0].path) if found[0] is not None else None,
    }


def _unnamed(item: Installed) -> dict[str, Any]:
    """A file of the store that no registry has a name for: it was pulled by where it comes from."""
    record = item.record
    return {
        "name": record.model,
        "variant": None,
        "default": True,
        "kind": None,
        "license": record.license,
        "size": record.size,
        "pinned": record.pinned,
        "installed": True,
        "path": str(item.path),
        "description": record.filename,
        "aliases": [],
        "origin": record.source,
    }


def _human(settings: Settings, out: Output, rows: list[dict[str, Any]], *, every: bool, installed: bool) -> str:
    if not rows and installed:
        return "nothing of that is installed; start with: tea-models pull smollm2-135m"
    if not rows:
        return "no such models; `tea-models list` shows all of them"
    present = {row["name"] for row in rows if row["installed"]}
    shown = [row for row in rows if every or row["installed"] or (row["default"] and row["name"] not in present)]
    shown.sort(key=lambda row: not row["installed"])
    cells = [_cells(row, every=every) for row in shown]
    # A column that says nothing is left out; if there is no room, so are the last ones, which are the least wanted.
    columns = [name for name in cells[0] if any(row[name] for row in cells)]
    while True:
        body = [[row[name] for name in columns] for row in cells]
        lines = table(body, header=columns, right=frozenset({1})).splitlines()
        if len(columns) <= 2 or max(map(len, lines)) <= out.width:
            break
        columns.pop()
    lines[0] = out.style(lines[0], "bold")
    total = sum(row["size"] or 0 for row in shown if row["installed"])
    footer = [f"{human_bytes(total)} in {settings.store_dir}"] if total else []
    if not installed:
        more = f"{len(shown)} of {len(rows)} variants; --all shows each"
        footer.append(more if len(rows) > len(shown) else "next: tea-models pull NAME")
    return "\n".join([*lines, "", *footer])


def _cells(row: dict[str, Any], *, every: bool) -> dict[str, str]:
    fit = row.get("fit") or {}
    rate = (fit.get("speed") or {}).get("tokens_per_s")
    return {
        "NAME": f"{row['name']}:{row['variant']}" if every or not row["default"] else row["name"],
        "SIZE": human_bytes(row["size"]),
        "": "installed" if row["installed"] else "",
        "HERE": fit.get("summary", ""),
        "SPEED": f"{rate:,.0f} tokens/s" if rate else "",
        "KIND": row["kind"] or "",
        "LICENSE": one_line(row["license"] or "", 20),
    }
