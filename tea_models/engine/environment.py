"""The Python environment that an engine is installed into: whether pip may write there, and pip itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from tea_models.errors import EngineError, OfflineError, SourceUnavailableError
from tea_models.sources.pypi import pip_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tea_models.caller import Caller

#: The Python packages that llama-cpp-python 0.3 needs.
DEPENDENCIES = ("typing-extensions>=4.5.0", "numpy>=1.20.0", "diskcache>=5.6.1", "jinja2>=2.11.3")
_COMPILERS = ("c++", "g++", "clang++")
_HINT = "make an environment: python3 -m venv .venv && .venv/bin/pip install tea-models"


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
    """The C++ compiler that a build would find."""
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
