"""A log behind a circuit: while that is open nothing is sent, and who asks is told so at once."""

import asyncio

import pytest

from events import session
from events.errors import HublogError, LogUnavailable
from events.ids import HubName
from events.subjects import HubSubjects
from service.breaker import FAILURES_MAX, Breaker
from service.log.author import Author
from service.log.guarded import GuardedLog
from service.log.memory import MemoryEventLog
from service.log.port import Stored

SUBJECTS = HubSubjects(HubName("h"), 1)


def trip(breaker: Breaker) -> None:
    for _ in range(FAILURES_MAX):
        breaker.failed(0.0, "silence")


async def test_nothing_is_sent_while_the_circuit_is_open_and_all_goes_on_when_it_closes() -> None:
    log, breaker = MemoryEventLog(), Breaker("nats")
    guarded = GuardedLog(log, breaker)
    event = Author().write(session.Opened(node="n", incarnation="i", connection="c"), actor="system:test")
    call = Author().write(session.Carried(), actor="system:test")
    subject = SUBJECTS.session("s")
    trip(breaker)

    for refused in (
        lambda: guarded.append(subject, [event], 0),
        lambda: guarded.publish(SUBJECTS.all(), call),
        lambda: guarded.last(subject),
        lambda: guarded.last_many([subject]),
        lambda: guarded.last_sequence(0),
        lambda: guarded.first_sequence(0),
    ):
        with pytest.raises(LogUnavailable, match=r"nothing was sent to NATS, it has not answered for .* silence"):
            await refused()
    with pytest.raises(LogUnavailable):
        guarded.read(subject, 1, 1)
    answer: asyncio.Future[Stored | HublogError] = asyncio.get_running_loop().create_future()
    guarded.submit(SUBJECTS.all(), call, answer.set_result)
    assert not answer.done(), "an answer never comes from within"
    assert isinstance(await answer, LogUnavailable)
    assert await log.last_sequence(0) == 0
    assert breaker.refused == 8

    breaker.probing()
    breaker.succeeded()
    assert await guarded.append(subject, [event], 0) == 1
    assert (await guarded.publish(SUBJECTS.all(), call)).sequence == 2
    found = await guarded.last(subject)
    assert found is not None
    assert found.sequence == 1
