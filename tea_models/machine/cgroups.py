"""Limits that Linux puts on this process: cgroups of both versions and `ulimit -v`.

Rules: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst` of the kernel. A limit anywhere above a
group holds for the group, so the hierarchy is walked up to where it is mounted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# What v1 writes for "no limit": the largest multiple of the page size in 63 bits.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit that leaves the least: its bytes, the bytes left under it, and which one it is."""

    limit: int
    free: int
    source: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The tightest limits: of memory, and of processor time (in processors)."""

    memory: MemoryLimit | None
    cpu_quota: float | None


def read_limits(root: Path) -> Limits:
    """Read every limit that holds for this process.

    Args:
        root: Where `proc` and `sys` lie.
    """
    memory: list[MemoryLimit] = []
    quotas: list[float] = []
    for version, controllers, mount, group in _groups(root):
        for folder in _upwards(mount, group):
            name = f"/{folder.relative_to(mount)}" if folder != mount else "/"
            if version == 2:
                memory.extend(_memory_v2(folder, name))
                quotas.extend(_quota_v2(folder))
            else:
                if "memory" in controllers:
                    memory.extend(_memory_v1(folder, name))
                if "cpu" in controllers:
                    quotas.extend(_quota_v1(folder))
    memory.extend(_address_space(root))
    return Limits(min(memory, key=lambda limit: limit.free, default=None), min(quotas, default=None))


def _groups(root: Path) -> Iterator[tuple[int, frozenset[str], Path, PurePosixPath]]:
    """Each hierarchy this process is in: version, controllers, where it is mounted, the group's path below that."""
    mounts = list(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        controllers = frozenset(names.split(",")) - {""}
        for version, mounted, top, folder in mounts:
            if version == (1 if controllers else 2) and (version == 2 or controllers & mounted):
                yield version, controllers, folder, _below(path, top)
                break


def _mounts(root: Path) -> Iterator[tuple[int, frozenset[str], str, Path]]:
    """Mounted cgroup hierarchies: version, controllers, the group that lies at the mount point, the mount point."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        folder = root / fields[4].replace("\\040", " ").lstrip("/")
        yield (2 if kind[0] == "cgroup2" else 1), frozenset(kind[2].split(",")), fields[3], folder


def _below(path: str, top: str) -> PurePosixPath:
    """The group's path under the mount point.

    In a container without a cgroup namespace both carry the host's path; with one, the group is `/`. A path that
    leaves the mount (`/../…`) is visible only from its top.
    """
    group = PurePosixPath("/") / path.lstrip("/")
    if ".." in group.parts:
        return PurePosixPath()
    try:
        return group.relative_to(top)
    except ValueError:
        return group.relative_to("/")


def _upwards(mount: Path, group: PurePosixPath) -> Iterator[Path]:
    folder = mount / group
    if not folder.is_dir():
        # The host's path, seen from inside a container that has only its own group mounted.
        folder = mount
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent


def _memory_v2(folder: Path, name: str) -> Iterator[MemoryLimit]:
    for file in ("memory.max", "memory.high"):
        limit = _number(folder / file)
        if limit is not None:
            used = (_number(folder / "memory.current") or 0) - _statistic(folder, "inactive_file")
            yield MemoryLimit(limit, max(0, limit - max(0, used)), f"cgroup v2 {file} of {name}")


def _memory_v1(folder: Path, name: str) -> Iterator[MemoryLimit]:
    limit = _number(folder / "memory.limit_in_bytes")
    above = _statistic(folder, "hierarchical_memory_limit") or _UNLIMITED
    used = (_number(folder / "memory.usage_in_bytes") or 0) - _statistic(folder, "total_inactive_file")
    source = f"cgroup v1 memory.limit_in_bytes of {name}"
    if limit is not None and limit < _UNLIMITED:
        yield MemoryLimit(limit, max(0, limit - max(0, used)), source)
    if above < min(limit or _UNLIMITED, _UNLIMITED):
        # A parent that is not mounted here; what its other children use can't be seen.
        yield MemoryLimit(above, max(0, above - max(0, used)), source.replace(" of ", " above "))


def _quota_v2(folder: Path) -> Iterator[float]:
    fields = _read(folder / "cpu.max").split()
    if len(fields) == 2 and fields[0].isdecimal() and fields[1].isdecimal() and int(fields[1]):
        yield int(fields[0]) / int(fields[1])


def _quota_v1(folder: Path) -> Iterator[float]:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota is not None and period:
        yield quota / period


def _address_space(root: Path) -> Iterator[MemoryLimit]:
    for line in _read(root / "proc/self/limits").splitlines():
        if line.startswith("Max address space"):
            value = line.removeprefix("Max address space").split()
            if value and value[0].isdecimal():
                pages = _read(root / "proc/self/statm").split()
                used = int(pages[0]) * 4096 if pages else 0
                yield MemoryLimit(int(value[0]), max(0, int(value[0]) - used), "ulimit -v")


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None


def _statistic(folder: Path, name: str) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
