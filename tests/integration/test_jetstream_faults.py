"""Writing while network and server fail: nothing acknowledged is lost, nothing stored twice, nobody waits for ever.

The proxy stalls one direction, so that the server has stored what the client was never told of.
"""

import asyncio
from collections.abc import AsyncIterator

import nats.errors
import pytest

from events.envelope import NewEvent
from events.errors import Conflict, HublogError, LogOverloaded, LogUnavailable, OutcomeUnknown
from service.log.jetstream import append as append_module
from service.log.jetstream import client as client_module
from service.log.jetstream import jetstream_log
from service.log.jetstream import lane as lane_module
from service.log.jetstream.intake import Intake
from service.log.port import Stored
from tests.servers.event_logs import PARTITIONS, JetStreamBench, event, jetstream_bench, until
from tests.servers.nats import MakeNats

GROUP = "ev.0.h.g.one"
SESSION = "ev.0.h.s.one.log"


@pytest.fixture
async def bench(fresh_nats: MakeNats, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JetStreamBench]:
    monkeypatch.setattr(lane_module, "ACK_WAIT_S", 0.3)
    monkeypatch.setattr(append_module, "TICK_S", 0.05)
    monkeypatch.setattr(append_module, "CONDITIONAL_WAIT_S", 0.3)
    server = await fresh_nats()
    async with jetstream_bench(server.url) as made:
        yield made


def submit_all(bench: JetStreamBench, events: list[NewEvent]) -> list[Stored | HublogError]:
    outcomes: list[Stored | HublogError] = []
    for one in events:
        bench.log.submit(GROUP, one, outcomes.append)
    return outcomes


async def stored(bench: JetStreamBench) -> list[bytes]:
    witness = await bench.another()
    last = await witness.last_sequence(0)
    return [one.payload async for one in witness.read("ev.0.>", 1, last)]


async def reaches_the_server(bench: JetStreamBench, count: int) -> None:
    witness = await bench.another()
    async with asyncio.timeout(10):
        while await witness.last_sequence(0) < count:  # noqa: ASYNC110 — another process's store
            await asyncio.sleep(0.01)


# -- unconditional


async def test_lost_answers_are_found_by_sending_the_same_ids_again(bench: JetStreamBench) -> None:
    events = [event(b"%d" % number) for number in range(50)]
    bench.proxy.stall("down")
    outcomes = submit_all(bench, events)
    await reaches_the_server(bench, 50)
    bench.proxy.reset()
    bench.proxy.heal()
    await until(lambda: len(outcomes) == 50)
    assert outcomes == [Stored(sequence, duplicate=True) for sequence in range(1, 51)]
    assert await stored(bench) == [one.payload for one in events]


async def test_what_never_arrived_is_sent_again_in_order(bench: JetStreamBench) -> None:
    events = [event(b"%d" % number) for number in range(50)]
    bench.proxy.stall("up")
    outcomes = submit_all(bench, events)
    await asyncio.sleep(0)
    bench.proxy.reset()
    bench.proxy.heal()
    await until(lambda: len(outcomes) == 50)
    assert outcomes == [Stored(sequence) for sequence in range(1, 51)]
    assert await stored(bench) == [one.payload for one in events]


async def test_a_silent_server_is_asked_again_and_new_events_wait_behind(bench: JetStreamBench) -> None:
    first = [event(b"%d" % number) for number in range(10)]
    bench.proxy.stall("down")
    outcomes = submit_all(bench, first)
    lane = bench.log._writer._lanes[0]
    await until(lambda: lane.mending is not None)
    second = [event(b"later %d" % number) for number in range(10)]
    late = submit_all(bench, second)
    assert len(lane.held) == 10
    bench.proxy.heal()
    await until(lambda: len(outcomes) == 10 and len(late) == 10)
    assert [outcome.sequence for outcome in outcomes + late if isinstance(outcome, Stored)] == list(range(1, 21))
    assert await stored(bench) == [one.payload for one in first + second]
    assert lane.mending is None
    assert lane.bytes == 0
    assert not bench.log._replies._waiting


async def test_only_what_is_unclear_is_sent_again_and_not_before_the_rest_is_answered(bench: JetStreamBench) -> None:
    lane = bench.log._writer._lanes[0]
    bench.proxy.stall("down")
    outcomes = submit_all(bench, [event(b"%d" % number) for number in range(10)])
    lane.doubt(next(iter(lane.flying.values())))
    for _ in range(5):
        await asyncio.sleep(0)
    assert lane.repeated == 0
    bench.proxy.heal()
    await until(lambda: len(outcomes) == 10 and lane.mending is None)
    assert [outcome.sequence for outcome in outcomes if isinstance(outcome, Stored)] == list(range(1, 11))
    assert lane.repeated <= 1


async def test_held_events_that_were_never_sent_are_refused_when_the_connection_goes(bench: JetStreamBench) -> None:
    bench.proxy.stall("down")
    outcomes = submit_all(bench, [event(b"sent")])
    lane = bench.log._writer._lanes[0]
    await until(lambda: lane.mending is not None)
    held = submit_all(bench, [event(b"never sent")])
    bench.cut()
    await until(lambda: not bench.log.connected)
    assert [type(outcome) for outcome in held] == [LogUnavailable]
    assert outcomes == []
    bench.heal()
    await until(lambda: len(outcomes) == 1)
    assert outcomes == [Stored(1, duplicate=True)]
    assert await stored(bench) == [b"sent"]


async def test_the_queue_is_bounded(bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "IN_FLIGHT_MAX", 5)
    monkeypatch.setattr(lane_module, "HELD_MAX", 7)
    outcomes = submit_all(bench, [event(b"%d" % number) for number in range(20)])
    await until(lambda: len(outcomes) == 20)
    assert [type(outcome) for outcome in outcomes].count(LogOverloaded) == 8
    assert [one.sequence for one in outcomes if isinstance(one, Stored)] == list(range(1, 13))
    assert await stored(bench) == [b"%d" % number for number in range(12)]
    monkeypatch.setattr(lane_module, "LANE_BYTES_MAX", 2_000)
    outcomes = submit_all(bench, [event(b"x" * 1_000), event(b"y" * 1_000)])
    await until(lambda: len(outcomes) == 2)
    assert {type(outcome) for outcome in outcomes} == {LogOverloaded, Stored}


async def test_an_outage_longer_than_the_deadline_is_reported_as_unknown(
    bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "PUBLISH_DEADLINE_S", 0.5)
    bench.proxy.stall("down")
    outcomes = submit_all(bench, [event(b"%d" % number) for number in range(3)])
    await reaches_the_server(bench, 3)
    bench.cut()
    await until(lambda: len(outcomes) == 3)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3
    bench.heal()
    await until(lambda: bench.log.connected)
    assert await bench.log.publish(GROUP, event()) == Stored(4)


async def test_closing_answers_everybody_once(bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.log.jetstream.CLOSE_DEADLINE_S", 0.2)
    bench.proxy.stall("down")
    outcomes = submit_all(bench, [event(b"%d" % number) for number in range(5)])
    appending = asyncio.create_task(bench.log.append(SESSION, [event()], 0))
    lane = bench.log._writer._lanes[0]
    await until(lambda: lane.mending is not None)
    held = submit_all(bench, [event()])
    await bench.log.close()
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 5
    assert [type(outcome) for outcome in held] == [LogUnavailable]
    with pytest.raises(OutcomeUnknown):
        await appending


async def test_a_killed_server_keeps_what_it_acknowledged_and_answers_with_the_first_sequence(
    fresh_nats: MakeNats,
) -> None:
    server = await fresh_nats()
    async with jetstream_bench(server.url) as bench:
        events = [event(b"%d" % number) for number in range(400)]
        for kill_at in (100, 200, 300):
            bench.proxy.stall("down")
            outcomes = submit_all(bench, events[:kill_at])
            await reaches_the_server(bench, kill_at)
            await server.kill()
            bench.proxy.reset()
            bench.proxy.heal()
            await server.restart()
            await until(lambda: len(outcomes) == kill_at)  # noqa: B023 — awaited here
            assert [one.sequence for one in outcomes if isinstance(one, Stored)] == list(range(1, kill_at + 1))
        assert await stored(bench) == [one.payload for one in events[:300]]


async def test_kill_9_in_the_middle_of_a_stream_of_submits(fresh_nats: MakeNats) -> None:
    server = await fresh_nats()
    async with jetstream_bench(server.url) as bench:
        outcomes: dict[bytes, list[Stored | HublogError]] = {}
        number = 0

        async def load() -> None:
            nonlocal number
            while True:
                for _ in range(20):
                    one = event(b"%d" % number)
                    number += 1
                    outcomes[one.payload] = []
                    bench.log.submit(GROUP, one, outcomes[one.payload].append)
                await asyncio.sleep(0.002)

        loading = asyncio.create_task(load())
        for _ in range(3):
            acknowledged = number
            await until(lambda: number > acknowledged + 200)  # noqa: B023 — awaited here
            await server.kill()
            await server.restart()
            await until(lambda: bench.log.connected)
        loading.cancel()
        await until(lambda: all(outcomes.values()))
        assert all(len(one) == 1 for one in outcomes.values())
        kept = {p: o[0] for p, o in outcomes.items() if isinstance(o[0], Stored)}
        refused = {p for p, o in outcomes.items() if isinstance(o[0], LogUnavailable)}
        assert len(kept) + len(refused) == len(outcomes)
        there = await stored(bench)
        assert len(set(there)) == len(there)
        assert there == list(kept)  # in the order of the calls, and nothing that was refused
        assert [there[o.sequence - 1] for o in kept.values()] == there


# -- conditional


async def test_an_append_whose_answer_was_lost_is_found(bench: JetStreamBench) -> None:
    bench.proxy.stall("down")
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"1")], 0))
    await reaches_the_server(bench, 1)
    bench.proxy.reset()
    bench.proxy.heal()
    assert await appending == 1
    assert await stored(bench) == [b"1"]


async def test_a_batch_whose_answer_was_lost_is_found(bench: JetStreamBench) -> None:
    bench.proxy.stall("down")
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"1"), event(b"2"), event(b"3")], 0))
    await reaches_the_server(bench, 3)
    bench.proxy.reset()
    bench.proxy.heal()
    assert await appending == 3
    assert await stored(bench) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("count", [1, 3])
async def test_an_append_that_never_arrived_is_sent_again(bench: JetStreamBench, count: int) -> None:
    bench.proxy.stall("up")
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"%d" % n) for n in range(count)], 0))
    await asyncio.sleep(0)
    await until(lambda: bool(bench.log._replies._waiting))
    bench.proxy.reset()
    bench.proxy.heal()
    assert await appending == count
    assert len(await stored(bench)) == count


@pytest.mark.parametrize("count", [1, 3])
async def test_of_copies_that_arrive_late_one_is_stored(bench: JetStreamBench, count: int) -> None:
    bench.proxy.stall("up")  # what is sent, and sent again, arrives all together afterwards
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"%d" % n) for n in range(count)], 0))
    before = bench.log._replies._last
    await until(lambda: bench.log._replies._last >= before + 2)
    bench.proxy.heal()
    assert await appending == count
    assert await stored(bench) == [b"%d" % n for n in range(count)]


async def test_an_unanswered_append_that_another_has_overtaken_is_a_conflict(bench: JetStreamBench) -> None:
    other = await bench.another()
    bench.proxy.stall("up")
    before = bench.log._replies._last
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"mine")], 0))
    await until(lambda: bench.log._replies._last >= before + 2)  # so that the answer may be about a copy of our own
    await other.append(SESSION, [event(b"theirs")], 0)
    bench.proxy.heal()
    with pytest.raises(Conflict):
        await appending
    assert await stored(bench) == [b"theirs"]


async def test_an_append_that_nobody_can_settle_in_time_is_unknown(
    bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "CONDITIONAL_DEADLINE_S", 0.5)
    bench.proxy.stall("down")
    appending = asyncio.create_task(bench.log.append(SESSION, [event(b"1")], 0))
    await reaches_the_server(bench, 1)
    bench.cut()
    with pytest.raises(OutcomeUnknown):
        await appending
    bench.heal()
    await until(lambda: bench.log.connected)
    with pytest.raises(Conflict):
        await bench.log.append(SESSION, [event(b"2")], 0)


async def test_an_append_survives_kill_9(fresh_nats: MakeNats) -> None:
    server = await fresh_nats()
    async with jetstream_bench(server.url) as bench:
        expected = 0
        for count in (1, 4, 1, 4):
            bench.proxy.stall("down")
            events = [event() for _ in range(count)]
            appending = asyncio.create_task(bench.log.append(SESSION, events, expected))
            await reaches_the_server(bench, expected + count)
            await server.kill()
            bench.proxy.reset()
            bench.proxy.heal()
            await server.restart()
            expected += count
            assert await appending == expected
        assert len(await stored(bench)) == expected


# -- the connection


async def test_the_disconnect_is_told_before_anything_that_comes_after_it(bench: JetStreamBench) -> None:
    seen: list[str | int] = []
    bench.log.observe(lambda: seen.append("lost"), lambda: seen.append("regained"))
    bench.log.subscribe("ev.0.>", lambda _s, sequence, _p, _b: seen.append(sequence))
    await bench.log.flush()
    writer = await bench.another()
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await writer.publish(GROUP, event())

    loading = asyncio.create_task(load())
    for _ in range(5):
        before = len(seen)
        await until(lambda: len(seen) > before + 20)  # noqa: B023 — awaited here
        bench.proxy.reset()
        await until(lambda: not bench.log.connected)
        await until(lambda: bench.log.connected)
    stop.set()
    await loading
    last = await writer.last_sequence(0)
    await until(lambda: seen[-1] == last)
    assert seen.count("lost") == seen.count("regained") == 5
    previous, lost_since = 0, False
    for one in seen:
        if isinstance(one, str):
            lost_since = True
            continue
        assert one == previous + 1 or (lost_since and one > previous), "a hole that no disconnect announced"
        previous, lost_since = one, False


async def test_a_peer_that_is_silent_is_taken_for_gone(bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PING_INTERVAL_S", 0.1)
    log = await jetstream_log(bench.proxy.url(bench.url), name="pinging", partitions=PARTITIONS)
    bench.proxy.stall()
    await until(lambda: not log.connected)
    bench.proxy.heal()
    await until(lambda: log.connected)
    assert await log.last_sequence(0) == 0
    await log.close()


async def test_a_server_that_does_not_answer_a_flush_is_taken_for_gone(bench: JetStreamBench) -> None:
    bench.proxy.stall("down")
    with pytest.raises(nats.errors.Error):
        await bench.log._client.flush(0.05)
    await until(lambda: not bench.log.connected)
    bench.proxy.heal()
    await until(lambda: bench.log.connected)
    await bench.log.flush()
    assert await bench.log.publish(GROUP, event()) == Stored(1)


async def test_no_server_at_start_is_said_by_the_deadline() -> None:
    with pytest.raises(LogUnavailable, match="no connection to NATS"):
        await jetstream_log("nats://127.0.0.1:1", name="nobody", deadline_s=0.5)


async def test_wrong_credentials_are_named(bench: JetStreamBench) -> None:
    wrong = bench.url.replace("://hublog:", "://hublog:not-")
    with pytest.raises(LogUnavailable, match=r"(?i)authorization"):
        await jetstream_log(wrong, name="stranger", deadline_s=2.0)


async def test_closing_while_disconnected_ends_at_once(bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.log.jetstream.CLOSE_DEADLINE_S", 0.1)
    following = asyncio.create_task(anext(bench.log.follow(0, 0)))
    outcomes = submit_all(bench, [event()])
    bench.cut()
    await until(lambda: not bench.log.connected)
    await asyncio.wait_for(bench.log.close(), 5)
    assert [type(outcome) for outcome in outcomes] in ([OutcomeUnknown], [Stored])
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_an_error_of_the_server_ends_the_connection_not_the_client(bench: JetStreamBench) -> None:
    bench.log._client._write(b"NONSENSE\r\n")
    await until(lambda: not bench.log.connected)
    await until(lambda: bench.log.connected)
    assert await bench.log.publish(GROUP, event()) == Stored(1)


async def test_a_reading_loop_that_dies_is_a_lost_connection(
    bench: JetStreamBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = bench.log._client._ps
    parse = parser.parse

    async def fail_once(data: bytes = b"") -> None:
        monkeypatch.setattr(parser, "parse", parse)
        raise RuntimeError("a defect of the driver")

    monkeypatch.setattr(parser, "parse", fail_once)
    monkeypatch.setattr(Intake, "_take_whole", lambda _intake, _data: 0)  # so that the answer, too, is for that loop
    outcomes = submit_all(bench, [event()])
    await until(lambda: not bench.log.connected)
    await until(lambda: len(outcomes) == 1)
    assert outcomes == [Stored(1, duplicate=True)]


async def test_a_reading_that_loses_its_connection_says_so_as_any_other(bench: JetStreamBench) -> None:
    """It asks for several chunks at once; whoever repairs a delivery waits for one error, not for a group of them."""
    await bench.log.publish(GROUP, event())
    bench.proxy.stall("down")
    reading = asyncio.create_task(bench.log.last_many([GROUP, *(f"ev.0.h.g.{number}" for number in range(2_500))]))
    await asyncio.sleep(0)
    await until(lambda: len(bench.log._replies._waiting) > 1)
    bench.cut()
    with pytest.raises(LogUnavailable):
        await reading
