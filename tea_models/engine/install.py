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
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tea_models.disk.hashing import sha256_file
from tea_models.disk.space import check_space
from tea_models.engine.archives import Archives
from tea_models.engine.catalog import Catalog, Host, Prebuilt, load_catalog
from tea_models.engine.gate import Verdict, examine
from tea_models.engine.installed import InstalledEngine, installed_engine
from tea_models.engine.wheel import describe, lay_out, write_wheel
from tea_models.errors import (
    EngineError,
    IntegrityError,
    NotAvailableError,
    OfflineError,
    SourceUnavailableError,
    TeaModelsError,
)
from tea_models.sources.pypi import pip_command
from tea_models.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tea_models.caller import Caller
    from tea_models.engine.catalog import Accelerator, Archive

How = Literal["auto", "prebuilt", "compile"]
#: Brings the model of the self-test; None where it can't be had.
SelfTestModel = Callable[[], Path | None]
_COMPILERS = ("c++", "g++", "clang++")
# The unpacked tree and the wheel, beside the archives.
_WORKING_SPACE = 400 * 1024**2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be installed.

    Attributes:
        how: `auto`, or one of the two kinds only.
        name: One entry of the catalogue.
        accelerator: What is to compute.
        force: Replace whatever is there.
    """

    how: How = "auto"
    name: str | None = None
    accelerator: Accelerator = "cpu"
    force: bool = False


@dataclass(frozen=True, slots=True)
class Installation:
    """What came of it.

    Attributes:
        engine: What is installed now.
        verdict: What the gate found.
        status: `installed`, or `present` if it was there already.
        seconds: How long it took.
    """

    engine: InstalledEngine
    verdict: Verdict
    status: Literal["installed", "present"]
    seconds: float


def install(
    wanted: Wanted,
    caller: Caller,
    *,
    catalog: Catalog | None = None,
    host: Host | None = None,
    model: SelfTestModel = lambda: None,
) -> Installation:
    """Install an engine; what can't be used leaves the environment as it was.

    Args:
        wanted: Which.
        caller: Where the store is; told about bytes, and what was chosen and why.
        catalog: By default the one that comes with this distribution.
        host: By default this machine.
        model: Brings the model of the self-test, or None where it can't be had.

    Raises:
        EngineError: Another engine is in the way, or the environment can't be written.
        NotAvailableError: Nothing fits, or nothing can be fetched.
        IntegrityError: An archive is not the one in the catalogue.
    """
    began = time.monotonic()
    catalog, host = catalog or load_catalog(), host or Host.here()
    store = Store(caller.settings.store_dir)
    with store.alone(f"engine-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]}"):
        before = installed_engine(caller.settings.environ)
        if before is not None and not wanted.force:
            verdict = _usable(before, wanted, catalog, caller, model)
            if verdict is not None:
                return Installation(before, verdict, "present", time.monotonic() - began)
        check_environment(caller.settings.environ)
        if wanted.how == "compile":
            _compile(catalog.binding, caller)
        else:
            _install_prebuilt(wanted, catalog, host, caller, model)
        after = installed_engine(caller.settings.environ)
        if after is None:
            raise EngineError("pip has installed the engine where this Python does not find it", hint="pip config list")
        verdict = examine(after.package, version=after.version or "", environ=caller.settings.environ or None)
    if verdict.problems:
        raise EngineError(f"the engine is installed but can't be used: {verdict.problems[0]}")
    return Installation(after, verdict, "installed", time.monotonic() - began)


def _usable(
    engine: InstalledEngine, wanted: Wanted, catalog: Catalog, caller: Caller, model: SelfTestModel
) -> Verdict | None:
    """What the gate says of the engine that is there; None if it is ours and another one is wanted."""
    ours = engine.kind == "prebuilt"
    asked = wanted.name or (wanted.how if wanted.how != "auto" else None)
    fits = {"prebuilt": ours, "compile": engine.kind == "compiled", None: True}.get(
        asked, engine.about.get("name") == asked
    )
    if ours:
        known = next((entry for entry in catalog.engines if entry.name == engine.about.get("name")), None)
        fits = fits and known is not None and known.sha256 == engine.about.get("sha256")
        fits = fits and catalog.binding.version == engine.version
    elif not fits:
        raise EngineError(
            f"an engine is installed that `engine install` has not made: {engine.source} ({engine.kind})",
            hint="--force replaces it",
        )
    if not fits:
        return None
    verdict = examine(
        engine.package, version=engine.version or "", model=model(), environ=caller.settings.environ or None
    )
    if not verdict.problems:
        return verdict
    if ours:
        caller.note(f"the installed engine can't be used: {verdict.problems[0]}; it is replaced")
        return None
    raise EngineError(
        f"the installed engine can't be used: {engine.source}: {verdict.problems[0]}", hint="--force replaces it"
    )


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse to begin where pip may not install.

    Raises:
        EngineError: The Python belongs to the system, or its folder can't be written.
    """
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    allowed = environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0") not in ("", "0", "false")
    hint = "make an environment: python3 -m venv .venv && .venv/bin/pip install tea-models"
    if sys.prefix == sys.base_prefix and managed.is_file() and not allowed:
        raise EngineError(f"{sys.executable} belongs to the system, which installs its packages itself", hint=hint)
    folder = Path(sysconfig.get_path("platlib"))
    if not os.access(folder, os.W_OK):
        raise EngineError(f"{folder} can't be written, so no engine can be installed there", hint=hint)


def _install_prebuilt(wanted: Wanted, catalog: Catalog, host: Host, caller: Caller, model: SelfTestModel) -> None:
    refused: list[tuple[Prebuilt, TeaModelsError]] = []
    with working_folder(caller) as folder:
        archives = Archives(folder / "archives", caller)
        for engine in candidates(wanted, catalog, host):
            try:
                wheel = prebuilt_wheel(
                    engine, catalog.binding, archives, folder / engine.name, caller=caller, model=model
                )
            except (NotAvailableError, IntegrityError, GateError) as error:
                refused.append((engine, error))
                caller.note(f"{engine.name}: {error.message}")
            else:
                caller.note(f"{engine.name}: llama.cpp {engine.llama_cpp} from {engine.reference} fits this machine")
                _pip_install(wheel, catalog.binding, caller)
                return
    if wanted.how == "auto" and wanted.name is None and not caller.settings.offline and compiler(caller):
        caller.note("no prebuilt engine fits this machine, so it is compiled")
        _compile(catalog.binding, caller)
        return
    hint = "with a C++ compiler (Debian: apt-get install g++): tea-models engine install --compile"
    if len(refused) == 1:
        only = refused[0][1]
        only.hint = only.hint or hint
        raise only
    if refused and all(isinstance(error, OfflineError) for _, error in refused):
        raise refused[0][1]
    told = "; ".join(f"{engine.name}: {error.message}" for engine, error in refused)
    where = f"{host.system} on {host.machine}" + ("" if host.glibc else " without glibc" * (host.system == "linux"))
    raise NotAvailableError(
        f"no prebuilt engine for {wanted.accelerator} can be installed here ({where})" + (f": {told}" if told else ""),
        hint=hint,
    )


def candidates(wanted: Wanted, catalog: Catalog, host: Host) -> list[Prebuilt]:
    """The libraries to try, in order.

    Raises:
        NotAvailableError: The one that is asked for by name is not known, or not for this machine.
    """
    if wanted.name is None:
        suitable = [engine for engine in catalog.engines if engine.target.accelerator == wanted.accelerator]
        return [engine for engine in suitable if host.objection(engine.target) is None]
    engine = catalog.find(wanted.name)
    objection = host.objection(engine.target)
    if objection is not None:
        raise NotAvailableError(f"{engine.name}: {objection}", hint="tea-models engine list")
    return [engine]


class GateError(EngineError):
    """A library does not fit the binding or this machine."""


def prebuilt_wheel(
    engine: Prebuilt, binding: Archive, archives: Archives, folder: Path, *, caller: Caller, model: SelfTestModel
) -> Path:
    """A checked wheel: from the store, or put together and kept there.

    Args:
        engine: The library.
        binding: The source distribution.
        archives: Brings both.
        folder: A place to work in.
        caller: Where the store is; told what is done.
        model: Brings the model of the self-test.

    Raises:
        GateError: The library does not pass the gate.
        NotAvailableError: An archive can't be fetched.
        IntegrityError: It is not the one in the catalogue.
    """
    kept = wheel_folder(caller, engine, binding)
    tree = folder / "tree"
    wheel = next(iter(kept.glob("*.whl")), None)
    if wheel is None or not _unpacked(wheel, tree):
        wheel = None
        check_space(folder, engine.size + binding.size + _WORKING_SPACE, "the engine")
        source, library = archives.get(binding, engine)
        shutil.rmtree(tree, ignore_errors=True)
        lay_out(tree, (binding, source), (engine, library))
    test = model()
    caller.note(f"checking {engine.name}: functions, structures" + (", a first answer" if test else ""))
    environ = caller.settings.environ or None
    verdict = examine(tree / "llama_cpp", version=binding.version, model=test, environ=environ)
    if verdict.problems:
        raise GateError(f"refused: {'; '.join(verdict.problems[:3])}")
    if wheel is None:
        describe(tree, binding, engine, missing=verdict.missing)
        wheel = _keep(write_wheel(tree, folder, binding, engine), kept, caller)
    return wheel


def wheel_folder(caller: Caller, engine: Prebuilt, binding: Archive) -> Path:
    """Where the wheel of a library is kept."""
    loader = Path(__file__).with_name("prebuilt_loader.py").read_bytes()
    key = hashlib.sha256(f"{binding.sha256} {engine.model_dump_json()}".encode() + loader).hexdigest()[:16]
    return Store(caller.settings.store_dir).hidden / "engines" / f"{engine.name}-{key}"


@contextmanager
def working_folder(caller: Caller) -> Iterator[Path]:
    """A folder beside the kept wheels; in the system's temporary one where the store can't be written."""
    folder_of_wheels = Store(caller.settings.store_dir).hidden / "engines"
    parent: Path | None = folder_of_wheels
    try:
        folder_of_wheels.mkdir(parents=True, exist_ok=True)
    except OSError:
        parent = None
    with tempfile.TemporaryDirectory(prefix="making-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _unpacked(wheel: Path, tree: Path) -> bool:
    """Unpack a kept wheel; False if it is damaged."""
    try:
        expected = wheel.with_suffix(".sha256").read_text("ascii").strip()
        if sha256_file(wheel) != expected:
            return False
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _keep(wheel: Path, folder: Path, caller: Caller) -> Path:
    """Move a wheel to its place in the store, whole or not at all."""
    (wheel.with_suffix(".sha256")).write_text(sha256_file(wheel) + "\n", encoding="ascii")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        draft = folder.with_name(f"{wheel.parent.name}-wheel")
        draft.mkdir(parents=True)
        for path in (wheel, wheel.with_suffix(".sha256")):
            shutil.move(path, draft / path.name)
        draft.rename(folder)
    except OSError as error:
        caller.note(f"the wheel is not kept in the store: {error.strerror}")
        return wheel
    return folder / wheel.name


def compiler(caller: Caller) -> str | None:
    """The C++ compiler that a build would find."""
    environ = caller.settings.environ or os.environ
    return environ.get("CXX") or next(
        (name for name in _COMPILERS if shutil.which(name, path=environ.get("PATH"))), None
    )


def _compile(binding: Archive, caller: Caller) -> None:
    if caller.settings.offline:
        raise OfflineError("an engine is compiled from a source distribution, and nothing may be fetched")
    if sys.platform != "win32" and compiler(caller) is None:
        raise NotAvailableError(
            "there is no C++ compiler to build llama.cpp with",
            hint="Debian: apt-get install g++; macOS: xcode-select --install",
        )
    caller.note(f"compiling {binding.package} {binding.version}: about five minutes on two cores")
    _install_dependencies(binding, caller)
    requirement = f"{binding.package}=={binding.version} --hash=sha256:{binding.sha256}"
    _pip([requirement], [f"--no-binary={binding.package}", "--no-deps", "--force-reinstall"], caller)


def _pip_install(wheel: Path, binding: Archive, caller: Caller) -> None:
    _install_dependencies(binding, caller)
    requirement = f"{binding.package}=={binding.version} --hash=sha256:{sha256_file(wheel)}"
    options = ["--no-index", f"--find-links={wheel.parent}", "--no-deps", "--force-reinstall"]
    _pip([requirement], [*options, f"--only-binary={binding.package}"], caller)


#: What llama-cpp-python 0.3 needs of Python packages.
DEPENDENCIES = ("typing-extensions>=4.5.0", "numpy>=1.20.0", "diskcache>=5.6.1", "jinja2>=2.11.3")


def _install_dependencies(binding: Archive, caller: Caller) -> None:
    """The Python packages that the binding needs and this environment lacks."""
    from importlib import metadata

    from packaging.requirements import Requirement

    lacking = []
    for text in DEPENDENCIES:
        requirement = Requirement(text)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(text)
    if lacking:
        if caller.settings.offline:
            raise OfflineError(f"{binding.package} needs {', '.join(lacking)}, and nothing may be fetched")
        caller.note(f"installing {', '.join(lacking)}")
        _pip(lacking, [], caller)


def _pip(requirements: list[str], options: list[str], caller: Caller) -> None:
    """Run `pip install` for this environment.

    Raises:
        EngineError: It failed; the last thing it said.
    """
    environ = dict(caller.settings.environ or os.environ)
    environ |= {"PIP_NO_INPUT": "1", "NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    pip = pip_command(environ)
    own = pip[0] == sys.executable
    with tempfile.TemporaryDirectory(prefix="tea-pip-") as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        command = [*pip, *([] if own else ["--python", sys.executable]), "install", "--progress-bar=off"]
        try:
            done = subprocess.run(
                [*command, *options, f"--requirement={file}"],
                env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        except OSError as error:
            raise SourceUnavailableError(f"pip can't be started: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        told = (errors or lines or ["no message"])[-1].removeprefix("ERROR: ").removeprefix("error: ")
        raise EngineError(f"pip could not install {requirements[0].partition(' ')[0]}: {told}", hint="pip config list")
