"""The session layer on a real log: outcomes as of a position, keys, and global answers."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from events import selector, session
from events.errors import KeyReused, SessionClosed
from events.ids import HubName
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.commands import CommandRunner, SessionAggregate
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.sessions.manager import Manager, session_manager
from service.sessions.registry import NewSession
from service.sessions.router import Call
from service.up.nats_server import NatsServer


@pytest.fixture
async def log(clean_nats: NatsServer) -> AsyncIterator[JetStreamLog]:
    await migrate_log(clean_nats.url, random=os.urandom(3), partitions=2)
    log = await jetstream_log(clean_nats.url, name="test", partitions=2)
    yield log
    await log.close()


@pytest.fixture
def manager(log: JetStreamLog, unique_hub: str) -> Manager:
    return session_manager(unique_hub, log)


async def opened(manager: Manager, *groups: str):
    session_id = Author().new_session()
    assert await manager.sessions.register(NewSession(session_id, connection="c", resumable=True))
    if groups:
        await manager.groups.add(session_id, *groups)
    return session_id


async def test_outcomes_of_a_call_on_one_client(log, manager):
    ann = await opened(manager, "lobby")
    sent = await manager.router.client(ann, "say", 1)
    runner = CommandRunner(log, Author(), SessionAggregate())
    subject = HubSubjects(manager.hub, log.partitions).session(ann)
    await runner.execute(subject, session.Detach("c", "timeout", 1), actor="system:test")
    queued = await manager.router.client(ann, "say", 2)
    assert await manager.sessions.unregister(ann)
    gone = await manager.router.client(ann, "say", 3)
    unknown = await manager.router.client("nobody", "say")
    assert [each.outcome for each in (sent, queued, gone, unknown)] == ["sent", "queued", "not_found", "not_found"]
    assert (gone.position, unknown.position) == (None, None)
    number = HubSubjects(manager.hub, 2).partition
    assert [sent.position, queued.position] == [f"{log.epoch}.{number}-{n}" for n in (3, 5)]
    assert await log.last_sequence(number) == 6


async def test_a_key_repeated_finds_its_first_outcome_on_every_path(manager):
    ann = await opened(manager)
    calls = [
        Call(to, "say", b"[1]", actor="system:api", user="ann", key=type(to).__name__)
        for to in (selector.All(), selector.Client(ann), selector.Clients((ann, "b")), selector.Group("g"))
    ]
    first = await asyncio.gather(*(manager.router.invoke(call) for call in calls))
    assert await asyncio.gather(*(manager.router.invoke(call) for call in calls)) == first
    await manager.sessions.unregister(ann)
    assert await asyncio.gather(*(manager.router.invoke(call) for call in calls)) == first
    assert [each.outcome for each in first] == ["accepted", "sent", "accepted", "accepted"]
    for call in calls:
        with pytest.raises(KeyReused):
            await manager.router.invoke(Call(call.selector, "say", b"[2]", "system:api", user="ann", key=call.key))
    # The same key for something else is met by the log, whatever subject that goes to.
    with pytest.raises(KeyReused):
        await manager.router.invoke(Call(selector.User("x"), "say", b"[1]", "system:api", user="ann", key="All"))


async def test_global_answers_and_the_end_of_a_session(manager, unique_hub):
    ann, bob = await opened(manager, "lobby", "ä.b"), await opened(manager, "lobby")
    assert (await manager.sessions.count()).value == 2
    assert (await manager.groups.names()).value == ("lobby", "ä.b")
    assert (await manager.groups.size("lobby")).value == 2
    await manager.sessions.unregister(ann, "kicked")
    assert (await manager.sessions.ids()).value == (bob,)
    assert (await manager.groups.names()).value == ("lobby",)
    with pytest.raises(SessionClosed):
        await manager.groups.add(ann, "lobby")
    other = session_manager(HubName(f"{unique_hub}-x"), manager.router._log)  # type: ignore[attr-defined]
    assert (await other.sessions.count()).value == 0


async def test_a_thousand_calls_at_once_keep_their_order_and_are_answered_once(log, manager):
    answers: list[object] = []
    done = asyncio.Event()

    def answer(outcome: object) -> None:
        answers.append(outcome)
        if len(answers) == 1_000:
            done.set()

    for number in range(1_000):
        manager.router.submit(Call(selector.Group("g"), "say", b"[%d]" % number, actor="system:api"), answer)
    await asyncio.wait_for(done.wait(), 30)
    sequences = [int(str(outcome.position).rpartition("-")[2]) for outcome in answers]
    assert sequences == list(range(1, 1_001))
    subject = HubSubjects(manager.hub, 2).group("g")
    stored = [event.payload async for event in log.read(subject, 1, 1_000)]
    assert all(b'"arguments":[%d]' % number in payload for number, payload in enumerate(stored))
    assert len(stored) == 1_000
