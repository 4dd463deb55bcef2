"""The engine in a lock: the entries of the catalogue that a project's machines use, one a system and processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tea_models.engine.install import Wanted, install
from tea_models.engine.installed import installed_engine
from tea_models.engine.wheel import WheelCache
from tea_models.errors import LockError, MissingFileError, OfflineError
from tea_models.registry.engines import Catalog, Host, load_catalog

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tea_models.caller import Caller
    from tea_models.engine.installed import InstalledEngine
    from tea_models.registry.engines import Prebuilt


def lock_engine(old: Catalog | None, environ: Mapping[str, str] | None = None) -> Catalog:
    """What a lock says of the engine that is installed here, besides those of other machines that it has already.

    Args:
        old: What the lock says now.
        environ: The environment of the engine.

    Raises:
        LockError: No prebuilt engine of the catalogue is installed: nobody else could install the same one.
    """
    known = load_catalog()
    engine = installed_engine(environ)
    here = next((entry for entry in known.engines if engine is not None and _is_entry(engine, entry, known)), None)
    if here is None:
        what = "no engine is installed" if engine is None else f"the installed engine is {engine.kind}: {engine.source}"
        raise LockError(f"{what}; only a prebuilt one can be locked", hint="tea-models engine install --prebuilt")
    others = old.engines if old is not None and old.binding == known.binding else ()
    kept = [entry for entry in others if (entry.target.system, entry.target.machine) != _machine(here)]
    return Catalog.model_validate({
        "schema": "tea.engines/1",
        "binding": known.binding,
        "engines": sorted([*kept, here], key=lambda entry: entry.name),
    })  # fmt: skip


def sync_engine(catalog: Catalog, caller: Caller, *, only_check: bool) -> str:
    """Install exactly the locked engine, unless it is there.

    Args:
        catalog: From the lock.
        caller: Where the store is.
        only_check: Install nothing.

    Returns:
        `present` or `installed`.

    Raises:
        LockError: None of the locked engines is for this machine.
        OfflineError: It is not installed, and may not be.
        TeaModelsError: As for `install`.
    """
    entry = locked_entry(catalog)
    if only_check:
        engine = installed_engine(caller.settings.environ or None)
        if engine is None or not _is_entry(engine, entry, catalog):
            raise OfflineError(f"the locked engine {entry.name} is not installed", hint="tea-models sync")
        return "present"
    return install(Wanted("prebuilt", entry.name), caller, catalog=catalog).status


def locked_entry(catalog: Catalog) -> Prebuilt:
    """The locked engine for this machine.

    Raises:
        LockError: There is none.
    """
    host = Host.here()
    entry = next((entry for entry in catalog.engines if host.objection(entry.target) is None), None)
    if entry is None:
        names = ", ".join(entry.name for entry in catalog.engines)
        raise LockError(
            f"no locked engine is for this machine: {names}", hint="lock one here: tea-models lock --engine"
        )
    return entry


def kept_wheel(catalog: Catalog, caller: Caller) -> Path:
    """The wheel of the locked engine for this machine, in the store.

    Raises:
        MissingFileError: It is not there.
    """
    entry = locked_entry(catalog)
    wheel = WheelCache(caller).find(entry, catalog.binding)
    if wheel is None:
        hint = f"tea-models engine install {entry.name} --force"
        raise MissingFileError(f"the wheel of {entry.name} is not in the store", hint=hint)
    return wheel


def _machine(entry: Prebuilt) -> tuple[str, str]:
    return entry.target.system, entry.target.machine


def _is_entry(engine: InstalledEngine, entry: Prebuilt, catalog: Catalog) -> bool:
    return (engine.kind, engine.about.get("sha256"), engine.version) == (
        "prebuilt",
        entry.sha256,
        catalog.binding.version,
    )
