"""``hublog up`` as a child process, on ports of its own."""

import os
import random
import signal
import socket
import sys
from pathlib import Path

from service.up.board import Entry, read_processes
from service.up.child import Child, spawn
from tests.servers.processes import until

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
BLOCK = 400
"""Gateways from + 0, api + 100, admin ports from + 200 on."""
FIRST, LAST = 12_000, 32_000
"""Below what the system gives to outgoing connections."""


class Up:
    """One ``hublog up``; ``start`` returns when ``processes.json`` is there, that is when everything is ready."""

    def __init__(
        self,
        data_dir: Path,
        *,
        gateways: int = 2,
        options: tuple[str, ...] = (),
        unprivileged: bool = False,
        **settings: str,
    ) -> None:
        """``unprivileged``: it sees itself as an ordinary user, also where the tests run as root."""
        self.data_dir = data_dir
        self._unprivileged = unprivileged
        self.base = free_block()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")},
            "HUBLOG_GATEWAY_PORT": str(self.base),
            "HUBLOG_API_PORT": str(self.base + 100),
            "HUBLOG_ADMIN_PORT": str(self.base + 200),
            "HUBLOG_NATS_SYNC": "relaxed",
            **settings,
        }
        self._options = ("--gateways", str(gateways), "--data-dir", str(data_dir), *options)
        self.log_file = data_dir.with_name(f"{data_dir.name}.up.log")
        self.child: Child | None = None

    @property
    def entries(self) -> list[Entry]:
        return read_processes(self.data_dir / "processes.json")

    def entry(self, role: str, index: int = 0) -> Entry:
        return next(entry for entry in self.entries if (entry.role, entry.index) == (role, index))

    @property
    def output(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def _board(self) -> tuple[int, int] | None:
        try:
            found = (self.data_dir / "processes.json").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def launch(self) -> Child:
        """Without waiting for anything."""
        self.child = spawn(
            "up",
            [sys.executable, "-P", "-m", "service", "up", *self._options],
            log_file=self.log_file,
            death_signal=signal.SIGTERM,
            identity="required" if self._unprivileged else "same",
            env=self.environment,
        )
        return self.child

    async def start(self) -> None:
        before = self._board()
        child = self.launch()
        # What a killed predecessor left is not ours: it goes before ours comes.
        await until(
            lambda: self._board() not in {None, before} or child.returncode is not None,
            what="hublog up",
            timeout_s=START_TIMEOUT_S,
        )
        assert child.returncode is None, f"hublog up {child.describe_end()}:\n{self.output}"

    async def refused(self) -> str:
        """Start it where it must refuse; gives what it said."""
        child = self.launch()
        await until(lambda: child.returncode is not None, what="hublog up to refuse", timeout_s=START_TIMEOUT_S)
        assert child.returncode == 2, self.output
        return self.output

    async def stop(self, sig: signal.Signals = signal.SIGINT) -> int | None:
        """Gives its exit status."""
        if self.child is None:
            return None
        return await self.child.stop(((sig, STOP_TIMEOUT_S),))


def free_block() -> int:
    """The first of ``BLOCK`` ports of which the ones we use are free. Random: several test runs share a machine."""
    while True:
        base = random.randrange(FIRST, LAST, BLOCK)
        if all(_is_free(base + offset) for offset in (0, 1, 2, 100, 200, 201, 202, 300, 301)):
            return base


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def processes_of(data_dir: Path) -> dict[int, str]:
    """Everything alive that was started for a data directory: pid → command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            told = (folder / "environ").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if str(data_dir).encode() in command + told:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode("utf-8", "replace")
    return found
