"""`tea-models engine`: what is installed, what could be, and how to get it."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from tea_models.cli.frame import answering
from tea_models.cli.output import printable, table
from tea_models.sizes import human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tea_models.cli.frame import App
    from tea_models.engine.gate import Verdict
    from tea_models.engine.install import How, Installation
    from tea_models.engine.installed import InstalledEngine
    from tea_models.registry.engines import Accelerator, Prebuilt

_ACCELERATORS = ("cpu", "cuda", "vulkan", "metal")


@click.group("engine", short_help="Install llama.cpp, prebuilt or compiled, and see what it can do.",
             invoke_without_command=True)  # fmt: skip
@click.pass_context
@answering
def command(app: App, context: click.Context) -> int | None:
    """Show which engine (llama-cpp-python with llama.cpp) is installed here, and what it computes on."""
    if context.invoked_subcommand is not None:
        return None
    from tea_models.engine.gate import examine
    from tea_models.engine.installed import installed_engine
    from tea_models.errors import INSTALL_ENGINE

    engine = installed_engine(app.settings.environ)
    if engine is None:
        absent = {"installed": False} | dict.fromkeys(("version", "llama_cpp", "kind", "library", "sha256", "source"))
        app.out.answer(absent | {"features": []}, lambda: f"no engine is installed\n\nnext: {INSTALL_ENGINE}")
        return 0
    verdict = examine(engine.package, version=engine.version or "", environ=app.settings.environ or None)
    app.out.answer(_document(engine, verdict), lambda: _human(engine, verdict))
    return 1 if verdict.problems else 0


@command.command("install")
@click.argument("name", required=False)
@click.option("--auto", "how", flag_value="auto", default="auto", hidden=True)
@click.option("--prebuilt", "how", flag_value="prebuilt", help="Only a prebuilt one.")
@click.option("--compile", "how", flag_value="compile", help="Build it from source; needs a C++ compiler, and minutes.")
@click.option("--accelerator", type=click.Choice(_ACCELERATORS), help="What computes.  [default: cpu, on macOS metal]")
@click.option("--force", is_flag=True, help="Replace whatever engine is there.")
@click.option("--no-self-test", is_flag=True, help="Do not fetch SmolLM2 (94 MiB) to compare its answer.")
@answering
def install(
    app: App, name: str | None, *, how: How, accelerator: Accelerator | None, force: bool, no_self_test: bool
) -> None:
    """Install the engine: a prebuilt one that fits this machine and passes the checks, else a compiled one.

    NAME is one of `tea-models engine list`. What is checked before anything is installed: every function that is
    called is there, structures have the binding's layout, it runs on this processor, and SmolLM2 answers as recorded.
    """
    from tea_models.engine.install import Wanted
    from tea_models.engine.install import install as install_engine
    from tea_models.registry.engines import Host

    default: Accelerator = "metal" if Host.here().system == "darwin" else "cpu"
    wanted = Wanted(how, name, accelerator or default, force)
    done = install_engine(wanted, app.caller, model=_SelfTestModel(app, wanted=not no_self_test))
    document = _document(done.engine, done.verdict) | {"status": done.status, "seconds": round(done.seconds, 1)}
    app.out.answer(document, lambda: _installed(app, done))


@command.command("list")
@answering
def list_(app: App) -> None:
    """Show the prebuilt engines that are known, and which of them fit this machine."""
    from tea_models.engine.wheel import WheelCache
    from tea_models.registry.engines import Host, load_catalog

    catalog, host, cache = load_catalog(), Host.here(), WheelCache(app.caller)
    rows: list[tuple[Prebuilt, str | None, bool]] = [
        (engine, host.objection(engine.target), cache.place(engine, catalog.binding).is_dir())
        for engine in catalog.engines
    ]
    documents = [
        engine.model_dump(mode="json", by_alias=True)
        | {"fits": objection is None, "objection": objection, "kept": kept}
        for engine, objection, kept in rows
    ]
    app.out.answer(documents, lambda: _list(rows))


@command.command("verify")
@answering
def verify(app: App) -> int:
    """Check the installed engine again: functions, structures, and a first answer of SmolLM2.

    Exit code 1 if it can't be used, 4 if there is none.
    """
    from tea_models.engine.gate import examine
    from tea_models.engine.installed import installed_engine
    from tea_models.errors import INSTALL_ENGINE, NotAvailableError

    engine = installed_engine(app.settings.environ)
    if engine is None:
        raise NotAvailableError("no engine is installed", hint=INSTALL_ENGINE)
    began = time.monotonic()
    model = _SelfTestModel(app, wanted=True)()
    verdict = examine(engine.package, version=engine.version or "", model=model, environ=app.settings.environ or None)
    document = _document(engine, verdict) | {"seconds": round(time.monotonic() - began, 1)}
    app.out.answer(document, lambda: _human(engine, verdict))
    return 1 if verdict.problems else 0


class _SelfTestModel:
    """Brings the model of the self-test, once; where it can't be had, that is said and the test left out.

    Without progress: it is brought at the same time as the engine, whose progress is shown.
    """

    def __init__(self, app: App, *, wanted: bool) -> None:
        self._app = app
        self._wanted = wanted
        self._path: Path | None = None

    def __call__(self) -> Path | None:
        from tea_models.engine.gate import reference
        from tea_models.errors import TeaModelsError
        from tea_models.progress import Silent
        from tea_models.verbs.pull import pull_all

        if self._wanted and self._path is None:
            self._wanted = False
            name = reference()["self_test"]["model"]
            try:
                (result,) = pull_all([name], replace(self._app.caller, progress=Silent()))
                self._path = result.path
            except TeaModelsError as error:
                self._app.out.note(f"no self-test: {error.message}")
        return self._path


def _document(engine: InstalledEngine, verdict: Verdict) -> dict[str, Any]:
    found = asdict(verdict)
    return {
        "installed": True,
        "version": engine.version,
        "llama_cpp": engine.llama_cpp,
        "kind": engine.kind,
        "name": engine.about.get("name"),
        "library": str(engine.library) if engine.library else found["library"],
        "sha256": engine.sha256,
        "source": engine.source,
        "features": found["features"],
        "devices": found["devices"],
        "missing_functions": found["missing"],
        "self_test": found["self_test"],
        "problems": found["problems"],
    }


def _human(engine: InstalledEngine, verdict: Verdict) -> str:
    rows = [
        ["engine", f"llama-cpp-python {engine.version or 'of unknown version'}, {engine.kind}"],
        ["llama.cpp", engine.llama_cpp or "unknown"],
        ["from", engine.source],
        ["library", str(engine.library or verdict.library)],
        ["devices", ", ".join(verdict.devices) or "none"],
        ["features", ", ".join(verdict.features)],
        ["self-test", verdict.self_test],
    ]
    if verdict.missing:
        rows.append(["lacks", f"{len(verdict.missing)} functions that are not used here: {', '.join(verdict.missing)}"])
    rows += [["PROBLEM", problem] for problem in verdict.problems]
    return printable(table(rows))


def _installed(app: App, done: Installation) -> str:
    engine = done.engine
    what = f"llama-cpp-python {engine.version} with llama.cpp {engine.llama_cpp or ''} ({engine.kind}, {engine.source})"
    if done.status == "present":
        return printable(f"present: {what}")
    text = f"installed in {done.seconds:.1f} s: {what}"
    return printable(text if app.out.quiet else f"{text}\n\nnext: tea-models pull smollm2-135m")


def _list(rows: list[tuple[Prebuilt, str | None, bool]]) -> str:
    lines = []
    for engine, objection, kept in rows:
        notes = [objection] if objection else ["fits" + (", in the store" if kept else "")]
        if not engine.tried:
            notes.append("nobody has tried it here")
        if engine.speed is not None:
            notes.append(
                f"{engine.speed.tokens:.0%} of the compiled one's tokens/s, {engine.speed.prompt:.0%} for prompts"
            )
            if engine.speed.is_slow:
                notes.append("to have it faster: tea-models engine install --compile")
        size = human_bytes(engine.size)
        lines.append([engine.name, engine.llama_cpp, engine.target.accelerator, size, "; ".join(notes)])
    header = ["NAME", "LLAMA.CPP", "ON", "SIZE", ""]
    return table(lines, header=header, right=frozenset({3}))
