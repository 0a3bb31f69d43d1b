"""The exec shim through which every child of ``hublog up`` starts.

Owns what must happen between fork and exec: giving up root where a server refuses it, and dying with the parent. It
runs as a script under ``python -I -S``, so it imports the standard library only; it refuses to know what it starts.

    python -I -S confine.py PARENT_PID DEATH_SIGNAL IDENTITY OWNED PROGRAM ARGUMENT…

IDENTITY is what becomes of root. ``preferred`` and ``required`` enter a user namespace that maps *nobody* to our own
id: the program sees itself as nobody, while the kernel still sees the owner of the files. So no user is made and
nothing is chmodded. Where namespaces are forbidden (a plain container), ``preferred`` stays root, and ``required``
becomes nobody for good: the folders OWNED (joined by colons) are given to it, and it must be able to reach them and the
program.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 125
EXIT_UNABLE = 126


Identity = Literal["same", "preferred", "required"]


def command(
    program: list[str],
    *,
    parent_pid: int,
    death_signal: signal.Signals,
    identity: Identity = "same",
    owned: Sequence[Path] = (),
) -> list[str]:
    """The argument vector that starts ``program`` behind this shim."""
    shim = [sys.executable, "-I", "-S", __file__, str(parent_pid), str(int(death_signal)), identity]
    return [*shim, os.pathsep.join(map(str, owned)), *program]


def enter_namespace(libc: ctypes.CDLL) -> bool:
    """See ourselves as nobody, and stay who we are to the kernel. False where that is forbidden."""
    gid = os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        return False
    # Denying setgroups is what lets an id map be written without privilege in the parent namespace.
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} 0 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1", encoding="ascii")
    return True


def become_nobody(owned: list[str]) -> None:
    for folder in owned:
        for place, folders, files in os.walk(folder):
            for path in (place, *(f"{place}/{name}" for name in (*folders, *files))):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def main(arguments: list[str]) -> int:
    parent_pid, death_signal, identity, owned, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    who = ""
    try:
        if identity != "same" and os.geteuid() == 0 and not enter_namespace(libc) and identity == "required":
            who = " as nobody (it refuses root, and user namespaces are forbidden here)"
            become_nobody(owned.split(os.pathsep) if owned else [])
        # Only now: the kernel forgets the death signal whenever credentials change.
        if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent_pid):  # it died before prctl could take note of it
            return EXIT_ORPHANED
        os.execv(program[0], program)
    except (OSError, AttributeError) as exc:  # AttributeError: a libc that is not Linux's
        sys.stderr.write(f"hublog: cannot start {program[0]}{who}: {exc}\n")
        return EXIT_UNABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
