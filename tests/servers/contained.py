"""Becomes a program under what a hardened container allows: another user, no privileges, a read-only file system.

Owns the shim between fork and exec. It needs no engine, no root and nothing installed: the user comes from a user
namespace (where those are forbidden, root becomes that user for good and anybody else stays who they are), and a
seccomp filter answers every attempt to make, change or remove a file with "read-only file system". Sockets and what
was opened before, like the log that output goes to, are left alone. It refuses to know what the program is.

    python -I -S contained.py PARENT_PID UID PROGRAM ARGUMENT…
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
SECCOMP_MODE_FILTER = 2
CLONE_NEWUSER = 0x10000000
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EROFS
LOAD, IF_EQUAL, IF_ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: the word at k; skip jf unless it matches k; give k
AT_NUMBER, AT_ARCHITECTURE, AT_ARGUMENTS = 0, 4, 16
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# audit architecture; calls that open, with the index of the argument that holds the flags; calls that only ever change:
# creat, rename*, mkdir*, rmdir, link*, unlink*, symlink*, mknod*, truncate
KERNEL = {
    "x86_64": (0xC000003E, {2: 1, 257: 2}, (85, 82, 264, 316, 83, 258, 84, 86, 265, 87, 263, 88, 266, 133, 259, 76)),
    "aarch64": (0xC00000B7, {56: 2}, (38, 276, 34, 37, 35, 36, 33, 45)),
}
EXIT_ORPHANED = 125


def command(program: list[str], *, uid: int) -> list[str]:
    """The argument vector that starts ``program`` so; it dies with the caller."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(uid), *program]


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def become(libc: ctypes.CDLL, uid: int) -> None:
    """Be ``uid``, which nobody knows. As root of a namespace or of the machine: lose every capability by it."""
    real_uid, real_gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) == 0:
        # Some kernels let an ordinary user make a namespace, and no map for it: then we are nobody, which is as good.
        with contextlib.suppress(PermissionError):
            # Denying setgroups is what lets an id map be written without privilege in the parent namespace.
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{uid} {real_uid} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{uid} {real_gid} 1", encoding="ascii")
    elif real_uid == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def write_nothing(libc: ctypes.CDLL) -> None:
    """From here on, and in whatever this process becomes, files cannot be made, opened to write, or removed."""
    architecture, opening, changing = KERNEL[platform.machine()]
    lines = [(LOAD, 0, 0, AT_ARCHITECTURE), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, ALLOW)]
    for number, flags in opening.items():
        lines += [
            (LOAD, 0, 0, AT_NUMBER),
            (IF_EQUAL, 0, 3, number),
            (LOAD, 0, 0, AT_ARGUMENTS + 8 * flags),
            (IF_ANY_BIT, 0, 1, WRITING),
            (RETURN, 0, 0, REFUSE),
        ]
    lines.append((LOAD, 0, 0, AT_NUMBER))
    for number in changing:
        lines += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    lines.append((RETURN, 0, 0, ALLOW))
    program = _Program(len(lines), (_Instruction * len(lines))(*(_Instruction(*line) for line in lines)))
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(NO_NEW_PRIVS)")
    _checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "prctl(SECCOMP)")


def main(arguments: list[str]) -> int:
    parent_pid, uid, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    become(libc, int(uid))
    # Only now: the kernel forgets the death signal whenever credentials change.
    _checked(libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl(PDEATHSIG)")
    if os.getppid() != int(parent_pid):  # it died before prctl could take note of it
        return EXIT_ORPHANED
    write_nothing(libc)
    return os.execv(program[0], program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
