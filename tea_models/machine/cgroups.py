"""Limits that Linux puts on this process: cgroups of both versions and `ulimit -v`.

Rules: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst` of the kernel. A limit anywhere above a
group holds for the group, so the hierarchy is walked up to where it is mounted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# What v1 writes for "no limit": the largest multiple of the page size in 63 bits.
_UNLIMITED = 1 << 60


class MemoryLimit(NamedTuple):
    """The limit that leaves the least: its bytes, the bytes left under it, and which one it is."""

    limit: int
    free: int
    source: str


def read_limits(root: Path) -> tuple[MemoryLimit | None, float | None]:
    """The tightest limits of memory and of processor time (in processors); `root` is where `proc` and `sys` lie."""
    memory: list[MemoryLimit] = []
    quotas: list[float] = []
    for version, controllers, mount, group in _groups(root):
        for folder in _upwards(mount, group):
            name = f"/{folder.relative_to(mount)}" if folder != mount else "/"
            if version == 2:
                memory.extend(_memory_v2(folder, name))
                quotas.extend(_quota_v2(folder))
            if "memory" in controllers:
                memory.extend(_memory_v1(folder, name))
            if "cpu" in controllers:
                quotas.extend(_quota_v1(folder))
    memory.extend(_address_space(root))
    return min(memory, key=lambda limit: limit.free, default=None), min(quotas, default=None)


def _groups(root: Path) -> Iterator[tuple[int, frozenset[str], Path, PurePosixPath]]:
    """Each hierarchy this process is in: version, controllers, where it is mounted, the group's path below that."""
    mounts = list(_mounts(root))
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, names, path = (line + "::").split(":", 2)
        controllers = frozenset(names.split(",")) - {""}
        for mounted, top, folder in mounts:
            if controllers & mounted or not (controllers or mounted):
                yield (1 if controllers else 2), controllers, folder, _below(path.removesuffix("::"), top)
                break


def _mounts(root: Path) -> Iterator[tuple[frozenset[str], str, Path]]:
    """Mounted cgroup hierarchies: controllers (none: version 2), the group at the mount point, the mount point."""
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            controllers = kind[2].split(",") if kind[0] == "cgroup" else ()
            yield frozenset(controllers), fields[3], root / fields[4].replace("\\040", " ").lstrip("/")


def _below(path: str, top: str) -> PurePosixPath:
    """The group's path under the mount point; without a cgroup namespace a container sees the host's path in both."""
    group = PurePosixPath("/") / path.lstrip("/")
    if ".." in group.parts:  # it leaves the mount, and is visible only from its top
        return PurePosixPath()
    return group.relative_to(top if group.is_relative_to(top) else "/")


def _upwards(mount: Path, group: PurePosixPath) -> Iterator[Path]:
    # Inside a container that has only its own group mounted, the host's path leads nowhere.
    folder = mount / group if (mount / group).is_dir() else mount
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _memory_v2(folder: Path, name: str) -> Iterator[MemoryLimit]:
    used = max(0, (_number(folder / "memory.current") or 0) - _statistic(folder, "inactive_file"))
    for file in ("memory.max", "memory.high"):
        limit = _number(folder / file)
        if limit is not None:
            yield MemoryLimit(limit, max(0, limit - used), f"cgroup v2 {file} of {name}")


def _memory_v1(folder: Path, name: str) -> Iterator[MemoryLimit]:
    used = max(0, (_number(folder / "memory.usage_in_bytes") or 0) - _statistic(folder, "total_inactive_file"))
    limit = _number(folder / "memory.limit_in_bytes") or _UNLIMITED
    # That of a parent which may not be mounted here; what its other children use can't be seen.
    above = _statistic(folder, "hierarchical_memory_limit") or _UNLIMITED
    for size, where in ((limit, "of"), (above, "above")):
        if size < _UNLIMITED and (where == "of" or size < limit):
            yield MemoryLimit(size, max(0, size - used), f"cgroup v1 memory.limit_in_bytes {where} {name}")


def _quota_v2(folder: Path) -> Iterator[float]:
    found = re.fullmatch(r"(\d+) ([1-9]\d*)", read_text(folder / "cpu.max"))
    if found:
        yield int(found[1]) / int(found[2])


def _quota_v1(folder: Path) -> Iterator[float]:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota is not None and period:
        yield quota / period


def _address_space(root: Path) -> Iterator[MemoryLimit]:
    found = re.search(r"^Max address space +(\d+)", read_text(root / "proc/self/limits"), re.MULTILINE)
    if found:
        pages = read_text(root / "proc/self/statm").split()
        limit, used = int(found[1]), int(pages[0]) * 4096 if pages else 0
        yield MemoryLimit(limit, max(0, limit - used), "ulimit -v")


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdecimal() else None


def _statistic(folder: Path, name: str) -> int:
    found = re.search(rf"^{name} (\d+)", read_text(folder / "memory.stat"), re.MULTILINE)
    return int(found[1]) if found else 0


def read_text(path: Path) -> str:
    """The text of a file of `/proc` or `/sys`, stripped; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
