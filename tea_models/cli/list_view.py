"""What `tea-models list` shows: the models of the registry, installed ones first. Without click, for a fast start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tea_models.cli.output import shortened, table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tea_models.cli.output import Output
    from tea_models.registry.entries import Entry, Variant
    from tea_models.settings import Settings
    from tea_models.store import Installed


def show(
    settings: Settings,
    out: Output,
    words: Sequence[str] = (),
    *,
    every: bool = False,
    installed: bool = False,
    kind: str | None = None,
    fit: bool = False,
) -> None:
    """Print the models of the registry that have all words in their name, kind, licence or description."""
    from tea_models.registry.entries import Registry
    from tea_models.store import Store

    registry = Registry.load(settings)
    entries = [entry for entry in registry.entries.values() if kind in (None, entry.kind) and _matches(entry, words)]
    items = [item for item in Store.of(settings).installed() if item.state != "missing"]
    rows = [_row(entry, variant, items) for entry in entries for variant in entry.variants.values()]
    if fit:
        from tea_models.plan.choice import fit_table

        fits = fit_table(entries, settings)
        for row in rows:
            row["fit"] = fits.get((row["name"], row["variant"]))
    if not kind:
        named = {row["path"] for row in rows}
        strangers = [
            item for item in items if str(item.path) not in named and not registry.by_sha256(item.record.sha256)
        ]
        rows += [
            _unnamed(item) for item in strangers if all(word.lower() in item.record.model.lower() for word in words)
        ]
    if installed:
        rows = [row for row in rows if row["installed"]]
    out.answer(rows, lambda: _human(settings, out, rows, every=every, installed=installed))


def _matches(entry: Entry, words: Sequence[str]) -> bool:
    parts = (entry.name, *entry.aliases, entry.kind, entry.license, entry.description, *entry.variants)
    text = " ".join(parts).lower()
    return all(word.lower() in text for word in words)


def _row(entry: Entry, variant: Variant, items: Sequence[Installed]) -> dict[str, Any]:
    found = [next((item for item in items if item.record.means(file)), None) for file in variant.files]
    sizes = [file.size for file in variant.files]
    return {
        "name": entry.name,
        "variant": variant.name,
        "default": variant.name == entry.default,
        "kind": entry.kind,
        "license": entry.license,
        "size": None if None in sizes else sum(size for size in sizes if size),
        "pinned": all(file.sha256 for file in variant.files),
        "installed": None not in found,
        "path": str(found[0].path) if found[0] is not None else None,
        "description": entry.description,
        "aliases": list(entry.aliases),
        "origin": entry.origin,
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
    if not rows:
        return (
            "nothing of that is installed; start with: tea-models pull smollm2-135m"
            if installed
            else "no such models; `tea-models list` shows all of them"
        )
    shown = [row for row in rows if every or row["installed"] or (row["default"] and not _has(rows, row["name"]))]
    shown.sort(key=lambda row: not row["installed"])
    columns = {
        "NAME": [_name(row, every=every) for row in shown],
        "SIZE": [human_bytes(row["size"]) if row["size"] else "?" for row in shown],
    }
    if any(row["installed"] for row in shown):
        columns[""] = ["installed" if row["installed"] else "" for row in shown]
    if any("fit" in row for row in shown):
        fits = [row.get("fit") or {} for row in shown]
        columns["HERE"] = [str(fit.get("summary", "unknown")) for fit in fits]
        columns["SPEED"] = [_speed(fit.get("speed")) for fit in fits]
    columns["KIND"] = [row["kind"] or "" for row in shown]
    columns["LICENSE"] = [shortened(row["license"] or "", 20) for row in shown]
    while len(columns) > 2 and _width(columns) > out.width:
        columns.popitem()  # the last columns are the least wanted
    lines = _table(columns).splitlines()
    lines[0] = out.style(lines[0], "bold")
    total = sum(row["size"] or 0 for row in shown if row["installed"])
    footer = [f"{human_bytes(total)} in {settings.store_dir}"] if total else []
    if not installed:
        hidden = len(rows) - len(shown)
        footer.append(
            f"{len(shown)} of {len(rows)} variants; --all shows each" if hidden else "next: tea-models pull NAME"
        )
    return "\n".join([*lines, "", *footer])


def _has(rows: list[dict[str, Any]], name: str) -> bool:
    return any(row["installed"] for row in rows if row["name"] == name)


def _name(row: dict[str, Any], *, every: bool) -> str:
    return f"{row['name']}:{row['variant']}" if every or not row["default"] else row["name"]


def _speed(speed: dict[str, Any] | None) -> str:
    rate = (speed or {}).get("tokens_per_s")
    return f"{rate:,.0f} tokens/s" if rate else ""


def _width(columns: dict[str, list[str]]) -> int:
    return max(map(len, _table(columns).splitlines()))


def _table(columns: dict[str, list[str]]) -> str:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return table(rows, header=list(columns), right=frozenset({1}))
