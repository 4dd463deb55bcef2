"""How fast a verified download is, on the loopback, side by side with other ways in the same run.

    python benchmarks/pull.py [--size MIB] [--rounds N]

1. A fast server: `tea_models.net.download` with a pinned SHA-256, against `curl` followed by `sha256sum`.
2. A server that gives each connection 50 MB/s: four connections against one.
3. The same file from a Hub (one on the loopback): our `hf:` download against `hf download`, which hashes nothing.

Every round runs every way once; medians and their ratios are printed, and the processor time, which a busy machine
changes less. The servers run in a process of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIMIT = 50e6
WORKER = """
import sys, time
from pathlib import Path
from tea_models.net.client import Client, Request
from tea_models.net.download import download
url, target, size, sha256, connections = sys.argv[1:]
with Client(connections=int(connections)) as client:
    download(Request(client, url, size=int(size), sha256=sha256, connections=int(connections)), Path(target))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the file")
    parser.add_argument("--limited-size", type=int, default=512, help="MiB of the file of the limited server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as folder:
        report = run(Path(folder), arguments.size, arguments.limited_size, arguments.rounds)
    print(json.dumps(report, indent=2) if arguments.json else "\n".join(describe(report)))


def run(folder: Path, size: int, limited_size: int, rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    big = make_file(folder / "big.gguf", size)
    small = make_file(folder / "small.gguf", limited_size)
    with serving(folder) as port:
        base = f"http://127.0.0.1:{port}"
        return {
            f"verified pull of {size} MiB": measure(rounds, fast_ways(folder, base, *big)),
            f"{limited_size} MiB at 50 MB/s a connection": measure(rounds, limited_ways(folder, base, *small)),
            f"from a Hub, {size} MiB": measure(rounds, hub_ways(folder, base, *big)),
        }


def fast_ways(folder: Path, base: str, path: Path, sha256: str) -> dict[str, Callable[[], None]]:
    target = folder / "target"

    def curl() -> None:
        subprocess.run(["curl", "-sf", "-o", target, f"{base}/fast/{path.name}"], check=True)
        done = subprocess.run(["sha256sum", target], check=True, capture_output=True, text=True)
        assert done.stdout.startswith(sha256)

    return {
        "ours, 4 connections": lambda: ours(f"{base}/fast/{path.name}", target, path, sha256, 4),
        "ours, 1 connection": lambda: ours(f"{base}/fast/{path.name}", target, path, sha256, 1),
        "curl, then sha256sum": curl,
    }


def limited_ways(folder: Path, base: str, path: Path, sha256: str) -> dict[str, Callable[[], None]]:
    target = folder / "target"
    url = f"{base}/limited/{path.name}"
    return {
        "ours, 4 connections": lambda: ours(url, target, path, sha256, 4),
        "ours, 1 connection": lambda: ours(url, target, path, sha256, 1),
        "curl": lambda: subprocess.run(["curl", "-sf", "-o", target, url], check=True) and None,
    }


def hub_ways(folder: Path, base: str, path: Path, sha256: str) -> dict[str, Callable[[], None]]:
    """Whole commands, with the start of Python, as a user would type them."""
    environ = dict(os.environ) | {
        "HF_ENDPOINT": base,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "TEA_MODELS_DIR": str(folder / "store"),
        "HOME": str(folder),
    }
    programs = Path(sys.executable).parent

    def hf() -> None:
        shutil.rmtree(folder / "hf", ignore_errors=True)
        command = [programs / "hf", "download", "owner/repo", path.name, "--revision", COMMIT, "--quiet"]
        subprocess.run(command, env=environ, check=True, capture_output=True)

    def pull() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        code = (
            "import os; from pathlib import Path; from tea_models.settings import Settings\n"
            "from tea_models.caller import Caller\n"
            "from tea_models.sources import resolve, fetch\n"
            "settings = Settings.resolve(os.environ, cwd=Path.cwd())\n"
            f"artifact = resolve('hf:owner/repo/{path.name}@{COMMIT}', Caller(settings))\n"
            f"assert artifact.files[0].sha256 == '{sha256}'\n"
            "target = settings.store_dir / 'target'; target.parent.mkdir(parents=True)\n"
            f"assert fetch(artifact.files[0], target, Caller(settings)).sha256 == '{sha256}'\n"
        )
        subprocess.run([sys.executable, "-c", code], env=environ, check=True)

    return {"ours, hashed": pull, "hf download, not hashed": hf}


def ours(url: str, target: Path, path: Path, sha256: str, connections: int) -> None:
    target.unlink(missing_ok=True)
    target.with_name(target.name + ".state").unlink(missing_ok=True)
    size = path.stat().st_size
    subprocess.run([sys.executable, "-c", WORKER, url, target, str(size), sha256, str(connections)], check=True)


def measure(rounds: int, ways: dict[str, Callable[[], None]]) -> dict[str, tuple[float, float]]:
    """Median seconds of each way, by the clock and of the processor.

    The ways take turns, so that a busy moment of the machine hits all of them.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            os.sync()
            began, used = time.perf_counter(), processor_seconds()
            way()
            times[name].append((time.perf_counter() - began, processor_seconds() - used))
    return {
        name: (statistics.median(clock for clock, _ in values), statistics.median(cpu for _, cpu in values))
        for name, values in times.items()
    }


def processor_seconds() -> float:
    """What all processes that have ended used; the server has not ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe(report: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    lines = []
    for title, times in report.items():
        lines.append(title)
        ours_seconds = next(iter(times.values()))[0]
        for name, (clock, cpu) in times.items():
            ratio = f"   {clock / ours_seconds:5.2f} x" if clock != ours_seconds else ""
            lines.append(f"  {name:<26}{clock:7.2f} s   processor {cpu:6.2f} s{ratio}")
    return lines


def make_file(path: Path, mebibytes: int) -> tuple[Path, str]:
    """A file of random bytes that begins as GGUF files do, and its SHA-256."""
    digest = hashlib.sha256()
    generator = random.Random(mebibytes)
    with path.open("wb") as file:
        for number in range(mebibytes):
            block = generator.randbytes(1 << 20)
            block = b"GGUF" + block[4:] if number == 0 else block
            digest.update(block)
            file.write(block)
    path.with_suffix(".sha256").write_text(digest.hexdigest())
    return path, digest.hexdigest()


# -- the servers


@contextlib.contextmanager
def serving(folder: Path):
    """A server of the files in `folder`, in a process of its own; yields its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=converse, args=(connection, folder), daemon=True).start()
        os._exit(0)
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        os.kill(child, 9)
        os.waitpid(child, 0)


def converse(connection: socket.socket, folder: Path) -> None:
    with contextlib.suppress(OSError), connection, connection.makefile("rb") as reader:
        while line := reader.readline():
            method, target, _ = line.decode().split(" ")
            headers = {}
            while (text := reader.readline().decode().strip()) != "":
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            answer(connection, folder, method, urlsplit(target).path, headers)


def answer(connection: socket.socket, folder: Path, method: str, target: str, headers: dict[str, str]) -> None:
    name = target.rsplit("/", 1)[-1]
    path = folder / name
    if target.startswith("/api/models/") or not path.is_file():
        return listing(connection, folder, target)
    total = path.stat().st_size
    start, end, status = 0, total, "200 OK"
    if "range" in headers:
        first, _, last = headers["range"].removeprefix("bytes=").partition("-")
        start, end, status = int(first), int(last) + 1 if last else total, "206 Partial Content"
    sha256 = path.with_suffix(".sha256").read_text()
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {end - start}",
        "Accept-Ranges: bytes",
        f'ETag: "{sha256}"',
        f"X-Repo-Commit: {COMMIT}",
        f'X-Linked-ETag: "{sha256}"',
        f"X-Linked-Size: {total}",
    ]
    if status.startswith("206"):
        lines.append(f"Content-Range: bytes {start}-{end - 1}/{total}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    if method == "HEAD":
        return None
    limited = target.startswith("/limited/")
    began, sent = time.monotonic(), 0
    with path.open("rb") as file:
        while sent < end - start:
            sent += os.sendfile(connection.fileno(), file.fileno(), start + sent, min(1 << 20, end - start - sent))
            if limited:
                time.sleep(max(0.0, sent / LIMIT - (time.monotonic() - began)))
    return None


def listing(connection: socket.socket, folder: Path, target: str) -> None:
    """What the Hub says about a repository."""
    siblings = []
    for path in sorted(folder.glob("*.gguf")):
        lfs = {"sha256": path.with_suffix(".sha256").read_text(), "size": path.stat().st_size, "pointerSize": 134}
        siblings.append({"rfilename": path.name, "size": path.stat().st_size, "lfs": lfs})
    known = target.startswith("/api/models/owner/repo")
    body = json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": siblings} if known else {"error": "no"}).encode()
    status = "200 OK" if known else "404 Not Found"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


if __name__ == "__main__":
    main()
