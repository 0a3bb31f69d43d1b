"""What ``hublog up`` tells a person and, in ``processes.json``, a program.

Owns the words on the terminal and the shape of that file. It refuses to know how processes are started and stopped.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from service.up.data_dir import write_private

Role = Literal["nats", "postgres", "gateway", "projector", "api"]


class Entry(msgspec.Struct, frozen=True):
    """One process as ``processes.json`` has it. ``url`` may hold a password; the file is its owner's only."""

    role: Role
    index: int
    pid: int | None
    url: str | None
    admin_url: str | None


def write_processes(path: Path, entries: Sequence[Entry]) -> None:
    """In one step: a reader finds the old list or the new."""
    write_private(path, msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n")


def read_processes(path: Path) -> list[Entry]:
    """Raises: FileNotFoundError where nothing runs on the data directory."""
    return msgspec.json.decode(path.read_bytes(), type=list[Entry])


class Board:
    """The terminal. Lines go out as things happen; on a terminal they are coloured."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        self._say(text, style="dim")

    def warn(self, text: str) -> None:
        self._say(text, style="bold yellow")

    def _say(self, text: str, *, style: str | None = None) -> None:
        with contextlib.suppress(OSError):  # into a file on a full disk: what runs does not depend on being told
            self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def table(self, entries: Sequence[Entry], *, sync: str | None, logs: Path) -> None:
        table = Table(title="hublog is up", title_justify="left", title_style="bold green")
        for heading in ("process", "pid", "address", "health and metrics"):
            table.add_column(heading, overflow="fold")
        for entry in entries:
            name = f"{entry.role} {entry.index}" if entry.role == "gateway" else entry.role
            table.add_row(name, str(entry.pid or "external"), shown(entry.url), entry.admin_url or "")
        with contextlib.suppress(OSError):
            self._console.print(table)
        if sync is not None:
            self.note(f"NATS writes to disk: {sync} (HUBLOG_NATS_SYNC)")
        self.note(f"Logs: {logs}")
        gateway = next(entry.url for entry in entries if entry.role == "gateway")
        self._say(f"Connect a SignalR client to {gateway}/hubs/<hub>. Ctrl-C stops everything.")


def shown(url: str | None) -> str:
    """An address, or several joined by commas, without the passwords and tokens in them."""
    if url is None:
        return ""
    # In front of a database's host a lone name is a user; in front of a NATS server it is a token.
    secret = r"//[^/]*:[^/]*@" if url.startswith("postgres") else r"//[^/]*@"
    return re.sub(secret, "//", url)
