"""What Linux tells about other processes and about this machine: /proc and limits.

Owns the reading; refuses to judge.
"""

import contextlib
import os
import platform
import resource
from collections.abc import Collection
from pathlib import Path

import msgspec

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


class NotEnoughFiles(Exception):
    """The hard limit of open files is below what a run needs."""


class Gone(Exception):
    """A process that is measured has ended."""


class Machine(msgspec.Struct, frozen=True):
    """What a figure is worth without: where it was measured."""

    cores: int
    cpu: str
    kernel: str
    python: str
    data_filesystem: str


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now. Raises: Gone."""
    for line in _read(pid, "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise Gone(f"process {pid} has ended: it holds no memory")  # a zombie


def cpu_us(pid: int) -> int:
    """User and system time a process has used, in microseconds, to the kernel's tick (10 ms). Raises: Gone."""
    # The name, second, may hold spaces and brackets: count from behind it.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_US


def family_cpu_us(pid: int) -> int:
    """:func:`cpu_us` of a process and its living children: Postgres is one process for each connection."""
    children = children_of(pid)
    total = cpu_us(pid)
    for child in children:
        with contextlib.suppress(Gone):
            total += cpu_us(child)
    return total


def children_of(pid: int) -> list[int]:
    """Its living children. Raises: Gone."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def others_cpu_us(own: Collection[int]) -> int:
    """What all processes have used, living or waited for, that are neither in ``own`` nor descend from one of them.

    Added up process by process: the machine's own sum, in /proc/stat, is sampled at ticks, and work that a timer paces
    falls beside them or upon them, 0.3 cores too low or too high here. Kernel work outside of processes is not in it.
    """
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(Gone):
                fields = _read(int(entry.name), "stat").rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                used[int(entry.name)] = sum(int(field) for field in fields[11:15])

    def is_own(pid: int) -> bool:
        while pid and pid not in own:
            pid = parents.get(pid, 0)
        return pid != 0

    return sum(ticks for pid, ticks in used.items() if not is_own(pid)) * _TICK_US


def stolen_us() -> int:
    """What the host has taken from this virtual machine's cores while they had work, since it started: steal time."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu "):
            return int(line.split()[8]) * _TICK_US
    return 0


def raise_file_limit(needed: int) -> None:
    """Lifts the soft limit of open files to the hard one. Raises: NotEnoughFiles."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        most = hard if hard != resource.RLIM_INFINITY else max(soft, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise NotEnoughFiles(
            f"this run needs {needed} open files and the hard limit is {soft}; "
            "raise it (ulimit -Hn, LimitNOFILE=, --ulimit nofile=) or ask for fewer sessions"
        )


def machine(data: Path) -> Machine:
    return Machine(os.cpu_count() or 1, _cpu(), platform.release(), platform.python_version(), _filesystem(data))


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise Gone(f"process {pid} has ended") from exc


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(path: Path) -> str:
    """The type of the file system that holds ``path``: on tmpfs, "fsync always" says nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split(" ")
        inside = path.resolve().is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind
