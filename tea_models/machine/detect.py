"""What this machine can give a model right now: memory under every limit, cores that really compute, GPUs.

Everything is read from `/proc` and `/sys` under a `root` that tests replace by recorded files. Nothing is cached: a
plan is made for the moment in which it is asked for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tea_models.machine.cgroups import read_limits, read_text

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that the installed llama.cpp build can use, as it reports it; sizes in bytes."""

    name: str  # llama.cpp's: `CUDA0`, `Metal`, `Vulkan0`
    description: str
    kind: str  # `gpu`, or `igpu`, which shares the machine's memory
    memory_total: int
    memory_free: int

    @property
    def unified(self) -> bool:
        """Whether its memory is the machine's own memory."""
        return self.kind == "igpu" or self.name.startswith("Metal")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine at one moment; sizes in bytes."""

    system: str
    cpu: str
    memory_total: int
    memory_available: int  # without swapping, before limits
    memory_limit: int | None  # the tightest, of this process and its groups
    memory_limit_free: int | None
    memory_limit_source: str
    cores_logical: int
    cores_physical: int  # of the fast kind, where there are two
    cores_allowed: int  # physical ones that this process may run on
    cpu_quota: float | None  # processors' worth of time that the cgroup grants
    gpus: tuple[Gpu, ...] = ()

    @property
    def memory_usable(self) -> int:
        """Bytes that can be had now, under every limit."""
        return self.memory_limit_free or 0 if self.limited else self.memory_available

    @property
    def limited(self) -> bool:
        """Whether a limit, and not the machine, decides how much memory there is."""
        return self.memory_limit_free is not None and self.memory_limit_free < self.memory_available

    @property
    def threads(self) -> int:
        """Threads that compute at full speed: one a physical core, within affinity and quota."""
        # One above the quota is stopped for a part of every period, and all others wait for it at the next barrier.
        quota = self.cores_allowed if self.cpu_quota is None else int(self.cpu_quota + 1e-6)
        return max(1, min(self.cores_allowed, quota))


def detect_machine(root: Path = _ROOT, *, gpus: Sequence[Gpu] = ()) -> Machine:
    """Look at this machine, now; `gpus` are the devices that the engine reports."""
    system = sys.platform if root == _ROOT else "linux"
    if system == "darwin":
        total, logical = _sysctl_number("hw.memsize"), os.cpu_count() or 1
        available = parse_vm_stat(_command("vm_stat"), total)
        physical = _sysctl_number("hw.perflevel0.physicalcpu") or _sysctl_number("hw.physicalcpu") or logical
        allowed = physical
        cpu = _command("sysctl", "-n", "machdep.cpu.brand_string") or "unknown processor"
    else:
        total, available = _memory(root)
        logical, physical, allowed = _cores(root)
        cpu = _cpu_name(root)
    memory, quota = read_limits(root)
    limit, free, source = memory or (None, None, "")
    return Machine(system, cpu, total, available, limit, free, source, logical, physical, allowed, quota, tuple(gpus))


def _fields(text: str) -> dict[str, str]:
    """Lines of `name: value`; of several the first."""
    pairs = (line.partition(":") for line in reversed(text.splitlines()))
    return {name.strip(): " ".join(value.split()) for name, _, value in pairs}


def _memory(root: Path) -> tuple[int, int]:
    fields = _fields(read_text(root / "proc/meminfo"))
    sizes = {name: int(value[:-3]) * 1024 for name, value in fields.items() if value[:-3].isdecimal()}  # in kB
    total = sizes.get("MemTotal", 0)
    # Linux before 3.14: what the kernel would count, without its reserves.
    rough = sum(sizes.get(name, 0) for name in ("MemFree", "Buffers", "Cached", "SReclaimable"))
    return total, min(total, sizes.get("MemAvailable", rough))


def _cores(root: Path) -> tuple[int, int, int]:
    """Logical processors online, physical cores online, physical cores this process may run on."""
    cpus = root / "sys/devices/system/cpu"
    online = parse_cpu_list(read_text(cpus / "online"))
    if not online:
        online = {int(entry.name[3:]) for entry in cpus.glob("cpu[0-9]*")} or set(range(os.cpu_count() or 1))
    status = _fields(read_text(root / "proc/self/status"))
    allowed = (parse_cpu_list(status.get("Cpus_allowed_list", "")) & online) or online
    # Two kinds of cores: a slow one would hold up all the others, which is why llama.cpp leaves them out too.
    fast = parse_cpu_list(read_text(root / "sys/devices/cpu_core/cpus")) & online
    counted = fast or online
    usable = (allowed & fast) or allowed
    return len(online), _physical(cpus, counted), _physical(cpus, usable)


def _physical(cpus: Path, logical: set[int]) -> int:
    cores: set[str] = set()
    for cpu in logical:
        topology = cpus / f"cpu{cpu}" / "topology"
        # `core_cpus_list` is the newer name of `thread_siblings_list`.
        siblings = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        cores.add(siblings or f"cpu{cpu}")
    return max(1, len(cores))


def _cpu_name(root: Path) -> str:
    names = ("model name", "Model", "cpu model", "Hardware")
    fields = _fields(read_text(root / "proc/cpuinfo"))
    return next((fields[name] for name in names if fields.get(name)), "unknown processor")


def parse_cpu_list(text: str) -> set[int]:
    """Numbers of a list as the kernel writes it (`0-3,8,10-11`); a malformed part is skipped."""
    numbers: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            numbers.update(range(int(first), min(int(last) if dash else int(first), int(first) + 65536) + 1))
    return numbers


def parse_vm_stat(text: str, total: int) -> int:
    """Bytes that macOS can hand out now, from the output of `vm_stat`; half of all where that can't be read."""
    page = re.search(r"page size of (\d+)", text)
    free = re.findall(r"^Pages (?:free|inactive|speculative|purgeable): +(\d+)", text, re.MULTILINE)
    size = int(page[1]) if page else 4096
    return min(total, sum(map(int, free)) * size) if free else total // 2


def _sysctl_number(name: str) -> int:
    text = _command("sysctl", "-n", name)
    return int(text) if text.isdecimal() else 0


def _command(*arguments: str) -> str:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
