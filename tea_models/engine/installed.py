"""Which engine is installed: found without loading it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from tea_models.disk.hashing import sha256_file
from tea_models.disk.kept_json import read_kept

DISTRIBUTION = "llama-cpp-python"
#: What `prebuilt.json` beside the binding says that it is, where `engine install` has put the library under it.
SCHEMA = "tea.prebuilt-engine/1"
Kind = Literal["prebuilt", "compiled", "foreign"]
_SONAME = re.compile(r"\.so\.(\d+\.\d+\.\d+)\Z|\.(\d+\.\d+\.\d+)\.dylib\Z")


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """What is known of it from its files."""

    version: str | None  # of llama-cpp-python; None of something else that is called `llama_cpp`
    kind: Kind
    package: Path  # the folder `llama_cpp`
    library: Path | None
    llama_cpp: str | None  # its release or build, where it can be told
    source: str
    about: Mapping[str, Any] = field(default_factory=dict)  # `prebuilt.json`

    @property
    def sha256(self) -> str | None:
        return sha256_file(self.library) if self.library is not None else None


def installed_engine(environ: Mapping[str, str] | None = None) -> InstalledEngine | None:
    """The engine that `import llama_cpp` would find; the environment may name its library. None if there is none."""
    importlib.invalidate_caches()
    specification = PathFinder.find_spec("llama_cpp", sys.path)
    if specification is None or not specification.origin:
        return None
    package = Path(specification.origin).parent
    distribution = _distribution_of(package)
    version = distribution.version if distribution is not None else None
    elsewhere = (os.environ if environ is None else environ).get("LLAMA_CPP_LIB_PATH")
    if elsewhere:
        source = f"LLAMA_CPP_LIB_PATH={elsewhere}"
        return InstalledEngine(version, "foreign", package, _library(Path(elsewhere)), None, source)
    about = read_kept(package / "prebuilt.json")
    if distribution is not None and isinstance(about, dict) and about.get("schema") == SCHEMA:
        library = _library(package / "lib", about["libraries"]["llama"])
        return InstalledEngine(version, "prebuilt", package, library, about["llama_cpp"], about["source"], about)
    library = _library(package / "lib")
    # A wheel that was made by the build that llama-cpp-python's source distribution names.
    generator = "Generator: scikit-build-core"
    if distribution is None or library is None or generator not in (distribution.read_text("WHEEL") or ""):
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


def _library(folder: Path, *names: str) -> Path | None:
    names = names or ("libllama.so", "libllama.dylib")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _release(library: Path) -> str | None:
    """The release of llama.cpp, from the name that its build gives the library beside the plain one."""
    matches = (_SONAME.search(path.name) for path in sorted(library.parent.glob("libllama*")))
    return next((f"v{match[1] or match[2]}" for match in matches if match), None)
