"""The engine in a lock: the entries of the catalogue that a project's machines use, one a system and processor."""

from __future__ import annotations

from collections.abc import Mapping

from tea_models.caller import Caller
from tea_models.engine.archives import carried
from tea_models.engine.install import Wanted, install
from tea_models.engine.installed import InstalledEngine, installed_engine
from tea_models.errors import LockError, OfflineError
from tea_models.registry.engines import Catalog, Host, Prebuilt, load_catalog


def lock_engine(old: Catalog | None, environ: Mapping[str, str] | None = None) -> Catalog:
    """What a lock says of the engine that is installed here, besides those of other machines that it has already.

    Only a prebuilt engine of the catalogue can be locked: nobody else could install another.
    """
    known = load_catalog()
    engine = installed_engine(environ)
    here = next((entry for entry in known.engines if engine is not None and _is_entry(engine, entry, known)), None)
    if here is None:
        what = "no engine is installed" if engine is None else f"the installed engine is {engine.kind}: {engine.source}"
        raise LockError(f"{what}; only a prebuilt one can be locked", hint="tea-models engine install --prebuilt")
    others = old.engines if old is not None and old.binding == known.binding else ()
    own = (here.target.system, here.target.machine)
    kept = [entry for entry in others if (entry.target.system, entry.target.machine) != own]
    return Catalog.model_validate({
        "schema": "tea.engines/1",
        "binding": known.binding,
        "engines": sorted([*kept, here], key=lambda entry: entry.name),
    })  # fmt: skip


def sync_engine(catalog: Catalog, caller: Caller, *, only_check: bool) -> str:
    """Install exactly the locked engine, unless it is there or `only_check` forbids it: `present` or `installed`."""
    host = Host.here()
    entry = next((entry for entry in catalog.engines if host.objection(entry.target) is None), None)
    if entry is None:
        names = ", ".join(entry.name for entry in catalog.engines)
        hint = "lock one here: tea-models lock --engine"
        raise LockError(f"no locked engine is for this machine: {names}", hint=hint)
    if only_check:
        engine = installed_engine(caller.settings.environ or None)
        if engine is None or not _is_entry(engine, entry, catalog):
            raise OfflineError(f"the locked engine {entry.name} is not installed", hint="tea-models sync")
        return "present"
    status = install(Wanted("prebuilt", entry.name), caller, catalog=catalog).status
    for archive in (catalog.binding, entry):
        carried(archive, caller).unlink(missing_ok=True)  # what a bundle brought has served
    return status


def _is_entry(engine: InstalledEngine, entry: Prebuilt, catalog: Catalog) -> bool:
    found = (engine.kind, engine.about.get("sha256"), engine.version)
    return found == ("prebuilt", entry.sha256, catalog.binding.version)
