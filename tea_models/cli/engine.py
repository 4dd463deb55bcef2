"""`tea-models engine`: what is installed, what could be, and how to get it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click

from tea_models.cli.frame import App, answering
from tea_models.cli.output import one_line, table
from tea_models.engine.gate import Verdict, examine, reference
from tea_models.engine.install import How, Installation, Wanted
from tea_models.engine.install import install as install_engine
from tea_models.engine.installed import InstalledEngine, installed_engine
from tea_models.engine.wheel import WheelCache
from tea_models.errors import INSTALL_ENGINE, NotAvailableError, TeaModelsError
from tea_models.progress import Progress
from tea_models.registry.engines import Accelerator, Host, Prebuilt, load_catalog
from tea_models.sizes import human_bytes
from tea_models.verbs.pull import pull_all


@click.group("engine", invoke_without_command=True)
@click.pass_context
@answering
def command(app: App, context: click.Context) -> int | None:
    """Show which engine (llama-cpp-python with llama.cpp) is installed here, and what it computes on."""
    if context.invoked_subcommand is not None:
        return None
    engine = installed_engine(app.settings.environ)
    if engine is None:
        absent = dict.fromkeys(("version", "llama_cpp", "kind", "library", "sha256", "source"))
        document: dict[str, Any] = {"installed": False, **absent, "features": []}
        app.out.answer(document, lambda: f"no engine is installed\n\nnext: {INSTALL_ENGINE}")
        return 0
    return _examine(app, engine)


def _examine(app: App, engine: InstalledEngine, model: Path | None = None) -> int:
    verdict = examine(engine.package, version=engine.version or "", model=model, environ=app.settings.environ or None)
    app.out.answer(_document(engine, verdict), lambda: _human(engine, verdict))
    return 1 if verdict.problems else 0


@command.command("install")
@click.argument("name", required=False)
@click.option("--prebuilt", "how", flag_value="prebuilt", help="Only a prebuilt one.")
@click.option("--compile", "how", flag_value="compile", help="Build it from source; needs a C++ compiler, and minutes.")
@click.option(
    "--accelerator", type=click.Choice(get_args(Accelerator)), help="What computes.  [default: cpu, on macOS metal]"
)
@click.option("--force", is_flag=True, help="Replace whatever engine is there.")
@click.option("--no-self-test", is_flag=True, help="Do not fetch SmolLM2 (94 MiB) to compare its answer.")
@answering
def install(
    app: App, name: str | None, *, how: How | None, accelerator: Accelerator | None, force: bool, no_self_test: bool
) -> None:
    """Install the engine: a prebuilt one that fits this machine and passes the checks, else a compiled one.

    NAME is one of `tea-models engine list`. What is checked before anything is installed: every function that is
    called is there, structures have the binding's layout, it runs on this processor, and SmolLM2 answers as recorded.
    """
    default: Accelerator = "metal" if Host.here().system == "darwin" else "cpu"

    model = cache(lambda: None if no_self_test else _self_test_model(app))
    wanted = Wanted(how or "auto", name, accelerator or default, force)
    done = install_engine(wanted, app.caller, model=model)
    document = _document(done.engine, done.verdict) | {"status": done.status, "seconds": round(done.seconds, 1)}
    app.out.answer(document, lambda: _installed(app, done))


def _self_test_model(app: App) -> Path | None:
    """Fetched without progress: it comes at the same time as the engine, whose progress is shown."""
    try:
        (result,) = pull_all([reference()["self_test"]["model"]], replace(app.caller, progress=Progress()))
    except TeaModelsError as error:
        app.out.note(f"no self-test: {error.message}")
        return None
    return result.path


@command.command("verify")
@answering
def verify(app: App) -> int:
    """Check the installed engine again: functions, structures, and a first answer of SmolLM2.

    Exit code 1 if it can't be used, 4 if there is none.
    """
    engine = installed_engine(app.settings.environ)
    if engine is None:
        raise NotAvailableError("no engine is installed", hint=INSTALL_ENGINE)
    return _examine(app, engine, _self_test_model(app))


@command.command("list")
@answering
def list_(app: App) -> None:
    """Show the prebuilt engines that are known, and which of them fit this machine."""
    catalog, host, cached = load_catalog(), Host.here(), WheelCache(app.caller)
    documents, rows = [], []
    for engine in catalog.engines:
        objection, kept = host.objection(engine.target), cached.place(engine, catalog.binding).is_dir()
        facts = {"fits": objection is None, "objection": objection, "kept": kept}
        documents.append(engine.model_dump(mode="json", by_alias=True) | facts)
        notes = [objection or ("fits, in the store" if kept else "fits"), *_experience(engine)]
        size, told = human_bytes(engine.size), "; ".join(notes)
        rows.append([engine.name, engine.llama_cpp, engine.target.accelerator, size, told])
    header = ["NAME", "LLAMA.CPP", "ON", "SIZE", ""]
    app.out.answer(documents, lambda: table(rows, header=header, right=frozenset({3})))


def _experience(engine: Prebuilt) -> list[str]:
    notes = [] if engine.tried else ["nobody has tried it here"]
    speed = engine.speed
    if speed is not None:
        notes.append(f"{speed.tokens:.0%} of the compiled one's tokens/s, {speed.prompt:.0%} for prompts")
        if min(speed.prompt, speed.tokens) < 0.9:
            notes.append("to have it faster: tea-models engine install --compile")
    return notes


def _document(engine: InstalledEngine, verdict: Verdict) -> dict[str, Any]:
    known = {name: getattr(engine, name) for name in ("version", "llama_cpp", "kind", "sha256", "source")}
    found = {name: getattr(verdict, name) for name in ("features", "devices", "self_test", "problems")}
    more = {"name": engine.about.get("name"), "missing_functions": verdict.missing}
    return {"installed": True, **known, "library": str(engine.library or verdict.library), **found, **more}


def _human(engine: InstalledEngine, verdict: Verdict) -> str:
    rows = [
        ["engine", f"llama-cpp-python {engine.version or 'of unknown version'}, {engine.kind}"],
        ["llama.cpp", engine.llama_cpp or "unknown"],
        ["from", engine.source],
        ["library", str(engine.library or verdict.library)],
        ["devices", ", ".join(verdict.devices) or "none"],
        ["features", ", ".join(verdict.features)],
    ]
    if verdict.missing:
        rows.append(["lacks", f"{len(verdict.missing)} functions that are not used here: {', '.join(verdict.missing)}"])
    return table(rows + [["PROBLEM", problem] for problem in verdict.problems])


def _installed(app: App, done: Installation) -> str:
    engine = done.engine
    what = f"llama-cpp-python {engine.version} with llama.cpp {engine.llama_cpp or ''} ({engine.kind}, {engine.source})"
    if done.status == "present" or app.out.quiet:
        return one_line(f"{done.status}: {what}")
    return one_line(f"installed in {done.seconds:.1f} s: {what}") + "\n\nnext: tea-models pull smollm2-135m"
