"""Counts how often a program asks the kernel to put a file on the disk: each ``fsync`` and ``fdatasync`` that it makes.

Owns a tracer of one program and all its threads. A seccomp filter stops them at exactly these two calls (nothing else
is slowed), and the tracer counts and lets them go on. The program keeps the process id under which it was started: the
*tracer* is the child, which its parent lets in before it becomes the program. So it works for everybody on their own
processes, root or not, without any tool installed. It refuses to know what the program is.

    python -P -m tests.servers.syscalls COUNTS PROGRAM ARGUMENT…      (what :func:`counting` writes a wrapper for)
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from pathlib import Path
from typing import NamedTuple

# audit architecture, fsync, fdatasync
KERNEL_NUMBERS = {"x86_64": (0xC000003E, 74, 75), "aarch64": (0xC00000B7, 82, 83)}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_SET_PTRACER = 38, 22, 0x59616D61
SECCOMP_MODE_FILTER = 2
ALLOW, TRACE = 0x7FFF0000, 0x7FF00000  # with TRACE the low bits are ours: which call it was
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF: the word at k; skip jf unless it equals k; give k
AT_NUMBER, AT_ARCHITECTURE = 0, 4

PTRACE_CONT, PTRACE_GETEVENTMSG, PTRACE_SEIZE, PTRACE_LISTEN = 7, 0x4201, 0x4206, 0x4208
FOLLOW = 0x2 | 0x4 | 0x8 | 0x10  # fork, vfork, clone, exec
TRACE_SECCOMP, EXIT_KILL = 0x80, 0x100000
EVENT_SECCOMP, EVENT_STOP = 7, 128
WAIT_ALL = 0x40000000  # threads as well
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}

_COUNTS = struct.Struct("=QQ")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class Counts(NamedTuple):
    """Calls so far."""

    fsync: int
    fdatasync: int

    @property
    def total(self) -> int:
        return self.fsync + self.fdatasync


def counting(program: Path, folder: Path) -> tuple[Path, Path]:
    """A program of the same name that is ``program``, counted; and the file of its counts, for :func:`read_counts`."""
    wrapper, counts = folder / program.name, folder / "counts"
    folder.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m {__name__} "{counts}" "{program}" "$@"\n')
    wrapper.chmod(0o755)
    return wrapper, counts


def read_counts(file: Path) -> Counts:
    return Counts(*_COUNTS.unpack(file.read_bytes()))


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _filter() -> None:
    """From here on, and in whatever this process becomes, the two calls stop for the tracer."""
    architecture, fsync, fdatasync = KERNEL_NUMBERS[platform.machine()]
    instructions = (
        (LOAD, 0, 0, AT_ARCHITECTURE),
        (IF_EQUAL, 0, 4, architecture),
        (LOAD, 0, 0, AT_NUMBER),
        (IF_EQUAL, 3, 0, fsync),
        (IF_EQUAL, 0, 1, fdatasync),
        (RETURN, 0, 0, TRACE | 2),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, TRACE | 1),
    )
    lines = (_Instruction * len(instructions))(*(_Instruction(*one) for one in instructions))
    program = _Program(len(instructions), lines)
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)")
    _checked(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "prctl(SECCOMP)")


def _trace(pid: int, counts: int, ready: int) -> None:
    """Count the calls of a process and its threads until all have ended."""
    _checked(_libc.ptrace(PTRACE_SEIZE, pid, None, FOLLOW | TRACE_SECCOMP | EXIT_KILL), "ptrace(SEIZE)")
    os.pwrite(counts, _COUNTS.pack(0, 0), 0)
    os.write(ready, b".")
    os.close(ready)
    seen = [0, 0]
    message = ctypes.c_ulong()
    while True:
        try:
            stopped, status = os.waitpid(-1, WAIT_ALL)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            continue
        event, sig = status >> 16, os.WSTOPSIG(status)
        if event == EVENT_SECCOMP:
            _libc.ptrace(PTRACE_GETEVENTMSG, stopped, None, ctypes.addressof(message))
            seen[message.value - 1] += 1
            os.pwrite(counts, _COUNTS.pack(*seen), 0)
        if event == EVENT_STOP and sig in STOPPING:
            _libc.ptrace(PTRACE_LISTEN, stopped, None, None)
        else:  # what ended in the meantime is told by the next wait
            _libc.ptrace(PTRACE_CONT, stopped, None, 0 if event else sig)


def main(arguments: list[str]) -> None:
    file, *program = arguments
    counts = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    seized, ready = os.pipe()
    go, allowed = os.pipe()
    traced = os.getpid()
    tracer = os.fork()
    if tracer == 0:
        os.close(seized)
        os.close(allowed)
        if os.read(go, 1):
            _trace(traced, counts, ready)
        os._exit(0)
    os.close(ready)
    os.close(go)
    os.close(counts)
    _libc.prctl(PR_SET_PTRACER, tracer, 0, 0, 0)  # fails where the kernel does not ask for it
    os.write(allowed, b".")
    if os.read(seized, 1) != b".":
        sys.exit("the tracer could not attach")
    os.close(seized)
    os.close(allowed)
    _filter()
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
