"""An installation to measure: one that the bench starts with ``hublog up`` and ends, or one that runs already.

Owns the child process, its free ports and its temporary data. It knows the installation by ``processes.json`` alone.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlencode

import msgspec

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0
PORT_FIRST, PORT_LAST, PORT_STEP = 12_000, 32_000, 310
"""Below the ephemeral range, where the clients' own ends of connections live."""
_PR_SET_PDEATHSIG = 1


class NotStarted(Exception):
    """The installation did not come up; the text says why, or holds the end of its output."""


class Gateway(msgspec.Struct, frozen=True):
    """One gateway to put load on. ``pid`` is None where its process cannot be seen from here.

    ``token``: the access token to show it, None where it asks for none.
    """

    url: str
    pid: int | None = None
    token: str | None = None

    @property
    def query(self) -> Callable[[int], str] | None:
        """What connections of any index have in their query: the token, and so the user, of all of them."""
        token = self.token
        return None if token is None else lambda _index: urlencode({"access_token": token})


class Install(msgspec.Struct, frozen=True):
    """What is measured. ``sync`` is how the embedded NATS was told to sync, or "as found".

    ``pids``: every process that can be seen from here, by a name for people, e.g. ``gateway 0``. ``urls``: the
    addresses of the others, by the same names.
    """

    gateways: list[Gateway]
    sync: str
    data: str
    pids: dict[str, int] = {}
    urls: dict[str, str] = {}


class _Row(msgspec.Struct):
    role: str
    index: int = 0
    pid: int | None = None
    url: str | None = None


def read_processes(path: Path, sync: str) -> Install:
    """The installation that a ``processes.json`` describes."""
    rows = msgspec.json.decode(path.read_bytes(), type=list[_Row])
    gateways = sorted((row for row in rows if row.role == "gateway" and row.url), key=lambda row: row.index)
    names = {(f"{row.role} {row.index}" if row.role == "gateway" else row.role): row.pid for row in rows}
    pids = {name: pid for name, pid in names.items() if pid is not None}
    urls = {row.role: row.url for row in rows if row.role != "gateway" and row.url}
    return Install([Gateway(row.url or "", row.pid) for row in gateways], sync, str(path.parent), pids, urls)


def running(urls: list[str]) -> Install:
    """Gateways that run already; their processes are out of sight."""
    return Install([Gateway(url) for url in urls], "as found", "/")


def admitted(install: Install, token: str | None) -> Install:
    """The installation, and the token that its gateways ask for."""
    gateways = [msgspec.structs.replace(gateway, token=token) for gateway in install.gateways]
    return msgspec.structs.replace(install, gateways=gateways)


def epitaph(install: Install) -> str:
    """The last words of every process of an embedded installation that has ended; empty if all live."""
    words: list[str] = []
    for name, pid in install.pids.items():
        log = Path(install.data) / "logs" / f"{name.replace(' ', '-')}.log"
        if not Path(f"/proc/{pid}").exists() and log.exists():
            words.append(f"{name} has ended; its log says last:\n{log.read_text(errors='replace')[-2000:]}")
    return "\n".join(words)


def made_folder(prefix: str, parent: Path | None) -> Path:
    """A new folder for what is gone after the run; ``parent`` is made where it is missing. Raises: NotStarted."""
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as exc:
        where = parent if parent is not None else tempfile.gettempdir()
        raise NotStarted(f"no data can be put in {where} ({exc.strerror}); name another --data-dir") from exc


@contextlib.asynccontextmanager
async def embedded(
    gateways: int,
    sync: str,
    parent: Path | None = None,
    *,
    restart: bool = False,
    settings: dict[str, str] | None = None,
) -> AsyncIterator[Install]:
    """A fresh installation, gone with all its data when the block ends; ``restart``: what dies there comes back.

    ``settings``: more ``HUBLOG_*`` variables. Raises: NotStarted.
    """
    home = made_folder("hublog-bench-", parent)
    child: asyncio.subprocess.Process | None = None
    try:
        child = await _start(home, gateways, sync, restart, settings or {})
        yield await _ready(child, home, sync)
    finally:
        if child is not None:
            await _stop(child)
        shutil.rmtree(home, ignore_errors=True)


async def _start(
    home: Path, gateways: int, sync: str, restart: bool, settings: dict[str, str]
) -> asyncio.subprocess.Process:
    gateway_port, api_port, admin_port = _free_ports(gateways)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")} | {
        "HUBLOG_AUTH": "none",
        "HUBLOG_NATS_SYNC": sync,
        "HUBLOG_GATEWAY_PORT": str(gateway_port),
        "HUBLOG_API_PORT": str(api_port),
        "HUBLOG_ADMIN_PORT": str(admin_port),
        **settings,
    }
    command = ["-P", "-m", "service", "up", "--data-dir", str(home / "data"), "--gateways", str(gateways)]
    libc = ctypes.CDLL(None, use_errno=True)
    with (home / "up.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            *(() if restart else ("--no-restart",)),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the bench, which then stops it in good order
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )


async def _ready(child: asyncio.subprocess.Process, home: Path, sync: str) -> Install:
    board = home / "data" / "processes.json"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while not board.exists() and child.returncode is None:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
    if not board.exists():
        said = (home / "up.log").read_text(errors="replace")[-3000:]
        ended = (
            f"ended with {child.returncode}" if child.returncode is not None else f"not ready in {START_TIMEOUT_S} s"
        )
        raise NotStarted(f"`hublog up` {ended}:\n{said}")
    return read_processes(board, sync)


async def _stop(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        child.kill()  # its own children end with it
        await child.wait()


def _free_ports(gateways: int) -> tuple[int, int, int]:
    """First port of the gateways, the API's, and the admin base, all of whose ports are free now."""
    # In random order: two benches that start at once would both find the same ones free.
    for base in random.sample(range(PORT_FIRST, PORT_LAST, PORT_STEP), (PORT_LAST - PORT_FIRST) // PORT_STEP):
        admin = base + 200
        wanted = [*(base + i for i in range(gateways)), base + 100, *(admin + i for i in range(gateways))]
        if all(_is_free(port) for port in [*wanted, admin + 100, admin + 101]):
            return base, base + 100, admin
    raise NotStarted(f"no free ports between {PORT_FIRST} and {PORT_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
