"""The exec shim through which every child of ``hublog up`` starts.

Owns what must happen between fork and exec: giving up root where a server refuses it, and dying with the parent. It
runs as a script under ``python -I -S``, so it imports the standard library only; it refuses to know what it starts.

    python -I -S confine.py PARENT_PID DEATH_SIGNAL same|unprivileged PROGRAM ARGUMENT…

As root, ``unprivileged`` enters a user namespace that maps *nobody* to our own id: the program sees itself as nobody,
while the kernel still sees the owner of the files. So no user is made and nothing is chmodded. Where namespaces are
forbidden the shim becomes *nobody* for good, which works if nobody can reach the program and its files.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 125
EXIT_UNABLE = 126


def command(
    program: list[str],
    *,
    parent_pid: int,
    death_signal: signal.Signals,
    unprivileged: bool,
    python: str = sys.executable,
) -> list[str]:
    """The argument vector that starts ``program`` behind this shim."""
    identity = "unprivileged" if unprivileged else "same"
    return [python, "-I", "-S", __file__, str(parent_pid), str(int(death_signal)), identity, *program]


def become_unprivileged(libc: ctypes.CDLL) -> None:
    """As root: see ourselves as nobody. As anybody else: nothing to do."""
    if os.geteuid() != 0:
        return
    gid = os.getegid()
    if libc.unshare(CLONE_NEWUSER) == 0:
        # Denying setgroups is what lets an id map be written without privilege in the parent namespace.
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} 0 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1", encoding="ascii")
        return
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def main(arguments: list[str]) -> int:
    parent_pid, death_signal, identity, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if identity == "unprivileged":
            become_unprivileged(libc)
        # Only now: the kernel forgets the death signal whenever credentials change.
        if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent_pid):  # it died before prctl could take note of it
            return EXIT_ORPHANED
        os.execv(program[0], program)
    except (OSError, AttributeError) as exc:  # AttributeError: a libc that is not Linux's
        sys.stderr.write(f"hublog: cannot start {program[0]} confined: {exc}\n")
        return EXIT_UNABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
