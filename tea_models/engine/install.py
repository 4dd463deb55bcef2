"""`install`: an engine for this environment, prebuilt if one fits, compiled otherwise."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.disk.space import check_space
from tea_models.engine.archives import Archives
from tea_models.engine.gate import Verdict, examine
from tea_models.engine.installed import InstalledEngine, installed_engine
from tea_models.engine.wheel import WheelCache, describe, lay_out, write_wheel
from tea_models.errors import (
    EngineError,
    IntegrityError,
    NotAvailableError,
    OfflineError,
    SourceUnavailableError,
    TeaModelsError,
)
from tea_models.registry.engines import Accelerator, Catalog, Host, Prebuilt, load_catalog
from tea_models.sources.pypi import pip_command
from tea_models.store import Store

How = Literal["auto", "prebuilt", "compile"]
#: Brings the model of the self-test; None where it can't be had.
SelfTestModel = Callable[[], Path | None]
#: The Python packages that llama-cpp-python 0.3 needs.
DEPENDENCIES = ("typing-extensions>=4.5.0", "numpy>=1.20.0", "diskcache>=5.6.1", "jinja2>=2.11.3")
_COMPILERS = ("c++", "g++", "clang++")
_HINT = "make an environment: python3 -m venv .venv && .venv/bin/pip install tea-models"
# The unpacked tree and the wheel, beside the archives.
_WORKING_SPACE = 400 * 1024**2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be installed: by kind, or one entry of the catalogue."""

    how: How = "auto"
    name: str | None = None
    accelerator: Accelerator = "cpu"
    force: bool = False  # replace whatever is there


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed now, what the gate found, and how long it took."""

    engine: InstalledEngine
    verdict: Verdict
    status: Literal["installed", "present"]
    seconds: float


def install(
    wanted: Wanted, caller: Caller, *, catalog: Catalog | None = None, model: SelfTestModel = lambda: None
) -> Installation:
    """Install an engine; what can't be used leaves the environment as it was. `model` brings that of the self-test."""
    began = time.monotonic()
    with Store(caller.settings.store_dir).alone(f"engine-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]}"):
        installer = _Installer(wanted, caller, catalog or load_catalog(), model)
        verdict = installer.usable()
        status: Literal["installed", "present"] = "present" if verdict is not None else "installed"
        if verdict is None:
            check_environment(caller.settings.environ)
            self_test = installer.compile() if wanted.how == "compile" else installer.prebuilt()
            verdict = replace(installer.examine_installed(), self_test=self_test)
        engine = installed_engine(caller.settings.environ or None)
    if engine is None:
        raise EngineError("pip has installed the engine where this Python does not find it", hint="pip config list")
    if verdict.problems:
        raise EngineError(f"the engine is installed but can't be used: {verdict.problems[0]}")
    return Installation(engine, verdict, status, time.monotonic() - began)


class _Installer:
    def __init__(self, wanted: Wanted, caller: Caller, catalog: Catalog, model: SelfTestModel) -> None:
        self._wanted = wanted
        self._caller = caller
        self._catalog = catalog
        self._host = Host.here()
        self._model = model
        self._environ = caller.settings.environ or None
        self._cache = WheelCache(caller)

    def examine_installed(self, model: Path | None = None) -> Verdict:
        engine = installed_engine(self._environ)
        if engine is None:
            return Verdict()
        return examine(engine.package, version=engine.version or "", model=model, environ=self._environ)

    def usable(self) -> Verdict | None:
        """What the gate says of the engine that is there; None if one is to be installed."""
        engine = installed_engine(self._environ)
        if engine is None or self._wanted.force:
            return None
        verdict = self.examine_installed() if self._is_wanted(engine) else None
        if verdict is not None and not verdict.problems:
            return verdict
        if engine.kind != "prebuilt":
            what = f"an engine is installed that `engine install` has not made: {engine.source} ({engine.kind})"
            if verdict is not None:
                what = f"the installed engine can't be used: {engine.source}: {verdict.problems[0]}"
            raise EngineError(what, hint="--force replaces it")
        if verdict is not None:
            self._caller.note(f"the installed engine can't be used and is replaced: {verdict.problems[0]}")
        return None

    def _is_wanted(self, engine: InstalledEngine) -> bool:
        wanted = self._wanted
        if engine.kind != "prebuilt":
            kinds = {"auto": ("compiled", "foreign"), "compile": ("compiled",), "prebuilt": ()}
            return wanted.name is None and engine.kind in kinds[wanted.how]
        name = engine.about.get("name")
        known = next((entry for entry in self._catalog.engines if entry.name == name), None)
        if known is None or wanted.how == "compile":
            return False
        chosen = wanted.name == name if wanted.name else known.target.accelerator == wanted.accelerator
        same = (known.sha256, self._catalog.binding.version) == (engine.about.get("sha256"), engine.version)
        return chosen and same

    def prebuilt(self) -> str:
        """Install the first library that passes the gate, and say how its self-test ended."""
        refused: list[tuple[Prebuilt, TeaModelsError]] = []
        with self._cache.working_folder() as folder:
            archives = Archives(folder / "archives", self._caller)
            for engine in self._candidates():
                try:
                    wheel, verdict = self._checked_wheel(engine, archives, folder / engine.name)
                except (NotAvailableError, IntegrityError, EngineError) as error:
                    refused.append((engine, error))
                    self._caller.note(f"{engine.name}: {error.message}")
                    continue
                self._caller.note(f"taken: {engine.name}, llama.cpp {engine.llama_cpp} from {engine.reference}")
                only_binary = f"--only-binary={self._catalog.binding.package}"
                self._pip_install(sha256_file(wheel), "--no-index", f"--find-links={wheel.parent}", only_binary)
                return verdict.self_test
        wanted, settings = self._wanted, self._caller.settings
        if wanted.how == "auto" and wanted.name is None and not settings.offline and compiler(settings.environ):
            self._caller.note("no prebuilt engine fits, so one is compiled")
            return self.compile()
        raise self._nothing_fits(refused)

    def _candidates(self) -> list[Prebuilt]:
        name = self._wanted.name
        if name is None:
            suitable = [
                engine
                for engine in self._catalog.engines
                if engine.target.accelerator == self._wanted.accelerator and self._host.objection(engine.target) is None
            ]
            # What lies in the store needs no network.
            return sorted(suitable, key=lambda engine: self._cache.find(engine, self._catalog.binding) is None)
        engine = self._catalog.find(name)
        objection = self._host.objection(engine.target)
        if objection is not None:
            raise NotAvailableError(f"{engine.name}: {objection}", hint="tea-models engine list")
        return [engine]

    def _checked_wheel(self, engine: Prebuilt, archives: Archives, folder: Path) -> tuple[Path, Verdict]:
        """A wheel that has passed the gate: from the store, or put together and kept there."""
        binding, tree = self._catalog.binding, folder / "tree"
        wheel = self._cache.find(engine, binding)
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(tree)
        else:
            check_space(folder, engine.size + binding.size + _WORKING_SPACE, "the engine")
            # The model of the self-test comes at the same time.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(self._model)
                source, library = archives.get(binding, engine)
            lay_out(tree, (binding, source), (engine, library))
        model = self._model()
        self._caller.note(f"checking {engine.name}: functions, structures{', a first answer' if model else ''}")
        verdict = examine(tree / "llama_cpp", version=binding.version, model=model, environ=self._environ)
        if verdict.problems:
            raise EngineError(f"refused: {'; '.join(verdict.problems[:3])}")
        if wheel is None:
            describe(tree, binding, engine, missing=verdict.missing)
            wheel = self._cache.keep(write_wheel(tree, folder, binding, engine), engine, binding)
        return wheel, verdict

    def compile(self) -> str:
        """Build llama-cpp-python as its own build does, and say how the self-test ended."""
        binding = self._catalog.binding
        if self._caller.settings.offline:
            raise OfflineError("an engine is compiled from a source distribution, and nothing may be fetched")
        if not compiler(self._caller.settings.environ):
            hint = "Debian: apt-get install g++; macOS: xcode-select --install"
            raise NotAvailableError("there is no C++ compiler to build llama.cpp with", hint=hint)
        self._caller.note(f"compiling {binding.package} {binding.version}: about five minutes on two cores")
        self._pip_install(binding.sha256, f"--no-binary={binding.package}")
        return self.examine_installed(self._model()).self_test

    def _pip_install(self, sha256: str, *options: str) -> None:
        install_dependencies(self._caller)
        binding = self._catalog.binding
        requirement = f"{binding.package}=={binding.version} --hash=sha256:{sha256}"
        pip_install([requirement], [*options, "--no-deps", "--force-reinstall"], self._caller)

    def _nothing_fits(self, refused: list[tuple[Prebuilt, TeaModelsError]]) -> TeaModelsError:
        hint = "with a C++ compiler (Debian: apt-get install g++): tea-models engine install --compile"
        if len(refused) == 1 or (refused and all(isinstance(error, OfflineError) for _, error in refused)):
            error = refused[0][1]
            error.hint = error.hint or hint
            return error
        host = self._host
        where = f"{host.system} on {host.machine}"
        if host.system == "linux":
            where += f", glibc {host.glibc}" if host.glibc else ", no glibc"
        told = "".join(f"; {engine.name}: {error.message}" for engine, error in refused)
        return NotAvailableError(
            f"no prebuilt engine for {self._wanted.accelerator} fits here ({where}){told}", hint=hint
        )


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse to begin where pip may not install: in a Python of the system, or a folder that can't be written."""
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    allowed = environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0").lower() not in ("", "0", "false", "no")
    if sys.prefix == sys.base_prefix and managed.is_file() and not allowed:
        raise EngineError(f"{sys.executable} belongs to the system, which installs its packages itself", hint=_HINT)
    folder = Path(sysconfig.get_path("platlib"))
    if not os.access(folder, os.W_OK):
        raise EngineError(f"{folder} can't be written, so no engine can be installed there", hint=_HINT)


def compiler(environ: Mapping[str, str]) -> str | None:
    path = environ.get("PATH")
    return environ.get("CXX") or next((name for name in _COMPILERS if shutil.which(name, path=path)), None)


def install_dependencies(caller: Caller) -> None:
    """Install what llama-cpp-python needs of Python packages and this environment lacks."""
    lacking = [text for text in DEPENDENCIES if not _is_satisfied(Requirement(text))]
    if lacking and caller.settings.offline:
        raise OfflineError(f"the engine needs {', '.join(lacking)}, and nothing may be fetched")
    if lacking:
        caller.note(f"installing {', '.join(lacking)}")
        pip_install(lacking, [], caller)


def _is_satisfied(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def pip_install(requirements: Sequence[str], options: Sequence[str], caller: Caller) -> None:
    """Have pip install the lines of a requirements file into this environment, with the user's configuration."""
    environ = dict(caller.settings.environ or os.environ)
    environ |= {"PIP_NO_INPUT": "1", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = pip_command(environ)
    elsewhere = [] if pip[0] == sys.executable else ["--python", sys.executable]
    with tempfile.TemporaryDirectory(prefix="tea-pip-") as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        command = [*pip, *elsewhere, "install", "--progress-bar=off", *options, f"--requirement={file}"]
        try:
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                check=False,
            )  # fmt: skip
        except OSError as error:
            raise SourceUnavailableError(f"pip can't be started: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        told = (errors or lines or ["no message"])[-1].removeprefix("ERROR: ").removeprefix("error: ")
        raise EngineError(f"pip could not install {requirements[0].partition(' ')[0]}: {told}", hint="pip config list")
