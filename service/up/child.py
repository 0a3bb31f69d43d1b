"""One child process: started through the shim, waited for without a thread, stopped by a ladder of signals.

Owns the process handle. It refuses to know what the process is for, and when it should be started again.
Start children from the main thread only: the kernel ties a child's death signal to the *thread* that made it.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from events.errors import Misconfigured
from service.up import confine

POLL_S = 0.01
TAIL_BYTES = 4096

Ladder = Sequence[tuple[signal.Signals, float]]
"""Signals to send in turn, each with the seconds to wait for the end before the next; SIGKILL follows by itself."""


class Child:
    """A running (or ended) process. ``returncode`` is negative for a signal, None while it runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_file: Path, *, log_start: int = 0) -> None:
        """``log_start``: what stands before that in the file was written by earlier ones."""
        self.name = name
        self._log_start = log_start
        self.log_file = log_file
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        """The exit status, once there is one. Several may wait at once; a cancelled wait leaves the process alone."""
        if (status := self._process.poll()) is not None:
            return status
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self._process.pid)
        try:
            loop.add_reader(pidfd, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._process.wait()

    def send(self, sig: signal.Signals) -> None:
        """Send a signal; a process that has ended is left in peace."""
        if self._process.poll() is None:
            self._process.send_signal(sig)

    async def stop(self, ladder: Ladder) -> int:
        """End the process as gently as the ladder allows, and for certain."""
        for sig, patience_s in ladder:
            self.send(sig)
            try:
                return await asyncio.wait_for(self.wait(), patience_s)
            except TimeoutError:
                continue
        return await self.kill()

    async def kill(self) -> int:
        self.send(signal.SIGKILL)
        return await self.wait()

    def describe_end(self) -> str:
        """How it ended, for people."""
        status = self.returncode
        if status is None:
            return "still running"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def last_output(self, lines: int = 5) -> str:
        """The end of what it wrote, for the error that reports its end."""
        with self.log_file.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def cannot_start(self, what: str, *, otherwise: str) -> Misconfigured:
        """The error of a start that failed: what happened, what the process said of it, what else can be done."""
        return Misconfigured(f"{what}; it wrote to {self.log_file}:\n{self.last_output()}\n{otherwise}")


def spawn(
    name: str,
    program: list[str],
    *,
    log_file: Path,
    death_signal: signal.Signals,
    identity: confine.Identity = "same",
    owned: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    inherit: Sequence[int] = (),
) -> Child:
    """Start ``program`` in a session of its own, output appended to ``log_file``, dying with this process.

    ``identity`` and ``owned`` say who it is where we are root (see ``service.up.confine``). ``inherit`` names
    descriptors that the child keeps open: a lock on the data directory lives as long as it does.

    Raises: Misconfigured where the machine does not let it: no room, no processes, no folder for the log.
    """
    shim = confine.command(program, parent_pid=os.getpid(), death_signal=death_signal, identity=identity, owned=owned)
    try:
        with log_file.open("ab") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                shim,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                pass_fds=tuple(inherit),
                start_new_session=True,
            )
    except OSError as exc:
        raise Misconfigured(f"{name} cannot be started: {exc}") from exc
    return Child(name, process, log_file, log_start=log_start)
