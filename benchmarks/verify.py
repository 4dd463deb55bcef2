"""How fast `verify` hashes, against `sha256sum` on the same files in the same run.

    python benchmarks/verify.py [--size MIB] [--files N] [--rounds N]

Hashing is measured inside one process and `sha256sum` without its start (which is nothing); the files are in the page
cache. With several files, `sha256sum` takes them one after the other and `verify` one on each core.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tea_models.disk.hashing import sha256_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB of each file")
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        paths = [make_file(Path(folder) / f"{number}.gguf", arguments.size) for number in range(arguments.files)]
        for some in (paths[:1], paths):
            compare(some, arguments.size, arguments.rounds)


def compare(paths: list[Path], size: int, rounds: int) -> None:
    clocks: dict[str, list[float]] = {"verify": [], "sha256sum": []}
    cpus: dict[str, list[float]] = {"verify": [], "sha256sum": []}
    for _ in range(rounds):
        began, used = time.perf_counter(), processor_seconds(resource.RUSAGE_SELF)
        ours = sha256_files(paths)
        clocks["verify"].append(time.perf_counter() - began)
        cpus["verify"].append(processor_seconds(resource.RUSAGE_SELF) - used)
        began, used = time.perf_counter(), processor_seconds(resource.RUSAGE_CHILDREN)
        done = subprocess.run(["sha256sum", *paths], check=True, capture_output=True, text=True)
        clocks["sha256sum"].append(time.perf_counter() - began)
        cpus["sha256sum"].append(processor_seconds(resource.RUSAGE_CHILDREN) - used)
        assert ours == [line.split()[0] for line in done.stdout.splitlines()]
    print(f"{len(paths)} x {size} MiB")
    for name, times in clocks.items():
        clock, cpu = statistics.median(times), statistics.median(cpus[name])
        speed = len(paths) * size * (1 << 20) / clock / 1e9
        print(f"  {name:<12}{clock:7.2f} s  {speed:5.2f} GB/s   processor {cpu:6.2f} s")
    ratio = statistics.median(clocks["sha256sum"]) / statistics.median(clocks["verify"])
    work = statistics.median(cpus["sha256sum"]) / statistics.median(cpus["verify"])
    print(f"  speed of verify: {ratio:.2f} of sha256sum by the clock, {work:.2f} by processor time")


def processor_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def make_file(path: Path, mebibytes: int) -> Path:
    generator = random.Random(mebibytes)
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(generator.randbytes(1 << 20))
    return path


if __name__ == "__main__":
    main()
