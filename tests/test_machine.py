"""What a machine has to give, read from recorded hosts, from this one, and from a real cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tea_models.machine.cgroups import read_limits
from tea_models.machine.detect import Gpu, detect_machine, parse_cpu_list, parse_vm_stat
from tests.gguf_build import build_gguf
from tests.hosts import GIB, HOSTS, write_host

MIB = 1024**2


def host(name: str, tmp_path: Path):
    return detect_machine(write_host(name, tmp_path))


def test_a_desktop_without_limits_offers_what_the_kernel_calls_available(tmp_path: Path) -> None:
    machine = host("desktop", tmp_path)
    assert machine.memory_total == 32 * GIB
    assert machine.memory_usable == machine.memory_available == 24 * GIB
    assert machine.memory_limit is None
    assert not machine.limited
    assert machine.cpu == "AMD Ryzen 7 7700X 8-Core Processor"


def test_threads_are_physical_cores_not_logical_processors(tmp_path: Path) -> None:
    machine = host("desktop", tmp_path)
    assert (machine.cores_logical, machine.cores_physical, machine.threads) == (16, 8, 8)


def test_a_container_has_its_limit_and_not_the_memory_of_its_host(tmp_path: Path) -> None:
    machine = host("container", tmp_path)
    assert machine.memory_limit == 2 * GIB
    # 600 MiB are in use, 400 of them page cache that the kernel drops when asked.
    assert machine.memory_usable == 2 * GIB - 200 * MIB
    assert machine.limited
    assert machine.memory_limit_source == "cgroup v2 memory.max of /"


def test_a_quota_of_one_and_a_half_processors_is_one_thread(tmp_path: Path) -> None:
    machine = host("container", tmp_path)
    assert machine.cpu_quota == 1.5
    assert machine.threads == 1


def test_the_limit_of_a_group_above_holds_for_the_group(tmp_path: Path) -> None:
    machine = host("pod", tmp_path)
    assert machine.memory_limit == 4 * GIB
    assert machine.memory_usable == 3 * GIB
    assert machine.memory_limit_source == "cgroup v2 memory.max of /kubepods/burstable/pod7"
    assert machine.cpu_quota == 4.0
    assert machine.threads == 4


def test_cgroup_v1_in_a_container_without_a_namespace(tmp_path: Path) -> None:
    machine = host("docker-v1", tmp_path)
    assert machine.memory_limit == GIB
    assert machine.memory_usable == GIB - 200 * MIB
    assert machine.cpu_quota is None


def test_affinity_counts_the_physical_cores_behind_the_allowed_processors(tmp_path: Path) -> None:
    machine = host("docker-v1", tmp_path)
    assert (machine.cores_physical, machine.cores_allowed, machine.threads) == (8, 2, 2)


def test_the_huge_number_of_cgroup_v1_is_no_limit(tmp_path: Path) -> None:
    machine = host("unlimited-v1", tmp_path)
    assert machine.memory_limit is None
    assert machine.memory_usable == 12 * GIB
    assert machine.cpu_quota == 2.5
    assert machine.threads == 2


def test_slow_cores_are_left_out(tmp_path: Path) -> None:
    machine = host("hybrid", tmp_path)
    assert (machine.cores_logical, machine.cores_physical, machine.threads) == (20, 6, 6)


def test_a_kernel_that_says_little_is_enough(tmp_path: Path) -> None:
    machine = host("board", tmp_path)
    assert machine.memory_available == GIB + GIB // 4
    assert machine.threads == 4
    assert machine.cpu == "Raspberry Pi 4 Model B Rev 1.4"


def test_ulimit_is_a_limit_too(tmp_path: Path) -> None:
    machine = host("ulimit", tmp_path)
    assert machine.memory_limit_source == "ulimit -v"
    assert machine.memory_usable == GIB - 25600 * 4096


@pytest.mark.parametrize("name", HOSTS)
def test_no_host_has_more_to_give_than_it_has(name: str, tmp_path: Path) -> None:
    machine = host(name, tmp_path)
    assert 0 < machine.memory_usable <= machine.memory_total
    assert 1 <= machine.threads <= machine.cores_logical


def test_nothing_at_all_still_gives_an_answer(tmp_path: Path) -> None:
    machine = detect_machine(tmp_path)
    assert machine.threads >= 1
    assert machine.cpu == "unknown processor"


@pytest.mark.parametrize("text", ["", "-\n", "garbage 12 x", "\x00\xff", "18446744073709551616\n", "1 2 3"])
def test_nonsense_in_a_limit_is_no_limit(text: str, tmp_path: Path) -> None:
    write_host("container", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(text, errors="surrogateescape")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(text, errors="surrogateescape")
    memory, cpu_quota = read_limits(tmp_path)
    assert memory is None or memory.limit > GIB
    assert cpu_quota is None


def test_this_machine_is_read_without_tricks() -> None:
    machine = detect_machine()
    assert machine.memory_total > 128 * MIB
    assert 1 <= machine.threads <= (os.cpu_count() or 1)


def test_gpus_are_what_the_engine_reports() -> None:
    gpu = Gpu("CUDA0", "NVIDIA H100", "gpu", 80 * GIB, 70 * GIB)
    machine = detect_machine(gpus=[gpu])
    assert machine.gpus == (gpu,)
    assert not gpu.unified
    assert Gpu("Metal", "Apple M3", "gpu", GIB, GIB).unified


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("5\n", {5}), ("", set()), ("x,3-,7", {7}), ("0-99999999", set(range(65537)))],
)
def test_lists_of_processors(text: str, numbers: set[int]) -> None:
    assert parse_cpu_list(text) == numbers


def test_macos_says_what_is_free_in_pages() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:    1000.\nPages active:  9000.\n"
        "Pages inactive:  2000.\nPages speculative:  10.\nPages purgeable:  5.\n"
    )
    assert parse_vm_stat(text, 8 * GIB) == 3015 * 16384
    assert parse_vm_stat("", 8 * GIB) == 4 * GIB


def _remove(group: Path) -> None:
    """The kernel lets go of a group some time after the last process in it has ended."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    group.rmdir()


@pytest.fixture
def cgroup() -> Path:
    """A real memory cgroup of this machine, of version 1 or 2, removed afterwards."""
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = parent / f"tea-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "memory.limit_in_bytes").exists() or (group / "memory.max").exists():
            yield group
            _remove(group)
            return
        group.rmdir()
    pytest.skip("no memory cgroup can be made here (not root, or no controller)")


def test_a_process_in_a_real_cgroup_of_512_mib_sees_and_plans_for_512_mib(cgroup: Path, tmp_path: Path) -> None:
    limit = cgroup / ("memory.limit_in_bytes" if (cgroup / "memory.limit_in_bytes").exists() else "memory.max")
    limit.write_text(str(512 * MIB))
    model = tmp_path / "tiny.gguf"
    model.write_bytes(build_gguf())
    program = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from tea_models.machine.detect import detect_machine; m = detect_machine()\n"
        "print(m.memory_limit, m.memory_usable, m.limited, m.memory_limit_source)\n"
        "from tea_models import resolve_plan; p = resolve_plan(sys.argv[2], measure=False)\n"
        "print(p.memory.budget, p.memory.budget_reason)"
    )
    arguments = [sys.executable, "-c", program, str(cgroup / "cgroup.procs"), str(model)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    limits, plan = done.stdout.splitlines()
    found, usable, limited, source = limits.split(maxsplit=3)
    assert int(found) == 512 * MIB
    assert 400 * MIB < int(usable) <= 512 * MIB
    assert limited == "True"
    assert cgroup.name in source
    budget, reason = plan.split(maxsplit=1)
    assert 340 * MIB < int(budget) < 512 * MIB
    assert cgroup.name in reason
