"""Hosts as their `/proc` and `/sys` describe them: recorded files, written out below a folder by `write_host`.

Each is what a machine of its kind shows, cut down to what is read. `HOSTS` maps a name to paths and texts.
"""

from __future__ import annotations

from pathlib import Path

GIB = 1024**3


def meminfo(total: int, available: int | None, *, free: int = 0, cached: int = 0) -> str:
    """`/proc/meminfo` of a machine, sizes in bytes."""
    lines = [("MemTotal", total), ("MemFree", free), ("Buffers", 0), ("Cached", cached), ("SReclaimable", 0)]
    if available is not None:
        lines.insert(2, ("MemAvailable", available))
    return "".join(f"{name}:{size // 1024:>15} kB\n" for name, size in lines) + "HugePages_Total:       0\n"


def topology(groups: list[list[int]], *, name: str = "core_cpus_list") -> dict[str, str]:
    """`/sys/devices/system/cpu`: each group of logical processors is one physical core."""
    cpus = [cpu for group in groups for cpu in group]
    files = {"sys/devices/system/cpu/online": f"0-{max(cpus)}\n"}
    for group in groups:
        for cpu in group:
            files[f"sys/devices/system/cpu/cpu{cpu}/topology/{name}"] = ",".join(map(str, group)) + "\n"
    return files


CGROUP2 = "0::{group}\n"
MOUNT2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTS1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
PAIRS8 = [[core, core + 8] for core in range(8)]

HOSTS: dict[str, dict[str, str]] = {
    # A desktop: 8 cores with two threads each, no limit anywhere.
    "desktop": {
        "proc/meminfo": meminfo(32 * GIB, 24 * GIB),
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 7 7700X 8-Core Processor\n",
        "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-15\n",
        "proc/self/cgroup": CGROUP2.format(group="/user.slice/user-1000.slice/session-2.scope"),
        "proc/self/mountinfo": MOUNT2.format(root="/"),
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope/cpu.max": "max 100000\n",
        **topology(PAIRS8),
    },
    # A container with 2 GiB and one and a half processors on a host with 256 GiB, with a cgroup namespace.
    "container": {
        "proc/meminfo": meminfo(256 * GIB, 200 * GIB),
        "proc/cpuinfo": "model name\t: Intel(R) Xeon(R) Platinum 8488C\n",
        "proc/self/status": "Cpus_allowed_list:\t0-63\n",
        "proc/self/cgroup": CGROUP2.format(group="/"),
        "proc/self/mountinfo": MOUNT2.format(root="/"),
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.high": "max\n",
        "sys/fs/cgroup/memory.current": f"{600 * 1024**2}\n",
        "sys/fs/cgroup/memory.stat": f"anon 1000\nfile 400000000\ninactive_file {400 * 1024**2}\nactive_file 0\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        **topology([[core, core + 32] for core in range(32)]),
    },
    # A pod of Kubernetes, seen from the host's namespace: the limit is on the pod, above the container.
    "pod": {
        "proc/meminfo": meminfo(64 * GIB, 50 * GIB),
        "proc/self/status": "Cpus_allowed_list:\t0-15\n",
        "proc/self/cgroup": CGROUP2.format(group="/kubepods/burstable/pod7/c1"),
        "proc/self/mountinfo": MOUNT2.format(root="/"),
        "sys/fs/cgroup/kubepods/memory.max": f"{60 * GIB}\n",
        "sys/fs/cgroup/kubepods/memory.current": f"{20 * GIB}\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/memory.current": f"{1 * GIB}\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/c1/memory.max": "max\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/c1/memory.current": f"{GIB // 2}\n",
        "sys/fs/cgroup/kubepods/burstable/pod7/c1/cpu.max": "max 100000\n",
        **topology(PAIRS8),
    },
    # Docker on cgroup v1: both files carry the host's path, and only this container's group is mounted.
    "docker-v1": {
        "proc/meminfo": meminfo(16 * GIB, 12 * GIB),
        "proc/self/status": "Cpus_allowed_list:\t2-3\n",
        "proc/self/cgroup": "9:memory:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n0::/docker/ab12\n",
        "proc/self/mountinfo": MOUNTS1.format(root="/docker/ab12"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{300 * 1024**2}\n",
        "sys/fs/cgroup/memory/memory.stat": (
            f"cache 0\ninactive_file 7\nhierarchical_memory_limit {GIB}\ntotal_inactive_file {100 * 1024**2}\n"
        ),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        **topology(PAIRS8, name="thread_siblings_list"),
    },
    # The same without any limit: what v1 writes for that is a huge number.
    "unlimited-v1": {
        "proc/meminfo": meminfo(16 * GIB, 12 * GIB),
        "proc/self/status": "Cpus_allowed_list:\t0-15\n",
        "proc/self/cgroup": "9:memory:/\n4:cpu,cpuacct:/\n",
        "proc/self/mountinfo": MOUNTS1.format(root="/"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": "hierarchical_memory_limit 9223372036854771712\ntotal_inactive_file 0\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        **topology(PAIRS8),
    },
    # A laptop with six fast cores (two threads each) and eight slow ones.
    "hybrid": {
        "proc/meminfo": meminfo(16 * GIB, 9 * GIB),
        "proc/self/status": "Cpus_allowed_list:\t0-19\n",
        "sys/devices/cpu_core/cpus": "0-11\n",
        "sys/devices/cpu_atom/cpus": "12-19\n",
        **topology([[2 * core, 2 * core + 1] for core in range(6)] + [[cpu] for cpu in range(12, 20)]),
    },
    # A board whose kernel says little: no topology, no cgroups, an old meminfo.
    "board": {
        "proc/meminfo": meminfo(2 * GIB, None, free=GIB, cached=GIB // 4),
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
        "sys/devices/system/cpu/online": "0-3\n",
    },
    # `ulimit -v` of 1 GiB in a shell.
    "ulimit": {
        "proc/meminfo": meminfo(8 * GIB, 6 * GIB),
        "proc/self/limits": f"Limit                     Soft Limit\nMax address space         {GIB}   {GIB}   bytes\n",
        "proc/self/statm": "25600 10000 3000 1 0 9000 0\n",
        "sys/devices/system/cpu/online": "0-1\n",
    },
}


def write_host(name: str, folder: Path) -> Path:
    """Write a recorded host's files below a folder, and return the folder."""
    for path, text in HOSTS[name].items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder
