"""What is broken: an installation, its processes, and the proxies in front of its gateways.

Owns how processes are found, signalled and waited for, and one more gateway whose road to NATS leads through a proxy.
It signals only what ``processes.json`` of the installation names, and what it started itself.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import msgspec

from lab.chaos.proxy import FaultProxy
from lab.install import Install, NotStarted, embedded, made_folder, read_processes
from lab.nats_cluster import NatsCluster, nats_cluster
from lab.proc import Gone, children_of

BACK_TIMEOUT_S = 60.0
POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
SETTINGS = {
    "HUBLOG_PING_INTERVAL": "2",
    "HUBLOG_CLIENT_TIMEOUT": "8",
    "HUBLOG_DRAIN": "2",
    "HUBLOG_OUTBOX_BYTES_MAX": "65536",
    "HUBLOG_LOG_LEVEL": "info",
}
"""An installation that is started for a run notices the death of clients soon, so that a run sees it, and keeps as
little as it may for those who do not read, so that who resumes and is stalled gets what it missed page by page."""


class Site:
    """``gateways``: the addresses of the proxies to dial; ``board``: processes.json, if processes may be touched."""

    def __init__(self, install: Install, api: str, board: Path | None, own: bool) -> None:
        self.install = install
        self.api = api
        self.board = board
        self.own = own
        self.clients: list[FaultProxy] = []
        self.nats: FaultProxy | None = None
        self.cluster: NatsCluster | None = None

    @property
    def gateways(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", proxy.port) for proxy in self.clients]

    @property
    def breakable(self) -> int:
        """How many gateways are processes that may be touched and come back: the first ones."""
        return len(self.install.gateways) if self.board is not None else 0

    def pid(self, name: str) -> int | None:
        """The process of that name now, e.g. ``gateway 0`` or ``nats``."""
        if self.board is None:
            return None
        try:
            return read_processes(self.board, "").pids.get(name)
        except (OSError, msgspec.DecodeError):  # being replaced, or all is over
            return None

    def signal(self, name: str, number: signal.Signals) -> int | None:
        """To the process, and with it its children (Postgres has many). Returns its pid; None where there is none."""
        pid = self.pid(name)
        if pid is None:
            return None
        family = [pid]
        if number in {signal.SIGSTOP, signal.SIGCONT}:
            with contextlib.suppress(Gone):
                family += children_of(pid)
        for one in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)
        return pid

    async def back(self, name: str, before: int) -> bool:
        """Waits until the process runs again under another pid. False where that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BACK_TIMEOUT_S):
                while self.pid(name) in {None, before}:  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(POLL_S)
                return True
        return False


@contextlib.asynccontextmanager
async def own_site(
    gateways: int, sync: str, parent: Path | None, *, outlying: bool, nats_nodes: int
) -> AsyncIterator[Site]:
    """An installation of its own, on a NATS cluster where ``nats_nodes`` are several, and with ``outlying`` one more
    gateway behind a NATS proxy.

    Raises: NotStarted.
    """
    async with _nats(parent, nats_nodes) as cluster:
        settings = SETTINGS if cluster is None else SETTINGS | _on(cluster)
        async with _own_site(gateways, sync, parent, settings, outlying=outlying) as site:
            site.cluster = cluster
            yield site


@contextlib.asynccontextmanager
async def _nats(parent: Path | None, nodes: int) -> AsyncIterator[NatsCluster | None]:
    if nodes == 1:
        yield None  # the installation brings its own
        return
    home = made_folder("hublog-nats-", parent)
    try:
        async with nats_cluster(home, size=nodes, proxied=True, advertise=False) as cluster:
            yield cluster
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _on(cluster: NatsCluster) -> dict[str, str]:
    return {"HUBLOG_NATS_URL": cluster.url, "HUBLOG_NATS_REPLICAS": str(len(cluster.nodes))}


@contextlib.asynccontextmanager
async def _own_site(
    gateways: int, sync: str, parent: Path | None, settings: dict[str, str], *, outlying: bool
) -> AsyncIterator[Site]:
    async with embedded(gateways, sync, parent, restart=True, settings=settings) as install:
        board = Path(install.data) / "processes.json"
        site = Site(install, install.urls["api"], board, own=True)
        async with _fronts(site, [gateway.url for gateway in install.gateways]):
            if not outlying:
                yield site
                return
            async with _outlying(site, settings):
                yield site


@contextlib.asynccontextmanager
async def foreign_site(urls: list[str], api: str | None, board: Path | None) -> AsyncIterator[Site]:
    """An installation that runs already: of its processes only those are touched that ``board`` names."""
    install = read_processes(board, "as found") if board is not None else Install([], "as found", "/")
    site = Site(install, api or install.urls["api"], board, own=False)
    async with _fronts(site, urls or [gateway.url for gateway in install.gateways]):
        yield site


@contextlib.asynccontextmanager
async def _fronts(site: Site, urls: list[str]) -> AsyncIterator[None]:
    try:
        for url in urls:
            await _front(site, url)
        yield
    finally:
        for proxy in site.clients:
            await proxy.stop()


async def _front(site: Site, url: str) -> None:
    parts = urlsplit(url)
    proxy = FaultProxy(parts.hostname or "127.0.0.1", parts.port or 80)
    await proxy.start()
    site.clients.append(proxy)


@contextlib.asynccontextmanager
async def _outlying(site: Site, settings: dict[str, str]) -> AsyncIterator[None]:
    """A gateway of the installation that is not its own: its NATS is the proxy, in front of the first server."""
    install, index = site.install, len(site.install.gateways)
    nats = urlsplit(install.urls["nats"].partition(",")[0])
    site.nats = FaultProxy(nats.hostname or "127.0.0.1", nats.port or 4222)
    await site.nats.start()
    through = urlunsplit(nats._replace(netloc=f"{nats.netloc.rpartition('@')[0]}@127.0.0.1:{site.nats.port}"))
    first = urlsplit(install.gateways[0].url).port or 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")} | {
        **settings,
        "HUBLOG_AUTH": "none",
        "HUBLOG_NATS_URL": through,
        "HUBLOG_SECRETS": (Path(install.data) / "secrets").read_text().strip(),
        "HUBLOG_GATEWAY_PORT": str(first),
        "HUBLOG_ADMIN_PORT": str(first + 200),
    }
    libc = ctypes.CDLL(None, use_errno=True)
    child: asyncio.subprocess.Process | None = None
    try:
        with (Path(install.data) / "logs" / "outlying.log").open("wb") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "service", "gateway", "--index", str(index)),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        await _ready(f"http://127.0.0.1:{first + 200 + index}/readyz", child)
        await _front(site, f"http://127.0.0.1:{first + index}")
        yield
    finally:
        if child is not None and child.returncode is None:
            child.kill()
            await child.wait()
        await site.nats.stop()


async def _ready(url: str, child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BACK_TIMEOUT_S), aiohttp.ClientSession() as http:
            while child.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_S)
    raise NotStarted("the gateway behind the NATS proxy did not start")
