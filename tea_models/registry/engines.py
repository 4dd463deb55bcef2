"""`engines.yaml`: the prebuilt llama.cpp libraries that can be installed, and which of them fit a machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tea_models.errors import NotAvailableError
from tea_models.yamlfile import Document, load_yaml, nearest, read_yaml, validate

_BESIDE_PACKAGE = Path(__file__).resolve().parents[2] / "engines.yaml"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Accelerator = Literal["cpu", "cuda", "vulkan", "metal"]
_MACHINES = {"amd64": "x86_64", "x64": "x86_64"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Model):
    """One file of a package registry.

    Attributes:
        registry: Where it comes from: `npm`, or `pypi` (a wheel, or the binding's source distribution).
        package: Its name there.
        version: Its version.
        filename: Name of the file.
        size: Bytes.
        sha256: Their hash.
        license: What it may be used under, as an SPDX expression.
    """

    registry: Literal["npm", "pypi"] = "pypi"
    package: str
    version: str
    filename: str
    size: int
    sha256: Sha256
    license: str

    @property
    def reference(self) -> str:
        """Registry, package and version in one text."""
        return f"{self.registry}:{self.package}{'@' if self.registry == 'npm' else '=='}{self.version}"


class Target(_Model):
    """The machines that a library is for.

    Attributes:
        system: `linux`, `darwin` or `windows`.
        machine: The processor.
        glibc: The oldest GNU C library that it loads with; nothing where the system has none.
        accelerator: What computes.
    """

    system: Literal["linux", "darwin", "windows"]
    machine: Literal["x86_64", "aarch64", "arm64"]
    glibc: str | None = None
    accelerator: Accelerator = "cpu"


class Speed(_Model):
    """Tokens a second, as a multiple of those of the compiled engine."""

    prompt: float
    tokens: float

    @property
    def is_slow(self) -> bool:
        """Whether it is so much slower that compiling is worth a thought."""
        return min(self.prompt, self.tokens) < 0.9


class Prebuilt(Archive):
    """A library that somebody has built.

    Attributes:
        name: How to call it: `tea-models engine install NAME`.
        target: The machines that it is for.
        llama_cpp: The release or build of llama.cpp.
        files: Patterns of the archive's members that are wanted.
        licenses: Patterns of its licence files.
        libraries: Which file is loaded for each name that the binding asks for.
        plugins: The processor's backends are plug-ins.
        tried: Somebody has run it with this binding.
        speed: Against the compiled engine, where it was measured.
    """

    name: str
    target: Target = Field(alias="for")
    llama_cpp: str
    files: tuple[str, ...]
    licenses: tuple[str, ...]
    libraries: dict[Literal["llama", "ggml", "mtmd"], str]
    plugins: bool = False
    tried: bool = False
    speed: Speed | None = None


class Catalog(_Model):
    """The whole file.

    Attributes:
        binding: llama-cpp-python's source distribution.
        engines: The libraries, the best first.
    """

    schema_: Literal["tea.engines/1"] = Field(alias="schema")
    binding: Archive
    engines: tuple[Prebuilt, ...]

    def find(self, name: str) -> Prebuilt:
        """The library of that name.

        Raises:
            NotAvailableError: There is none.
        """
        found = next((engine for engine in self.engines if engine.name == name), None)
        if found is None:
            raise NotAvailableError(
                f"no prebuilt engine is called {name!r}", hint=nearest(name, [engine.name for engine in self.engines])
            )
        return found


@dataclass(frozen=True, slots=True)
class Host:
    """What decides which library loads here.

    Attributes:
        system: As in `Target`.
        machine: The processor, as in `Target`.
        glibc: Version of the GNU C library; None on musl and on other systems.
    """

    system: str
    machine: str
    glibc: str | None

    @classmethod
    def here(cls) -> Host:
        """This machine."""
        machine = platform.machine().lower()
        return cls(platform.system().lower(), _MACHINES.get(machine, machine), _glibc())

    def objection(self, target: Target) -> str | None:
        """Why a library is not for this machine; None if it is."""
        if (self.system, self.machine) != (target.system, target.machine):
            return f"it is for {target.system} on {target.machine}, this is {self.system} on {self.machine}"
        if target.glibc is None:
            return None
        if self.glibc is None:
            return f"it needs glibc {target.glibc}, and this system has another C library (musl?)"
        if _numbers(self.glibc) < _numbers(target.glibc):
            return f"it needs glibc {target.glibc}, this system has {self.glibc}"
        return None


def load_catalog(path: Path | None = None) -> Catalog:
    """Read the catalogue.

    Args:
        path: Another file than the one that comes with this distribution.

    Raises:
        ConfigError: It is wrong: file, line, key, what was expected.
    """
    return validate(Catalog, read_yaml(path) if path is not None else _builtin())


def _builtin() -> Document:
    packaged = resources.files("tea_models") / "engines.yaml"
    # In an editable install the file lies at the top of the project, where people edit it.
    text = packaged.read_text("utf-8") if packaged.is_file() else _BESIDE_PACKAGE.read_text("utf-8")
    return load_yaml(text, "engines.yaml (built-in)")


def _glibc() -> str | None:
    if sys.platform != "linux":
        return None
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        return None  # musl knows no such name
    return version if name == "glibc" else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
