"""What all connections of one gateway process share: made once by the composition root."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextvars import Context
from typing import Any, Protocol

from events import session
from events.errors import HublogError
from events.ids import HubName
from events.subjects import HubSubjects
from service.delivery.feed import Dispatcher
from service.delivery.handover import Handover
from service.delivery.outbox import Outbox
from service.gateway.signalr.machine import Limits
from service.gateway.tokens import KeyRing
from service.log.author import Author
from service.sessions.coordinator import Coordinated, Coordinator
from service.sessions.hubs import Hubs
from service.telemetry.tracing import OFF, Tracing

# Sessions that are opened or resumed at once: when thousands come back, those who are here already are served too.
OPENINGS_AT_ONCE = 64


class Counters:
    """Plain ints, exported by whoever puts the process together.

    ``errors``: what clients were told, by code. ``resyncs``: resumes by what they could not give exactly.
    """

    __slots__ = (
        "closed",
        "errors",
        "failed_calls",
        "opened",
        "refused",
        "resumed",
        "resumes_refused",
        "resyncs",
        "slow",
        "timeouts",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.refused = 0
        self.resumed = 0
        self.resumes_refused = 0
        self.failed_calls = 0
        self.timeouts = 0
        self.slow = 0
        self.errors: dict[str, int] = {}
        self.resyncs: dict[str, int] = {"none": 0, "repeated": 0, "lost": 0}

    def told(self, error: HublogError) -> None:
        """A client was told of an error: by an answer, a Close, or a refusal of its request."""
        self.errors[error.code] = self.errors.get(error.code, 0) + 1


class Closings:
    """Sessions that are being closed after their connection went; the process waits for them when it stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, closing: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: it is the node's doing, whatever command it follows from (see log.fenced).
        task = asyncio.get_running_loop().create_task(closing, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __len__(self) -> int:
        return len(self._tasks)

    async def finish(self, timeout_s: float) -> int:
        """Wait for those under way; returns how many were given up."""
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        return len(late)


class Connected(Coordinated, Protocol):
    """A connection, as whoever ends it knows it."""

    @property
    def outbox(self) -> Outbox: ...

    def end(
        self, error: HublogError | None, reason: session.Closing | None, *, allow_reconnect: bool | None = None
    ) -> None: ...


class GatewayContext:
    """The node, its dispatchers and managers, and the limits of every connection."""

    def __init__(
        self,
        *,
        node: str,
        incarnation: str,
        author: Author,
        hubs: Hubs,
        dispatchers: Sequence[Dispatcher],
        limits: Limits,
        outbox_bytes_max: int,
        outbox_age_s: float,
        ring: KeyRing,
        session_ttl_us: int,
        tracing: Tracing = OFF,
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self.author = author
        self.hubs = hubs
        self.dispatchers = dispatchers
        self.limits = limits
        self.outbox_bytes_max = outbox_bytes_max
        self.outbox_age_s = outbox_age_s
        self.ring = ring
        self.session_ttl_us = session_ttl_us
        self.tracing = tracing
        self.handovers = [Handover(dispatcher) for dispatcher in dispatchers]
        self.coordinator: Coordinator[Connected] = Coordinator()
        self.admission = asyncio.Semaphore(OPENINGS_AT_ONCE)
        self.counters = Counters()
        self.closings = Closings()
        self.draining = False

    def outboxes(self) -> Iterator[int]:
        """The bytes that wait for each connection."""
        for connection in self.coordinator:
            yield connection.outbox.waiting_bytes

    def subjects(self, hub: HubName) -> HubSubjects:
        return HubSubjects(hub, len(self.dispatchers))

    def handover(self, hub: HubName) -> Handover:
        return self.handovers[self.subjects(hub).partition]

    def dispatcher(self, hub: HubName) -> Dispatcher:
        return self.dispatchers[self.subjects(hub).partition]
