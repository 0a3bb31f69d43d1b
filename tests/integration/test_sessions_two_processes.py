"""One session, two processes, a real log: whatever they do at once, the log decides, and all end where it says."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import msgspec
import pytest

from events import codec, session
from events.envelope import Recorded
from events.ids import HubName, SessionId
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.commands import Known
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.sessions.local import LocalSessions
from service.sessions.manager import session_manager
from service.sessions.registry import NewSession
from service.up.nats_server import NatsServer
from tests.servers.session_worker import Heard, Report, Result, all_groups

PATIENCE_S = 30.0
CHANGES = 50  # of each process

Connect = Callable[[str], Awaitable[JetStreamLog]]


@pytest.fixture
async def connect(clean_nats: NatsServer) -> AsyncIterator[Connect]:
    """``await connect(name)``: a connection of its own to the migrated log."""
    await migrate_log(clean_nats.url, random=os.urandom(3))
    async with AsyncExitStack() as stack:

        async def make(name: str) -> JetStreamLog:
            log = await jetstream_log(clean_nats.url, name=name)
            stack.push_async_callback(log.close)
            return log

        yield make


async def history(log: JetStreamLog, subject: str) -> list[tuple[Recorded, str, session.Event]]:
    found = []
    async for recorded in log.read(subject, 1, await log.last_sequence(0)):
        envelope, event = codec.decode(recorded.payload)
        assert isinstance(event, session.Event)
        found.append((recorded, envelope.actor, event))
    return found


async def test_of_two_registrations_at_once_the_log_chooses_one(connect, unique_hub):
    hub = HubName(unique_hub)
    logs = [await connect("one"), await connect("two")]
    managers = [session_manager(hub, log) for log in logs]
    ids = [Author().new_session() for _ in range(50)]
    won = await asyncio.gather(
        *(
            manager.sessions.register(NewSession(session_id, connection=name))
            for session_id in ids
            for manager, name in zip(managers, ("one", "two"), strict=True)
        )
    )
    pairs = list(zip(won[::2], won[1::2], strict=True))
    assert all(sorted(pair) == [False, True] for pair in pairs)
    for session_id, (first, _) in zip(ids, pairs, strict=True):
        [(recorded, _, event)] = await history(logs[0], HubSubjects(hub, 1).session(session_id))
        assert isinstance(event, session.Opened)
        assert event.connection == ("one" if first else "two")
        known = await managers[1].sessions.get(session_id)
        assert known is not None
        assert known.sequence == recorded.sequence
    assert set(managers[0].sessions.local_sessions()).isdisjoint(managers[1].sessions.local_sessions())
    assert (await managers[0].sessions.count()).value == len(ids)


class Worker:
    """``tests/servers/session_worker.py`` as a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def hear(self) -> bytes:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
        assert line, "the worker has ended early; its errors are above"
        return line

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    workers: list[Worker] = []

    async def run(*arguments: str) -> Worker:
        program = [sys.executable, "-P", "-m", "tests.servers.session_worker", *arguments]
        worker = Worker(await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE, limit=1 << 20))
        workers.append(worker)
        return worker

    yield run
    for worker in workers:
        if worker.process.returncode is None:
            worker.process.kill()
        await worker.process.communicate()


async def test_a_hundred_joins_and_leaves_from_two_processes(connect, clean_nats, start, unique_hub):
    log = await connect("test")
    hub, session_id = HubName(unique_hub), SessionId("contended")
    subject = HubSubjects(hub, 1).session(session_id)
    workers = [await start(clean_nats.url, hub, session_id, name, str(CHANGES)) for name in ("left", "right")]
    for worker in workers:
        await worker.hear()
    for worker in workers:
        worker.say("go")
    reports = [msgspec.json.decode(await worker.hear(), type=Report) for worker in workers]
    events = await history(log, subject)

    # Both registered the session at once: one won, and the log says which.
    (first, _, opened), *changed = events
    assert isinstance(opened, session.Opened)
    assert [report.registered for report in reports] == [opened.connection == name for name in ("left", "right")]

    results = {result.actor: result for report in reports for result in report.results}
    assert len(results) == 2 * CHANGES
    folded = session.evolve(session.INITIAL, opened, first.sequence, first.stored_at_us)
    states = {first.sequence: folded}
    for recorded, actor, event in changed:
        # What an event carries is what the fold gives, and it is the event of one command that was told so.
        folded = session.evolve(folded, event, recorded.sequence, recorded.stored_at_us)
        states[recorded.sequence] = folded
        assert session.settle(event, recorded.sequence, recorded.stored_at_us) == folded
        matches(event, results[actor])
        assert results[actor].sequence == recorded.sequence
    written = {actor for _, actor, _ in changed}
    # They really crossed each other: neither went after the other had finished.
    assert sum(one[:9] != other[:9] for (_, one, _), (_, other, _) in pairwise(changed)) >= 2
    assert len(written) == len(changed)
    for actor, result in results.items():
        # Acknowledged, or already done: true at the position that it was told.
        assert result.refused is None, actor
        assert states[result.sequence].groups == result.groups
        assert (result.group in result.groups) == result.adds

    # Every node that hears the log ends where a plain fold of it does.
    last, _, _ = events[-1]
    for worker in workers:
        worker.say(str(last.sequence))
    ends = [msgspec.json.decode(await worker.hear(), type=Heard) for worker in workers]
    third = LocalSessions()
    for recorded, _, event in events:
        state = session.settle(event, recorded.sequence, recorded.stored_at_us)
        third.learn(session_id, Known(state, recorded.sequence))
    member_of = [group for group in all_groups() if session_id in third.members(group)]
    assert member_of == sorted(folded.groups)
    for end in ends:
        assert end == Heard(last.sequence, folded.groups, member_of)
    for worker in workers:
        assert await asyncio.wait_for(worker.process.wait(), PATIENCE_S) == 0


def matches(event: session.Event, result: Result) -> None:
    assert isinstance(event, session.Joined if result.adds else session.Left)
    assert tuple(event.groups) == (result.group,)
