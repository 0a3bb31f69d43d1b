"""A node's lease over a log in memory: taken, renewed through failures, and given back within its time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from events import codec, node, subjects
from events.errors import LogUnavailable, OutcomeUnknown
from service.log.author import Author
from service.nodes import lease as leases
from service.nodes.lease import LastRenewals, Lease
from tests.servers.gateway import GatedLog, until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.01)
    monkeypatch.setattr(leases, "GOODBYE_S", 0.1)


class Clock:
    def __init__(self) -> None:
        self.us = 1_000_000

    def __call__(self) -> int:
        self.us += 1
        return self.us


def make(log: GatedLog, name: str = "gate way", clock: Callable[[], int] | None = None) -> Lease:
    return Lease(name, "1.0", "http://here", log, log, Author(clock or Clock()))


def said(log: GatedLog, name: str = "gate way") -> list[codec.Event]:
    return [event for _, event in log.events(subjects.node(name))]


@asynccontextmanager
async def kept(lease: Lease | LastRenewals) -> AsyncIterator[None]:
    keeping = asyncio.ensure_future(lease.keep())
    try:
        yield
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_start_is_an_incarnation_of_its_own() -> None:
    log = GatedLog()
    first, second = make(log), make(log)
    await first.start()
    await second.start()
    assert first.incarnation != second.incarnation
    assert said(log) == [
        node.Started(node="gate way", incarnation=lease.incarnation, version="1.0", url="http://here")
        for lease in (first, second)
    ]
    (value, _) = (await log.lease_all())[subjects.token("gate way")]
    assert msgspec.json.decode(value) == {"node": "gate way", "incarnation": second.incarnation}


async def test_without_a_log_there_is_no_node() -> None:
    log = GatedLog()
    log.disconnect()
    with pytest.raises(LogUnavailable):
        await make(log).start()


async def test_renewals_go_on_after_the_log_was_away() -> None:
    log = GatedLog()
    lease = make(log)
    await lease.start()
    async with kept(lease):
        first = lease.renewed_us
        await until(lambda: lease.renewed_us > first, "a renewal")
        log.disconnect()
        await asyncio.sleep(0.03)
        last = lease.renewed_us
        await asyncio.sleep(0.03)
        assert lease.renewed_us == last
        log.reconnect()
        await until(lambda: lease.renewed_us > last, "a renewal after the outage")
    assert len(said(log)) == 1, "renewals are not events"


async def test_leaving_is_said_and_a_silent_log_does_not_keep_anybody() -> None:
    log = GatedLog()
    lease = make(log)
    await lease.start()
    await lease.drain()
    assert said(log)[1:] == [node.Draining(node="gate way", incarnation=lease.incarnation)]
    log.may_answer.clear()
    async with asyncio.timeout(2):
        with pytest.raises(OutcomeUnknown):
            await lease.drain()
    log.may_answer.set()
    log.disconnect()
    with pytest.raises(LogUnavailable):
        await lease.drain()


async def test_renewals_are_seen_by_incarnation_and_an_outage_leaves_the_last_answer() -> None:
    log = GatedLog()
    ann, bob = make(log, "ann"), make(log, "bob")
    await ann.start()
    await bob.start()
    await log.lease_put("broken", b"{")
    seen = LastRenewals(log)
    assert seen.at_us(ann.incarnation) is None
    await seen.refresh()
    entries = await log.lease_all()
    assert seen.at_us(ann.incarnation) == entries["ann"][1]
    assert seen.at_us(bob.incarnation) == entries["bob"][1]
    async with kept(seen):
        log.disconnect()
        await asyncio.sleep(0.03)
        assert seen.at_us(ann.incarnation) == entries["ann"][1]
        log.reconnect()
        again = make(log, "ann")
        await again.start()
        await until(lambda: seen.at_us(again.incarnation) is not None, "the new incarnation")
        assert seen.at_us(ann.incarnation) is None, "its key was taken over"


async def test_a_renewal_that_failed_is_soon_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RETRY_EVERY_S", 0.01)
    log = GatedLog()
    lease = make(log)
    await lease.start()
    put, failures = log.lease_put, 0

    async def failing(key: str, value: bytes) -> int:
        nonlocal failures
        leases.RENEW_EVERY_S = 3600.0
        failures += 1
        if failures < 3:
            raise LogUnavailable("nobody leads")
        return await put(key, value)

    monkeypatch.setattr(log, "lease_put", failing)
    before = lease.renewed_us
    async with kept(lease):
        await until(lambda: lease.renewed_us > before, "a renewal, although the next regular one is an hour away")
    assert failures == 3


async def test_a_new_life_is_told_to_the_log_even_if_it_was_away_at_first() -> None:
    log = GatedLog()
    lease = make(log)
    await lease.start()
    first = lease.incarnation
    judged = Author(Clock()).write(
        node.Lost(node="gate way", incarnation=first, last_renewal_us=1), actor="system:sweeper"
    )
    await log.publish(subjects.node("gate way"), judged)
    log.fail_next(LogUnavailable("no answer"))
    async with kept(lease):
        await until(lambda: len(said(log)) == 3, "the new life to be told", lambda: said(log))
    assert said(log)[-1] == node.Started(
        node="gate way", incarnation=lease.incarnation, version="1.0", url="http://here", previous=first
    )
