"""Delivery on a real server: joins made elsewhere to groups that are new to the node, with calls right behind them.

What the memory log cannot show: interest that takes effect on the way, and answers that come while messages do.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from events import selector
from events.ids import HubName, SessionId
from events.subjects import HubSubjects
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.log.author import Author
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession
from service.sessions.router import Call
from service.up.nats_server import NatsServer
from tests.servers.delivery import Transport
from tests.servers.event_logs import until

SESSIONS = 60


class Local:
    """One session on the node, and what it was given."""

    def __init__(self) -> None:
        self.id = Author().new_session()
        self.transport = Transport()
        self.holes: list[int] = []
        outbox = Outbox(self.transport, 1 << 20, lambda: pytest.fail("nobody is slow"))
        self.receiver = Receiver(self.id, f"c-{self.id}", None, outbox, lambda *_: None, self._hole)
        outbox.uncork(b"0")

    def _hole(self, _receiver: Receiver, sequence: int) -> None:
        self.holes.append(sequence)

    @property
    def given(self) -> list[int]:
        return self.transport.frames[1:]


@pytest.fixture
async def logs(clean_nats: NatsServer) -> AsyncIterator[tuple[JetStreamLog, JetStreamLog]]:
    """That of the node, and that of another process."""
    await migrate_log(clean_nats.url, random=os.urandom(3))
    here = await jetstream_log(clean_nats.url, name="here")
    elsewhere = await jetstream_log(clean_nats.url, name="elsewhere")
    yield here, elsewhere
    await here.close()
    await elsewhere.close()


async def test_calls_right_behind_joins_made_elsewhere_arrive_once_and_in_order(
    logs: tuple[JetStreamLog, JetStreamLog], unique_hub: str
) -> None:
    here, elsewhere = logs
    subjects = HubSubjects(HubName(unique_hub), 1)
    dispatcher = Dispatcher(0, here, here, lambda _kind, _target, arguments, _position: arguments[1:-1])
    running = asyncio.ensure_future(repair.run(dispatcher))
    mine, theirs = session_manager(unique_hub, here), session_manager(unique_hub, elsewhere)
    locals_ = [Local() for _ in range(SESSIONS)]
    for local in locals_:
        dispatcher.interest.expect(subjects, local.receiver)
        await mine.sessions.register(NewSession(local.id, f"c-{local.id}"))

    async def one(number: int, session: SessionId) -> None:
        """A group of its own and one of ten; a call on each, right behind; then one that reaches it by its inbox."""
        await theirs.groups.add(session, f"own-{number}", f"ten-{number % 6}", actor="system:api")
        for to in (selector.Group(f"own-{number}"), selector.Group(f"ten-{number % 6}"), selector.Client(session)):
            await theirs.router.invoke(Call(to, "say", b"[%d]" % number, actor="system:api"))

    try:
        await asyncio.gather(*(one(number, local.id) for number, local in enumerate(locals_)))
        await call_all(theirs)
        await until(lambda: all(local.given and local.given[-1] == 999 for local in locals_))
        for number, local in enumerate(locals_):
            assert not local.holes
            assert local.given.count(number) == 3, "its own group, its ten, its inbox"
            others = [given for given in local.given if given not in {number, 999}]
            assert len(others) == len(set(others)), "no call of the ten came twice"
            assert all(other % 6 == number % 6 for other in others)
        assert dispatcher.counters.holes == 0
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def call_all(manager: Manager) -> None:
    await manager.router.invoke(Call(selector.All(), "say", b"[999]", actor="system:api"))
