"""`engines.yaml`: the prebuilt llama.cpp libraries that can be installed, and which of them fit a machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Annotated, Literal

from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tea_models.errors import NotAvailableError
from tea_models.registry import packaged_text
from tea_models.yamlfile import load_yaml, nearest, validate

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Accelerator = Literal["cpu", "cuda", "vulkan", "metal"]
_MACHINES = {"amd64": "x86_64", "x64": "x86_64"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Model):
    """One file of a package registry: `npm`, or `pypi` (a wheel, or the binding's source distribution)."""

    registry: Literal["npm", "pypi"] = "pypi"
    package: str
    version: str
    filename: str
    size: int
    sha256: Sha256
    license: str

    @property
    def reference(self) -> str:
        return f"{self.registry}:{self.package}{'@' if self.registry == 'npm' else '=='}{self.version}"


class Target(_Model):
    """The machines that a library is for; `glibc` is the oldest that it loads with, if the system has it."""

    system: Literal["linux", "darwin", "windows"]
    machine: Literal["x86_64", "aarch64", "arm64"]
    glibc: str | None = None
    accelerator: Accelerator = "cpu"


class Speed(_Model):
    """Tokens a second, as a multiple of those of the compiled engine."""

    prompt: float
    tokens: float


class Prebuilt(Archive):
    """A library that somebody has built."""

    name: str
    target: Target = Field(alias="for")
    llama_cpp: str
    files: tuple[str, ...]  # patterns of the archive's members
    licenses: tuple[str, ...]
    libraries: dict[Literal["llama", "ggml", "mtmd"], str]  # what is loaded for a name that the binding asks for
    plugins: bool = False  # the processor's backends are plug-ins
    tried: bool = False  # somebody has run it
    speed: Speed | None = None


class Catalog(_Model):
    """The whole file: llama-cpp-python's source distribution, and the libraries, the best first."""

    schema_: Literal["tea.engines/1"] = Field(alias="schema")
    binding: Archive
    engines: tuple[Prebuilt, ...]

    def find(self, name: str) -> Prebuilt:
        engines = {engine.name: engine for engine in self.engines}
        if name not in engines:
            raise NotAvailableError(f"no prebuilt engine is called {name!r}", hint=nearest(name, list(engines)))
        return engines[name]


@dataclass(frozen=True, slots=True)
class Host:
    """What decides which library loads here; `glibc` is None on musl and on other systems."""

    system: str
    machine: str
    glibc: str | None

    @classmethod
    def here(cls) -> Host:
        machine = platform.machine().lower()
        library, version = platform.libc_ver()
        glibc = version if library == "glibc" else None
        return cls(platform.system().lower(), _MACHINES.get(machine, machine), glibc)

    def objection(self, target: Target) -> str | None:
        """Why a library is not for this machine; None if it is."""
        if (self.system, self.machine) != (target.system, target.machine):
            return f"it is for {target.system} on {target.machine}, this is {self.system} on {self.machine}"
        if target.glibc is None:
            return None
        if self.glibc is None:
            return f"it needs glibc {target.glibc}, and this system has another C library (musl?)"
        if Version(self.glibc) < Version(target.glibc):
            return f"it needs glibc {target.glibc}, this system has {self.glibc}"
        return None


def load_catalog() -> Catalog:
    """Read the catalogue that comes with this distribution."""
    return validate(Catalog, load_yaml(packaged_text("engines.yaml"), "engines.yaml (built-in)"))
