"""One hub over a log in memory, and hands to open sessions and to read back what was written."""

from collections.abc import Awaitable, Callable

import pytest

from events import codec, invocation, session
from events.envelope import Envelope, Recorded
from events.ids import HubName, SessionId
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.memory import MemoryEventLog
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession

HUB = HubName("chat")
OpenSession = Callable[..., Awaitable[SessionId]]


class Written:
    """What is in the log, decoded."""

    def __init__(self, log: MemoryEventLog) -> None:
        self.log = log
        self.subjects = HubSubjects(HUB, log.partitions)

    async def recorded(self, subject: str = "") -> list[Recorded]:
        last = await self.log.last_sequence(self.subjects.partition)
        return [event async for event in self.log.read(subject or f"{self.subjects.prefix}.>", 1, last)]

    async def all(self, subject: str = "") -> list[tuple[str, Envelope, codec.Event]]:
        found = []
        for event in await self.recorded(subject):
            envelope, decoded = codec.decode(event.payload)
            found.append((event.subject.removeprefix(self.subjects.prefix + "."), envelope, decoded))
        return found

    async def calls(self) -> list[tuple[str, Envelope, invocation.Requested]]:
        return [
            (subject, envelope, event)
            for subject, envelope, event in await self.all()
            if isinstance(event, invocation.Requested)
        ]

    async def tags(self, session_id: str) -> list[str]:
        return [envelope.type for _, envelope, _ in await self.all(self.subjects.session(session_id))]

    async def state(self, session_id: str) -> session.State:
        return codec.session_state(await self.log.last(self.subjects.session(session_id)))


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog()


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture
def written(log: MemoryEventLog) -> Written:
    return Written(log)


@pytest.fixture
def manager(log: MemoryEventLog, author: Author) -> Manager:
    return session_manager(HUB, log, author=author, ttl_ms_max=1_000)


@pytest.fixture
def other(log: MemoryEventLog) -> Manager:
    """The same hub in another process: the same log, and nothing else in common."""
    return session_manager(HUB, log)


@pytest.fixture
def opened(manager: Manager, author: Author) -> OpenSession:
    """``await opened(user="ann", in_=manager)``: the id of a new session."""

    async def make(*groups: str, user: str | None = None, in_: Manager = manager, resumable: bool = True) -> SessionId:
        session_id = author.new_session()
        new = NewSession(session_id, connection=f"c-{session_id}", node="n", user=user, resumable=resumable)
        assert await in_.sessions.register(new)
        if groups:
            await in_.groups.add(session_id, *groups)
        return session_id

    return make


@pytest.fixture
def detach(log: MemoryEventLog, author: Author) -> Callable[[SessionId], Awaitable[None]]:
    """As a sweeper does it, in another process."""

    async def run(session_id: SessionId) -> None:
        subject = HubSubjects(HUB, log.partitions).session(session_id)
        last = await log.last(subject)
        state = codec.session_state(last)
        (event,) = session.decide(state, session.Detach(state.connection, "node_lost", 1))
        assert last is not None
        await log.append(subject, [author.write(event, actor="system:sweeper")], last.sequence)

    return run
