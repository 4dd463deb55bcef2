"""An ordinary wheel of llama-cpp-python out of its own Python files and a library that somebody else has built.

    llama_cpp/…                    the files of the source distribution; `__init__` gets one line more
    llama_cpp/_prebuilt.py         `prebuilt_loader.py`
    llama_cpp/prebuilt.json        what the library is and where it comes from
    llama_cpp/lib/…                the library
    llama_cpp_python-….dist-info/  METADATA of the source distribution, licences of both

The same archives give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tea_models.caller import Caller
from tea_models.engine.installed import SCHEMA
from tea_models.errors import IntegrityError
from tea_models.registry.engines import Archive, Prebuilt
from tea_models.store import Store

LOADER = Path(__file__).with_name("prebuilt_loader.py")
_FIRST_LINE = b"from . import _prebuilt  # added: loads the prebuilt library (tea-models engine)\n"
_DATE = (1980, 1, 1, 0, 0, 0)


def lay_out(tree: Path, binding: tuple[Archive, Path], engine: tuple[Prebuilt, Path]) -> None:
    """Unpack what the wheel is made of: the source distribution and the library, each with its archive's file."""
    about, prebuilt = binding[0], engine[0]
    package = tree / "llama_cpp"
    licenses = tree / f"{_distribution(about)}.dist-info" / "licenses"
    their_licenses = licenses / prebuilt.package.replace("/", "-")
    root = about.filename.removesuffix(".tar.gz")
    wanted = {
        "PKG-INFO": licenses.parent / "METADATA",
        "LICENSE.md": licenses / about.package / "LICENSE.md",
        "vendor/llama.cpp/LICENSE": licenses / "llama.cpp" / "LICENSE",
        "llama_cpp/__init__.py": package / "__init__.py",
    }

    def place_python(name: str) -> Path | None:
        inside = name.removeprefix(f"{root}/")
        if inside == name or inside.startswith("/") or ".." in inside.split("/"):
            return None
        return tree / inside if fnmatchcase(inside, "llama_cpp/*") else wanted.get(inside)

    def place_library(name: str) -> Path | None:
        base = PurePosixPath(name).name
        for folder, patterns in ((package / "lib", prebuilt.files), (their_licenses, prebuilt.licenses)):
            if any(_matches(name, pattern) for pattern in patterns):
                return folder / base
        return None

    _unpack(binding[1], place_python)
    _unpack(engine[1], place_library)
    needed = [*wanted.values(), *(package / "lib" / name for name in prebuilt.libraries.values())]
    missing = [path.relative_to(tree).as_posix() for path in needed if not path.is_file()]
    if missing:
        raise IntegrityError(f"{about.filename}, {prebuilt.filename}: nothing in them for {', '.join(missing)}")
    first = package / "__init__.py"
    first.write_bytes(_FIRST_LINE + first.read_bytes())
    (package / "_prebuilt.py").write_bytes(LOADER.read_bytes())
    describe(tree, about, prebuilt)


def describe(tree: Path, binding: Archive, engine: Prebuilt, **more: Any) -> None:
    """Write what the library is beside the Python files, where `tea-models engine` and the loader read it."""
    document = {
        "schema": SCHEMA,
        "kind": "prebuilt",
        "name": engine.name,
        "source": engine.reference,
        "sha256": engine.sha256,
        "binding": binding.reference,
        "binding_sha256": binding.sha256,
        "llama_cpp": engine.llama_cpp,
        "libraries": engine.libraries,
        "plugins": engine.plugins,
        **more,
    }
    (tree / "llama_cpp" / "prebuilt.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_wheel(tree: Path, folder: Path, binding: Archive, engine: Prebuilt) -> Path:
    """Pack a tree of `lay_out` into a wheel in a folder."""
    name, glibc = _distribution(binding), engine.target.glibc
    platforms = engine.filename.removesuffix(".whl").rpartition("-")[2]
    if glibc is not None:
        platforms = f"manylinux_{glibc.replace('.', '_')}_{engine.target.machine}"
    about = tree / f"{name}.dist-info"
    lines = ["Wheel-Version: 1.0", "Generator: tea-models", "Root-Is-Purelib: false"]
    lines += [f"Tag: py3-none-{platform}" for platform in platforms.split(".")]
    (about / "WHEEL").write_text("\n".join(lines) + "\n", encoding="utf-8")
    wheel = folder / f"{name}-py3-none-{platforms}.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(item for item in tree.rglob("*") if item.is_file()):
            inside = path.relative_to(tree).as_posix()
            data = path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{inside},sha256={digest},{len(data)}\n")
            archive.writestr(_entry(inside), data)
        inside = f"{about.name}/RECORD"
        archive.writestr(_entry(inside), "".join([*record, f"{inside},,\n"]))
    return wheel


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr = 0o100644 << 16
    return entry


def _distribution(binding: Archive) -> str:
    return f"{binding.package.replace('-', '_')}-{binding.version}"


def _matches(name: str, pattern: str) -> bool:
    """Whether a member has a pattern's folder and name; `*` does not cross folders."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _unpack(archive: Path, place: Callable[[str], Path | None]) -> None:
    """Write the members that have a place; links and devices have none."""
    try:
        for name, opened in _members(archive):
            target = place(name)
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened() as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise IntegrityError(f"{archive.name}: not a whole archive: {error}") from None


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from (
                (entry.filename, partial(wheel.open, entry)) for entry in wheel.infolist() if not entry.is_dir()
            )
        return
    with tarfile.open(archive, "r|gz") as tar:
        yield from ((member.name, partial(tar.extractfile, member)) for member in tar if member.isfile())


class WheelCache:
    """The folder `engines` of the store: a folder a wheel."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.folder = Store(caller.settings.store_dir).hidden / "engines"

    def place(self, engine: Prebuilt, binding: Archive) -> Path:
        """The folder of a wheel; another one where anything that goes into it is another."""
        digest = hashlib.sha256(f"{binding.sha256} {engine.model_dump_json()}".encode() + LOADER.read_bytes())
        return self.folder / f"{engine.name}-{digest.hexdigest()[:16]}"

    def find(self, engine: Prebuilt, binding: Archive) -> Path | None:
        """The wheel of a library; None if it is not here, or damaged."""
        wheel = next(iter(self.place(engine, binding).glob("*.whl")), None)
        try:
            with zipfile.ZipFile(wheel or "") as archive:
                return wheel if archive.testzip() is None else None
        except (OSError, zipfile.BadZipFile, zlib.error):
            return None

    def keep(self, wheel: Path, engine: Prebuilt, binding: Archive) -> Path:
        """Move a wheel here, whole or not at all, and say where it lies now."""
        place = self.place(engine, binding)
        try:
            draft = Path(tempfile.mkdtemp(prefix="making-", dir=self.folder))
            shutil.copyfile(wheel, draft / wheel.name)
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        except OSError as error:
            self._caller.note(f"the engine's wheel is not kept in the store: {error.strerror}")
            return wheel
        return place / wheel.name

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """A folder to work in; outside the store where that can't be written."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        parent = self.folder if self.folder.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="making-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
