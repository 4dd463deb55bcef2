"""Which engine is installed: found without loading it."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tea_models.disk.hashing import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "llama-cpp-python"
Kind = Literal["prebuilt", "compiled", "foreign"]
_SONAME = re.compile(r"\.so\.(\d+\.\d+\.\d+)\Z|\.(\d+\.\d+\.\d+)\.dylib\Z")


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """What is known of it from its files.

    Attributes:
        version: Version of llama-cpp-python, or None of something else that is called `llama_cpp`.
        kind: `prebuilt` (made by `engine install`), `compiled` (llama-cpp-python built from its source), or `foreign`.
        package: The folder `llama_cpp`.
        library: llama.cpp's library.
        llama_cpp: Its release or build, where it can be told.
        source: Where it comes from.
        about: `prebuilt.json`.
    """

    version: str | None
    kind: Kind
    package: Path
    library: Path | None
    llama_cpp: str | None
    source: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str | None:
        """Hash of the library."""
        return sha256_file(self.library) if self.library is not None else None


def installed_engine(environ: Mapping[str, str] | None = None) -> InstalledEngine | None:
    """The engine that `import llama_cpp` would find; None if there is none.

    Args:
        environ: `LLAMA_CPP_LIB_PATH` is read; by default from that of this process.
    """
    importlib.invalidate_caches()
    specification = PathFinder.find_spec("llama_cpp", sys.path)
    if specification is None or not specification.origin:
        return None
    package = Path(specification.origin).parent
    distribution = _distribution_of(package)
    version = distribution.version if distribution is not None else None
    elsewhere = (os.environ if environ is None else environ).get("LLAMA_CPP_LIB_PATH")
    if elsewhere:
        library = _library(Path(elsewhere), ())
        return InstalledEngine(version, "foreign", package, library, None, f"LLAMA_CPP_LIB_PATH={elsewhere}")
    about = _about(package)
    if about and distribution is not None:
        library = _library(package / "lib", (about["libraries"]["llama"],))
        return InstalledEngine(
            version, "prebuilt", package, library, about.get("llama_cpp"), about.get("source", ""), about
        )
    library = _library(package / "lib", ())
    if distribution is None or library is None or not _is_built_here(distribution):
        what = f"{distribution.name} {version}" if distribution is not None else str(package)
        return InstalledEngine(version, "foreign", package, library, None, what)
    source = f"pypi:{DISTRIBUTION}=={version}, compiled"
    return InstalledEngine(version, "compiled", package, library, _release(library), source)


def _distribution_of(package: Path) -> metadata.Distribution | None:
    """The distribution that `package` belongs to."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    owned = Path(str(distribution.locate_file("llama_cpp")))
    return distribution if owned.is_dir() and owned.samefile(package) else None


def _is_built_here(distribution: metadata.Distribution) -> bool:
    """Whether a wheel was made by the build that llama-cpp-python's source distribution names."""
    return "Generator: scikit-build-core" in (distribution.read_text("WHEEL") or "")


def _about(package: Path) -> dict[str, Any]:
    try:
        document = json.loads((package / "prebuilt.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(document, dict) and document.get("kind") == "prebuilt"
    return document if usable and isinstance(document.get("libraries", {}).get("llama"), str) else {}


def _library(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names or ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll"):
        if (folder / name).is_file():
            return folder / name
    return None


def _release(library: Path) -> str | None:
    """The release of llama.cpp, from the name that its build gives the library beside the plain one."""
    for path in sorted(library.parent.glob("libllama*")):
        match = _SONAME.search(path.name)
        if match:
            return f"v{match[1] or match[2]}"
    return None
