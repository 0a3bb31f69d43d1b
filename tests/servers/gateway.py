"""A log in memory with gates, one gateway over it on a real port, and what tests ask of both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from events import codec, session
from events.envelope import Envelope, NewEvent, Recorded
from events.errors import Conflict, HublogError, OutcomeUnknown
from events.ids import HubName, SessionId
from events.subjects import HubSubjects
from service.gateway.server import GatewayServer
from service.gateway.tokens import KeyRing
from service.log.memory import MemoryEventLog
from service.log.port import Done
from tests.servers.raw_signalr import RawClient

HUB = HubName("chat")
SUBJECTS = HubSubjects(HUB, 1)
PATIENCE_S = 5.0


class GatedLog(MemoryEventLog):
    """The log in memory, with gates: what is to be written, read or answered waits while its gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.may_append, self.may_read, self.may_answer = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for gate in (self.may_append, self.may_read, self.may_answer):
            gate.set()
        self.waiting = 0
        self._late: set[asyncio.Task[None]] = set()
        self.fail_append: HublogError | None = None
        """Every conditional write ends in this, and is not stored."""
        self.under_way: list[tuple[str, Sequence[NewEvent], int]] | None = None
        """Unless None: conditional writes are kept here, on their way still when their outcome is called unknown."""

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        await self._pass(self.may_append)
        if self.fail_append is not None:
            raise self.fail_append
        if self.under_way is not None:
            self.under_way.append((subject, events, expected))
            raise OutcomeUnknown("no answer came in time", subject=subject)
        sequence = await super().append(subject, events, expected)
        await self._pass(self.may_answer)
        return sequence

    async def arrive(self) -> int:
        """What was under way arrives at last; returns how much of it was stored."""
        late, self.under_way = self.under_way or [], None
        stored = 0
        for subject, events, expected in late:
            with suppress(Conflict):
                await super().append(subject, events, expected)
                stored += 1
        return stored

    async def last(self, subject: str) -> Recorded | None:
        await self._pass(self.may_read)
        return await super().last(subject)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        if self.may_answer.is_set():
            super().submit(subject, event, done)
            return
        self.waiting += 1

        def later(outcome: Any) -> None:
            async def answer() -> None:
                await self.may_answer.wait()
                self.waiting -= 1
                done(outcome)

            self._late.add(task := asyncio.ensure_future(answer()))
            task.add_done_callback(self._late.discard)

        super().submit(subject, event, later)

    async def _pass(self, gate: asyncio.Event) -> None:
        if not gate.is_set():
            self.waiting += 1
            try:
                await gate.wait()
            finally:
                self.waiting -= 1

    def events(self, subject: str) -> list[tuple[Envelope, codec.Event]]:
        """What was written on one subject, decoded."""
        found = [recorded for recorded in self._partitions[0].events if recorded.subject == subject]
        return [(codec.envelope(recorded.payload), codec.decode(recorded.payload)[1]) for recorded in found]

    def sessions(self) -> dict[str, session.State]:
        """Every session that was ever opened, as its last event leaves it."""
        part = self._partitions[0]
        return {
            subject: codec.session_state(part.last_of(subject)) for subject in part.by_subject if subject[-4:] == ".log"
        }


class Node:
    """A gateway that serves, and what a test looks at."""

    def __init__(self, log: GatedLog, server: GatewayServer, ring: KeyRing, url: str) -> None:
        self.log = log
        self.server = server
        self.ring = ring
        self.url = url
        self.context = server.context
        self.dispatcher = server.context.dispatchers[0]

    @asynccontextmanager
    async def client(self, query: str = "", **options: Any) -> AsyncIterator[RawClient]:
        async with RawClient(self.url, HUB, query, **options) as client:
            yield client

    async def session_of(self, client: RawClient) -> SessionId:
        return SessionId((await client.call("hub.session", b"[]"))["result"]["sessionId"])

    async def closed_as(self, session_id: str | None = None) -> str | None:
        """Why a session (the only one, unless named) was closed; waits for it."""
        subject = SUBJECTS.session(SessionId(session_id)) if session_id is not None else None

        def state() -> session.State:
            states = self.log.sessions()
            return states[subject] if subject is not None else next(iter(states.values()))

        await until(lambda: bool(self.log.sessions()) and state().status == "closed", "the session to be closed")
        return state().reason

    async def empty(self) -> None:
        """Wait until no trace of any connection is left here."""

        def traces() -> list[object]:
            hubs = self.dispatcher.interest.hubs.values()
            made = [task.result() for task in self.context.hubs._managers.values() if task.done()]
            return [
                *(one.id for one in self.context.coordinator),
                *([len(self.context.closings)] if len(self.context.closings) else []),
                *(receiver for hub in hubs for receiver in hub.receivers),
                *(hub.expected for hub in hubs if hub.expected),
                *(name for hub in hubs for chain in hub.chains.values() for name in chain.members),
                *(name for manager in made for name in manager.sessions.local_sessions()),
            ]

        await until(lambda: not traces(), "no trace", traces)


async def until(condition: Callable[[], bool], what: str, found: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition, turn by turn."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  nothing tells when any condition comes true
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what} {found()}") from None


MakeNode = Callable[..., Awaitable[Node]]
