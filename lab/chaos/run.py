"""A run: an installation, clients that work, faults; then calm, a last message to all, and the evidence on disk.

Owns the order of things and all bounds. ``run`` is what the command line calls; the judgement is the checker's.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from lab.chaos.checker import check
from lab.chaos.faults import OF_CLUSTER, OF_OUTLYING, Breaker, possible, schedule
from lab.chaos.history import Began, Evidence, History, Marker, Settled, Stranded, read_evidence, write_log
from lab.chaos.peer import Field, Peer
from lab.chaos.reader import read_all
from lab.chaos.site import Site, foreign_site, own_site
from lab.chaos.verdict import Verdict
from lab.chaos.wire import Numbers, user_of
from lab.client import KEEP_ALIVE
from lab.proc import raise_file_limit

BEYOND_S = 480.0
"""What a run may take beyond the time that it breaks things: starting, coming back, reading, stopping."""
CONNECT_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 60.0
MARKER_TIMEOUT_S = 45.0
MARKER_AGAIN_S = 3.0
SILENCE_OWN_S = 7.0
SILENCE_FOREIGN_S = 40.0
"""A client gives a silent connection up; an installation of ours pings every 2 s, any other every 15 s."""
CHECK_S = 1.0
PLAIN_SHARE = 0.3
USERLESS_SHARE = 0.15
SPARE_FILES = 300


class Options(msgspec.Struct, frozen=True):
    """What to run, on what. Without ``urls`` and ``processes`` an installation is started for it.

    ``token``: the access token of all clients and of the API's reader, for one that runs already and asks for it; good
    for every hub, with both scopes.
    """

    seed: int
    folder: Path
    seconds: float = 30.0
    sessions: int = 60
    gateways: int = 2
    nats_nodes: int = 1
    rate: float = 40.0
    faults: tuple[str, ...] = ()
    sync: str = "relaxed"
    urls: tuple[str, ...] = ()
    api: str | None = None
    processes: Path | None = None
    data_parent: Path | None = None
    command: str = "hublog chaos"
    token: str | None = None


class Unsuitable(Exception):
    """The options do not fit together; the text says why."""


def run(options: Options, progress: Callable[[float, str], None]) -> Verdict:
    """Runs, leaves the evidence in the folder and nothing running, and judges it.

    Raises: Unsuitable, NotStarted, NotRead, RuntimeError.
    """
    raise_file_limit(4 * options.sessions + SPARE_FILES)
    uvloop.run(_until_told(options, progress))
    return judge(options.folder)


def judge(folder: Path) -> Verdict:
    """The verdict on what a run has left in ``folder``; also written there."""
    evidence: Evidence = read_evidence(folder)
    verdict = check(evidence)
    (folder / "verdict.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
    return verdict


async def _until_told(options: Options, progress: Callable[[float, str], None]) -> None:
    """SIGTERM ends a run as Ctrl-C does: what it started is stopped."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        progress(0, "starting an installation" if not options.urls and options.processes is None else "connecting")
        bearer = {"Authorization": f"Bearer {options.token}"} if options.token is not None else {}
        async with _site(options) as site, aiohttp.ClientSession(headers=bearer) as http:
            async with asyncio.timeout(options.seconds + BEYOND_S):
                await _Run(options, site, http, progress).all()
    except TimeoutError as exc:
        raise RuntimeError(f"not done {BEYOND_S:.0f} s after its time") from exc
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.asynccontextmanager
async def _site(options: Options) -> AsyncIterator[Site]:
    if not options.urls and options.processes is None:
        outlying = not options.faults or bool(set(options.faults) & set(OF_OUTLYING))
        async with own_site(
            options.gateways, options.sync, options.data_parent, outlying=outlying, nats_nodes=options.nats_nodes
        ) as site:
            try:
                yield site
            finally:
                _keep_logs(site, options.folder)
        return
    if options.api is None and options.processes is None:
        raise Unsuitable("an installation that runs already needs --api too: its log is read there")
    async with foreign_site(list(options.urls), options.api, options.processes) as site:
        yield site


def _keep_logs(site: Site, folder: Path) -> None:
    """What the processes wrote goes with the history: the installation's data is removed."""
    kept, data = folder / "logs", Path(site.install.data)
    kept.mkdir(parents=True, exist_ok=True)
    logs = {log.name: log for log in [*(data / "logs").glob("*.log"), data.parent / "up.log"]}
    if site.cluster is not None:
        logs |= {f"nats-{node.name}.log": node.folder / "nats.log" for node in site.cluster.nodes}
    for name, log in logs.items():
        with contextlib.suppress(OSError):
            (kept / name).write_bytes(log.read_bytes())


class _Run:
    def __init__(
        self, options: Options, site: Site, http: aiohttp.ClientSession, progress: Callable[[float, str], None]
    ) -> None:
        self._options, self._site, self._progress = options, site, progress
        self._history = History(options.folder)
        self._doing = ""
        self._http = http
        self._hub = f"chaos-{options.seed & 0xFFFF:04x}-{datetime.now(UTC):%H%M%S}"
        self._field = Field(
            http,
            self._history,
            Numbers(),
            self._hub,
            site.gateways,
            site.api,
            pace_s=options.sessions / options.rate,
            sessions={},
            calm=asyncio.Event(),
            token=options.token,
        )
        self._peers = [self._peer(index) for index in range(options.sessions)]
        self._markers: list[int] = []

    def _peer(self, index: int) -> Peer:
        share = index / self._options.sessions
        user = None if share >= 1 - USERLESS_SHARE else f"u{index % max(1, self._options.sessions // 3)}"
        if self._options.token is not None:
            user = user_of(self._options.token)
        # Interleaved, so that plain and resumable sessions share users.
        resumable = (index * 7) % 10 >= PLAIN_SHARE * 10
        return Peer(self._field, index, self._options.seed, user=user, resumable=resumable)

    async def all(self) -> None:
        options, history = self._options, self._history
        kinds = possible(self._site, options.faults)
        if options.faults and set(kinds) != set(options.faults):
            missing = sorted(set(options.faults) - set(kinds))
            of_cluster = "; for a cluster of NATS say --nats-nodes 3" if set(missing) & set(OF_CLUSTER) else ""
            raise Unsuitable(
                f"not possible for this installation: {', '.join(missing)}; name the --processes of one that runs"
                + of_cluster
            )
        history.add(
            Began(
                seed=options.seed,
                hub=self._hub,
                command=options.command,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                own=self._site.own,
                options={"seconds": options.seconds, "sessions": options.sessions, "faults": list(kinds)},
            )
        )
        keepers = [asyncio.create_task(self._keep_alive()), asyncio.create_task(self._show())]
        lives = [asyncio.create_task(peer.live()) for peer in self._peers]
        try:
            await self._connected(CONNECT_TIMEOUT_S, "connecting")
            breaker = Breaker(self._site, history, options.seed, self._told)
            await breaker.run(schedule(options.seed, kinds), history.now + options.seconds)
            await self._settle()
        finally:
            for task in [*lives, *keepers]:
                task.cancel()
            await asyncio.gather(*lives, *keepers, return_exceptions=True)
            history.close()
        failed = [task.exception() for task in lives if not task.cancelled() and task.exception() is not None]
        if failed:
            raise RuntimeError(f"a client of the lab failed: {failed[0]!r}") from failed[0]

    async def _settle(self) -> None:
        """No faults, no actions; everybody back; one message to all; then the log and the read models are read."""
        self._told("calming down")
        self._field.calm.set()
        await self._connected(SETTLE_TIMEOUT_S, "waiting for clients to come back")
        for peer in self._peers:
            if peer.wire is None:
                self._history.add(Stranded(t=self._history.now, client=peer.index, why=peer.trouble))
        self._told("waiting for the last message")
        await self._mark()
        living = [peer.wire for peer in self._peers if peer.wire is not None and not peer.wire.ended.is_set()]
        for wire in living:
            if wire.session is not None:
                self._history.add(Settled(t=self._history.now, conn=wire.conn, session=wire.session))
        self._told("reading the log")
        write_log(self._options.folder, *await read_all(self._http, self._site.api, self._hub, self._history.latest))

    async def _mark(self) -> None:
        """A message to all, until everybody has one or time is out: what is missing then is the checker's finding.

        A client that was just cut off does not count, nor does the sender: another is asked, until one is heard.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MARKER_TIMEOUT_S):
                while True:
                    message = self._send_marker()
                    for _ in range(int(MARKER_AGAIN_S / 0.05)):
                        if message is not None and self._heard_by_all(message):
                            self._history.add(Marker(t=self._history.now, message=message))
                            return
                        await asyncio.sleep(0.05)
        if self._markers:
            self._history.add(Marker(t=self._history.now, message=self._markers[-1]))

    def _send_marker(self) -> int | None:
        for peer in self._peers:
            if peer.wire is not None and not peer.wire.ended.is_set():
                message = peer.wire.invoke(msgspec.Raw(b'{"to":"all"}'))
                self._markers.append(message)
                return message
        return None

    def _heard_by_all(self, message: int) -> bool:
        return all(message in peer.wire.heard for peer in self._peers if peer.wire is not None)

    async def _connected(self, timeout_s: float, what: str) -> None:
        """Everybody, or ``timeout_s``."""
        self._told(what)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(peer.wire is None or peer.wire.ended.is_set() for peer in self._peers):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

    async def _keep_alive(self) -> None:
        silence_s = SILENCE_OWN_S if self._site.own else SILENCE_FOREIGN_S
        while True:
            for peer in self._peers:
                if peer.wire is not None:
                    peer.wire.check(silence_s, KEEP_ALIVE)
            await asyncio.sleep(CHECK_S)

    def _told(self, what: str) -> None:
        self._doing = what

    async def _show(self) -> None:
        while True:
            self._progress(self._history.now, self._doing)
            await asyncio.sleep(0.25)
