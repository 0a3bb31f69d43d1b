"""A crowd that comes back at once, on a real server: what NATS is asked for it, counted where it leaves the process."""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from events import selector
from events.ids import HubName, Position, SessionId
from events.subjects import HubSubjects
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.gateway.context import GatewayContext
from service.gateway.resume import resume_token, take_over
from service.gateway.signalr.machine import Limits
from service.gateway.tokens import KeyRing
from service.log.author import Author
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.log.jetstream.client import SyncClient
from service.sessions.hubs import Hubs
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession
from service.sessions.router import Call
from service.up.nats_server import NatsServer
from tests.servers.delivery import Transport
from tests.servers.event_logs import until

SESSIONS = 300
GROUPS = 4
ROUNDS = 25  # calls to each group while nobody is there
READ = "$JS.API.DIRECT.GET."


@pytest.fixture
async def logs(clean_nats: NatsServer) -> AsyncIterator[tuple[JetStreamLog, JetStreamLog]]:
    """That of the node on which they resume, and that of the one that died."""
    await migrate_log(clean_nats.url, random=os.urandom(3))
    here = await jetstream_log(clean_nats.url, name="here")
    elsewhere = await jetstream_log(clean_nats.url, name="elsewhere")
    yield here, elsewhere
    await here.close()
    await elsewhere.close()


class Asked:
    """Every request that leaves through one kind of client: subjects that want an answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subjects: Counter[str] = Counter()
        send = SyncClient.send

        def counted(client: SyncClient, subject: str, reply: str, payload: bytes, headers: bytes | None = None) -> None:
            if reply:
                self.subjects[subject] += 1
            send(client, subject, reply, payload, headers)

        monkeypatch.setattr(SyncClient, "send", counted)

    def to(self, prefix: str) -> int:
        return sum(count for subject, count in self.subjects.items() if subject.startswith(prefix))


async def test_a_crowd_is_read_for_once_and_asks_at_most_twice_for_each_subject(
    logs: tuple[JetStreamLog, JetStreamLog], unique_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = logs
    hub, author = HubName(unique_hub), Author()
    subjects = HubSubjects(hub, 1)
    before = session_manager(unique_hub, elsewhere)
    ids = [author.new_session() for _ in range(SESSIONS)]
    cursors = await asyncio.gather(*(_opened(before, one, f"g{at % GROUPS}") for at, one in enumerate(ids)))
    for number in range(ROUNDS):
        for group in range(GROUPS):
            to = selector.Group(f"g{group}")
            await before.router.invoke(Call(to, "say", b"[%d]" % number, actor="system:api"))

    dispatcher = Dispatcher(0, here, here, lambda _kind, _target, arguments, _position: arguments[1:-1])
    context = GatewayContext(
        node="n",
        incarnation="i",
        author=author,
        hubs=Hubs(here, lambda name: session_manager(name, here)),
        dispatchers=[dispatcher],
        limits=Limits(),
        outbox_bytes_max=1 << 20,
        outbox_age_s=10.0,
        ring=KeyRing([secrets.token_bytes(32)]),
        session_ttl_us=1_800_000_000,
    )
    manager = await context.hubs.manager(hub)
    running = asyncio.ensure_future(repair.run(dispatcher))
    transports = [Transport() for _ in ids]
    asked = Asked(monkeypatch)

    async def resumed(at: int) -> None:
        outbox = Outbox(transports[at], context.outbox_bytes_max, lambda: pytest.fail("nobody is slow"))
        outbox.uncork(b"0")
        receiver = Receiver(SessionId(""), f"c-{at}", None, outbox, lambda *_: None, lambda *_: pytest.fail("a hole"))
        token = resume_token(context, manager, ids[at], None, 1)
        async with context.admission:
            position = str(Position(here.epoch, 0, cursors[at]))
            taken = await take_over(context, manager, receiver, token, position, None, lambda: True)
        context.handover(hub).begin(hub, taken.resumer)

    await asyncio.gather(*(resumed(at) for at in range(SESSIONS)))
    await until(lambda: all(len(one.frames) == ROUNDS + 1 for one in transports))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert all(one.frames[1:] == list(range(ROUNDS)) for one in transports)

    heard = {subjects.all(), subjects.many(), *(subjects.group(f"g{number}") for number in range(GROUPS))}
    heard |= {subject for one in ids for subject in (subjects.session(one), subjects.inbox(one))}
    total = asked.subjects.total()
    assert total <= 2 * len(heard), f"{total} requests for {len(heard)} subjects: {asked.subjects.most_common(5)}"
    appends = sum(asked.subjects[subjects.session(one)] for one in ids)
    assert appends == SESSIONS
    rounds = context.handovers[0].reads
    assert rounds < SESSIONS / 10
    # What was missed is read by the round, not by the session, and in each only what has come since the one before.
    assert asked.to(READ) <= 3 * rounds, f"{asked.to(READ)} reads in {rounds} rounds"


async def _opened(manager: Manager, session: SessionId, group: str) -> int:
    """In its group; gives the position of that, which is all that its client has seen."""
    await manager.sessions.register(NewSession(session, f"old-{session}", resumable=True))
    return (await manager.groups.add(session, group)).sequence
