"""A log behind a lease: nothing is sent while it is too old, nor what was begun under another life of the node."""

import asyncio
from contextvars import Context

import pytest

from events import session
from events.errors import HublogError, Suspended
from events.ids import HubName
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.fenced import BEGUN_UNDER, FencedLog
from service.log.memory import MemoryEventLog
from service.log.port import Stored

SUBJECTS = HubSubjects(HubName("h"), 1)


class Lease:
    def __init__(self) -> None:
        self.old = False
        self.incarnation = "first"


def fenced(lease: Lease) -> FencedLog:
    return FencedLog(MemoryEventLog(), lambda: lease.old, lambda: lease.incarnation)


async def submitted(log: FencedLog) -> Stored | HublogError:
    """Sends one event, and gives what it was answered."""
    answer: asyncio.Future[Stored | HublogError] = asyncio.get_running_loop().create_future()
    log.submit(SUBJECTS.all(), Author().write(session.Carried(), actor="system:test"), answer.set_result)
    assert not answer.done(), "an answer never comes from within"
    return await answer


async def opened(log: FencedLog, name: str) -> int:
    event = Author().write(session.Opened(node="n", incarnation="i", connection="c"), actor="system:test")
    return await log.append(SUBJECTS.session(name), [event], 0)


async def test_nothing_is_sent_while_the_lease_is_too_old() -> None:
    lease = Lease()
    log = fenced(lease)
    assert isinstance(await submitted(log), Stored)
    lease.old = True
    assert isinstance(await submitted(log), Suspended)
    with pytest.raises(Suspended):
        await opened(log, "s")
    assert await log.last_sequence(0) == 1
    lease.old = False
    assert await opened(log, "s") == 2


async def test_a_command_does_not_outlive_the_life_it_was_begun_under() -> None:
    lease = Lease()
    log = fenced(lease)
    BEGUN_UNDER.set("first")
    assert await opened(log, "a") == 1
    lease.incarnation = "second"  # it waited for something, and the node was called lost meanwhile
    assert isinstance(await submitted(log), Suspended)
    with pytest.raises(Suspended):
        await opened(log, "b")
    # What the node does of its own accord, as closing that command's session, is not a command.
    assert await asyncio.get_running_loop().create_task(opened(log, "c"), context=Context()) == 2
    BEGUN_UNDER.set("second")
    assert await opened(log, "d") == 3
