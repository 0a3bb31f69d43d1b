"""The faults: what can be done to an installation, and a schedule of them that a seed determines.

Owns what each fault does, how long, and that its end is brought about whatever happens. It touches only what the site
lets it touch.
"""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from lab.chaos.history import Fault, History
from lab.chaos.site import Site

GAP_S = (1.0, 4.0)
"""Between two faults."""
SHARE = (0.2, 1.0)
"""Of connections, hit by a fault of sockets."""

# The shortest and longest time of those that last; a lease is lost after 10 s, so some pauses are longer than that.
LASTING_S: dict[str, tuple[float, float]] = {
    "pause-gateway": (0.5, 14.0),
    "pause-projector": (0.5, 5.0),
    "pause-api": (0.5, 3.0),
    "pause-nats": (0.3, 6.0),
    "pause-postgres": (0.3, 5.0),
    "stall-clients": (0.5, 12.0),
    "stall-nats": (0.5, 14.0),
    # An election takes 4 to 9 s: some of these are over before it.
    "kill-leader": (0.5, 14.0),
    "pause-leader": (0.5, 14.0),
    "part-node": (0.5, 14.0),
}
SIGNALS: dict[str, signal.Signals] = {
    "kill": signal.SIGKILL,
    "restart": signal.SIGTERM,
    "pause": signal.SIGSTOP,
}
OUTSIDE = ("cut-clients", "stall-clients")
OF_PROCESSES = (
    "kill-gateway",
    "pause-gateway",
    "restart-gateway",
    "kill-projector",
    "pause-projector",
    "kill-api",
    "pause-api",
    "kill-nats",
    "pause-nats",
    "kill-postgres",
    "pause-postgres",
)
OF_OUTLYING = ("cut-nats", "stall-nats")
OF_CLUSTER = ("kill-leader", "pause-leader", "move-leader", "wipe-node", "part-node")
OF_ONE_NATS = ("kill-nats", "pause-nats")
KINDS = (*OUTSIDE, *OF_PROCESSES, *OF_OUTLYING, *OF_CLUSTER)
LOG = "EV_0"
"""The stream whose leader is meant: an installation of ours has one partition."""


class Planned(msgspec.Struct, frozen=True):
    """One fault of the schedule. ``pick``: which gateway, as a share; ``directions`` of a stall: 0 up, 1 down."""

    kind: str
    gap_s: float
    seconds: float
    pick: float
    share: float
    directions: tuple[int, ...]


def possible(site: Site, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``asked`` that this site allows, as often as asked; all that it allows where nothing is asked."""
    allowed = set(OUTSIDE)
    if site.board is not None:
        allowed |= set(OF_PROCESSES)
    if site.nats is not None:
        allowed |= set(OF_OUTLYING)
    if site.cluster is not None:
        allowed = allowed - set(OF_ONE_NATS) | set(OF_CLUSTER)
    return tuple(kind for kind in (asked or KINDS) if kind in allowed)


def schedule(seed: int, kinds: tuple[str, ...]) -> "AsyncIterator[Planned]":
    """Without end: every kind once in each round, or as often as it is named, in a new order."""
    return _schedule(random.Random(f"{seed}/faults"), kinds)


async def _schedule(rng: random.Random, kinds: tuple[str, ...]) -> AsyncIterator[Planned]:
    while kinds:
        for kind in rng.sample(kinds, len(kinds)):
            yield Planned(
                kind,
                rng.uniform(*GAP_S),
                rng.uniform(*LASTING_S.get(kind, (0.0, 0.0))),
                rng.random(),
                rng.uniform(*SHARE),
                rng.choice([(0, 1), (0,), (1,)]),
            )


class Breaker:
    """Carries the schedule out, one fault after the other."""

    def __init__(self, site: Site, history: History, seed: int, told: Callable[[str], None]) -> None:
        self._site = site
        self._history = history
        self._rng = random.Random(f"{seed}/targets")
        self._told = told
        self._number = 0

    async def run(self, planned: AsyncIterator[Planned], until_s: float) -> None:
        """Until the history's clock says ``until_s``; the fault under way then ends early."""
        async for one in planned:
            left_s = until_s - self._history.now
            if left_s <= one.gap_s:
                await asyncio.sleep(max(0.0, left_s))
                return
            await asyncio.sleep(one.gap_s)
            seconds = min(one.seconds, max(0.0, until_s - self._history.now))
            await self._do(msgspec.structs.replace(one, seconds=seconds))

    async def _do(self, one: Planned) -> None:
        verb, _, what = one.kind.partition("-")
        if what == "clients":
            await self._sockets(one, verb, int(one.pick * len(self._site.clients)))
        elif one.kind in OF_CLUSTER:
            await self._cluster(one, verb, what)
        elif verb in {"cut", "stall"}:
            await self._nats_sockets(one, verb)
        else:
            gateway = int(one.pick * self._site.breakable) if what == "gateway" else None
            await self._process(one, verb, what if gateway is None else f"gateway {gateway}", gateway)

    async def _process(self, one: Planned, verb: str, name: str, gateway: int | None) -> None:
        pid = self._site.pid(name)
        if pid is None:
            return
        async with self._recorded(one, name, gateway):
            self._site.signal(name, SIGNALS[verb])
            if verb == "pause":
                try:
                    await asyncio.sleep(one.seconds)
                finally:
                    self._site.signal(name, signal.SIGCONT)
            elif not await self._site.back(name, pid) and self._site.own:
                raise RuntimeError(f"{name} did not come back after {one.kind}")

    async def _cluster(self, one: Planned, verb: str, what: str) -> None:
        """One at a time, and none before the node is itself again: two nodes of three are always well."""
        cluster = self._site.cluster
        if cluster is None:
            return
        leader = await cluster.leader_of(LOG)
        index = leader if what == "leader" else int(one.pick * len(cluster.nodes))
        node = cluster.nodes[index]
        detail = f"{node.name}, leader" if index == leader else node.name
        async with self._recorded(one, detail, None):
            match verb:
                case "move":
                    await cluster.ask(f"STREAM.LEADER.STEPDOWN.{LOG}", by=index)
                case "wipe":
                    await cluster.wipe(index)
                case "kill":
                    await cluster.kill(index)
                    await asyncio.sleep(one.seconds)
                    await cluster.launch(index)
                case "part":
                    cluster.part(index)
                    await self._then(one.seconds, cluster.heal)
                case _:
                    node.signal(signal.SIGSTOP)
                    await self._then(one.seconds, lambda: node.signal(signal.SIGCONT))
            await cluster.ready()
            await cluster.caught_up()

    async def _then(self, seconds: float, heal: Callable[[], None]) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            heal()

    async def _sockets(self, one: Planned, verb: str, gateway: int) -> None:
        proxy = self._site.clients[gateway]
        async with self._recorded(one, f"{one.share:.0%} of the clients of gateway {gateway}", gateway):
            if verb == "cut":
                proxy.cut(one.share, self._rng)
                return
            proxy.stall(one.share, self._rng, one.directions)
            try:
                await asyncio.sleep(one.seconds)
            finally:
                proxy.heal()

    async def _nats_sockets(self, one: Planned, verb: str) -> None:
        proxy = self._site.nats
        if proxy is None:
            return
        gateway = len(self._site.clients) - 1
        async with self._recorded(one, f"NATS of gateway {gateway}", gateway):
            if verb == "cut":
                proxy.cut(1.0, self._rng)
                return
            proxy.stall(1.0, self._rng, one.directions)
            try:
                await asyncio.sleep(one.seconds)
            finally:
                proxy.heal()

    @asynccontextmanager
    async def _recorded(self, one: Planned, detail: str, gateway: int | None) -> AsyncIterator[None]:
        self._number += 1
        number, history = self._number, self._history
        lasting = f", {one.seconds:.1f} s" if one.seconds else ""
        self._told(f"{one.kind}: {detail}{lasting}")
        begun = Fault(
            t=history.now, fault=number, kind=one.kind, phase="begin", detail=f"{detail}{lasting}", gateway=gateway
        )
        history.add(begun)
        try:
            yield
        finally:
            history.add(msgspec.structs.replace(begun, t=history.now, phase="end"))
            self._told("")
