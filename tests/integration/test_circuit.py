"""The probe that moves NATS' circuit, and what the circuit does as it opens, on a real server that is stopped."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from events.errors import HublogError, LogUnavailable
from service.breaker import FAILURES_MAX
from service.log import jetstream
from service.log.jetstream import lane as lane_module
from service.log.port import Stored
from service.process.health import NatsHealth
from service.up.nats_server import NatsServer
from tests.servers.event_logs import JetStreamBench, event, jetstream_bench, numbered, until
from tests.servers.nats import MakeNats

GROUP = "ev.0.h.g.one"


@pytest.fixture
async def server(fresh_nats: MakeNats) -> NatsServer:
    return await fresh_nats()


@pytest.fixture
async def bench(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JetStreamBench]:
    monkeypatch.setattr(jetstream, "PROBE_TIMEOUT_S", 0.3)
    async with jetstream_bench(server.url) as made:
        yield made


@contextmanager
def stopped(server: NatsServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_a_server_that_is_stopped_is_silent_and_one_that_goes_on_is_not(
    bench: JetStreamBench, server: NatsServer
) -> None:
    await bench.log.probe()
    with stopped(server):
        assert bench.log.connected, "the socket says nothing"
        with pytest.raises(LogUnavailable, match=r"did not answer within 0\.3 s"):
            await bench.log.probe()
    await bench.log.probe()


async def test_an_answer_to_anybody_is_a_sign_of_life(bench: JetStreamBench, server: NatsServer) -> None:
    late = asyncio.create_task(bench.log.last("ev.0.h.all"))
    with stopped(server):
        probing = asyncio.create_task(bench.log.probe())
        await asyncio.sleep(0)
        # As if another question had been answered before the server fell behind with this one.
        bench.log._replies.heard += 1
        await probing
    assert await late is None


async def test_as_it_opens_what_was_never_sent_is_refused_and_what_was_sent_is_waited_for(
    bench: JetStreamBench, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "IN_FLIGHT_MAX", 5)
    health = NatsHealth(bench.log)
    outcomes: list[Stored | HublogError] = []
    with stopped(server):
        for one in numbered(8):
            health.guarded.submit(GROUP, one, outcomes.append)
        for _ in range(FAILURES_MAX):
            health.breaker.failed(0.0, "silence")
        assert [type(one) for one in outcomes] == [LogUnavailable] * 3
        health.guarded.submit(GROUP, event(b"late"), outcomes.append)
        await until(lambda: len(outcomes) == 4)
        assert isinstance(outcomes[3], LogUnavailable)
        check = dict(health.checks())["nats"]()
        assert isinstance(check, str)
        assert check.startswith("connected to NATS (HUBLOG_NATS_URL), but it has not answered for")
    await until(lambda: len(outcomes) == 9)
    assert [one.sequence for one in outcomes[4:] if isinstance(one, Stored)] == [1, 2, 3, 4, 5]
    assert await bench.log.last_sequence(0) == 5
