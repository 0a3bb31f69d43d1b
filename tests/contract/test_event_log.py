"""What every implementation of the log promises (``service/log/port.py``), on the one in memory and on the real one."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import subjects, trace
from events.envelope import Recorded
from events.errors import Conflict, HublogError, KeyReused, LogRegressed, LogUnavailable, PayloadTooLarge
from events.ids import HubName, is_epoch
from events.trace import Traced
from lab.nats_cluster import NatsCluster
from service.log.memory import matches
from service.log.port import APPEND_EVENTS_MAX, EventLog, LiveFeed, Stored
from service.up.nats_server import NatsServer
from tests.servers.cluster import REPLICAS, straight_cluster
from tests.servers.event_logs import PARTITIONS, Bench, MemoryBench, event, jetstream_bench, numbered, until
from tests.servers.nats import delete_all_streams

__all__ = ["straight_cluster"]
HELD = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=["memory", "jetstream", "cluster"])
async def bench(
    request: pytest.FixtureRequest, nats_server: NatsServer, straight_cluster: NatsCluster
) -> AsyncIterator[Bench]:
    if request.param == "memory":
        yield MemoryBench()
    elif request.param == "jetstream":
        await delete_all_streams(nats_server.url)
        async with jetstream_bench(nats_server.url) as made:
            yield made
    else:
        url = straight_cluster.url_of(0)
        await delete_all_streams(url)
        async with jetstream_bench(url, REPLICAS) as made:
            yield made


def hub(number: int = 0) -> subjects.HubSubjects:
    """Subjects of a hub that lies in a certain partition."""
    while True:
        found = subjects.HubSubjects(HubName(f"h{secrets.token_hex(4)}"), PARTITIONS)
        if found.partition == number:
            return found


class Outcomes:
    """Collects what ``done`` was called with, in order."""

    def __init__(self) -> None:
        self.all: list[Stored | HublogError] = []

    def __call__(self, outcome: Stored | HublogError) -> None:
        self.all.append(outcome)

    async def reach(self, count: int) -> list[Stored | HublogError]:
        await until(lambda: len(self.all) >= count)
        return self.all


class Heard:
    """Collects what a subscription brings."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int, bytes]] = []

    def __call__(self, subject: str, sequence: int, previous: int, payload: bytes) -> None:
        self.all.append((subject, sequence, previous, payload))

    async def reach(self, count: int) -> list[tuple[str, int, int, bytes]]:
        await until(lambda: len(self.all) >= count)
        return self.all


# -- what it is


async def test_it_has_an_epoch_and_partitions(bench: Bench) -> None:
    log: EventLog = bench.log
    feed: LiveFeed = bench.log
    assert is_epoch(log.epoch)
    assert log.partitions == PARTITIONS
    assert feed.connected
    assert await log.last_sequence(0) == 0
    assert await log.first_sequence(0) == 1


# -- append


async def test_what_is_appended_is_the_last_event_byte_for_byte(bench: Bench) -> None:
    subject = hub().session("s")
    written = event(bytes(range(256)), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    sequence = await bench.log.append(subject, [written], 0)
    found = await bench.log.last(subject)
    assert found is not None
    assert (found.subject, found.sequence, found.payload) == (subject, sequence, written.payload)
    assert abs(found.stored_at_us / 1e6 - time.time()) < 60
    assert f"Nats-Msg-Id: {written.id}".encode() in found.headers


async def test_append_is_refused_when_the_subject_has_moved(bench: Bench) -> None:
    subject = hub().session("s")
    first = await bench.log.append(subject, [event()], 0)
    with pytest.raises(Conflict):
        await bench.log.append(subject, [event()], 0)
    with pytest.raises(Conflict):
        await bench.log.append(subject, [event(), event()], first + 1)
    assert await bench.log.last_sequence(0) == first
    second = await bench.log.append(subject, [event()], first)
    assert second == first + 1


async def test_other_subjects_do_not_matter_to_the_condition(bench: Bench) -> None:
    names = hub()
    first = await bench.log.append(names.session("a"), [event()], 0)
    await bench.log.publish(names.group("g"), event())
    await bench.log.append(names.session("b"), [event()], 0)
    assert await bench.log.append(names.session("a"), [event()], first) == first + 3


async def test_several_events_are_contiguous_and_all_or_none(bench: Bench) -> None:
    subject = hub().room("ABC")
    written = list(numbered(APPEND_EVENTS_MAX))
    last = await bench.log.append(subject, written, 0)
    assert last == APPEND_EVENTS_MAX
    with pytest.raises(Conflict):
        await bench.log.append(subject, list(numbered(3)), last - 1)
    assert await bench.log.append(subject, list(numbered(3)), last) == last + 3
    found = [one async for one in bench.log.read(subject, 1, last)]
    assert [one.payload for one in found] == [one.payload for one in written]
    assert [one.sequence for one in found] == list(range(1, last + 1))


@pytest.mark.parametrize("count", [0, APPEND_EVENTS_MAX + 1])
async def test_an_append_has_1_to_1000_events(bench: Bench, count: int) -> None:
    with pytest.raises(ValueError, match="events in one append"):
        await bench.log.append(hub().session("s"), list(numbered(count)), 0)


async def test_of_many_writers_one_wins(bench: Bench) -> None:
    subject = hub().session("s")
    other = await bench.another()
    logs = [bench.log, other] * 10
    outcomes = await asyncio.gather(*(log.append(subject, [event()], 0) for log in logs), return_exceptions=True)
    won = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(won) == 1
    assert all(isinstance(outcome, Conflict) for outcome in outcomes if not isinstance(outcome, int))
    assert await other.last_sequence(0) == won[0]


async def test_batches_of_two_writers_do_not_mix(bench: Bench) -> None:
    names, other = hub(), await bench.another()
    batches = [[event(b"%d" % number) for _ in range(5)] for number in range(16)]
    await asyncio.gather(
        *(
            (bench.log, other)[number % 2].append(names.session(str(number)), batch, 0)
            for number, batch in enumerate(batches)
        )
    )
    payloads = [one.payload async for one in bench.log.read("ev.0.>", 1, 80)]
    assert len(payloads) == 80
    assert all(len(set(payloads[at : at + 5])) == 1 for at in range(0, 80, 5))


async def test_an_event_that_is_there_is_not_stored_again(bench: Bench) -> None:
    names, written = hub(), event()
    first = await bench.log.append(names.session("s"), [written], 0)
    assert await bench.log.append(names.session("s"), [written], first) == first
    with pytest.raises(KeyReused):
        await bench.log.append(names.session("other"), [written], 0)
    with pytest.raises(Conflict):
        await bench.log.append(names.session("s"), [written, event()], first)
    assert await bench.log.last_sequence(0) == first


async def test_too_large_is_said_and_hurts_nobody(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    with pytest.raises(PayloadTooLarge):
        await bench.log.append(names.session("s"), [event(b"x" * 1024 * 1024)], 0)
    bench.log.submit(names.all(), event(b"x" * 1024 * 1024), outcomes)
    bench.log.submit(names.all(), event(), outcomes)
    assert [type(outcome) for outcome in await outcomes.reach(2)] == [PayloadTooLarge, Stored]
    assert await bench.log.last_sequence(0) == 1


async def test_a_subject_is_written_one_way_only(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    for subject in (names.group("g"), names.inbox("s"), names.all(), names.many(), names.user("r"), subjects.node("n")):
        with pytest.raises(ValueError, match="unconditionally"):
            await bench.log.append(subject, [event()], 0)
    for subject in (names.session("s"), names.room("r")):
        with pytest.raises(ValueError, match="conditionally"):
            bench.log.submit(subject, event(), outcomes)
    assert outcomes.all == []


# -- submit


async def test_submitted_events_are_stored_in_the_order_of_the_calls(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    for number in range(3_000):
        bench.log.submit(names.group(f"g{number % 7}"), event(str(number).encode()), outcomes)
    assert outcomes.all == []  # never from inside the call
    stored = await outcomes.reach(3_000)
    assert stored == [Stored(sequence) for sequence in range(1, 3_001)]
    found = [one.payload async for one in bench.log.read("ev.0.>", 1, 3_000)]
    assert found == [str(number).encode() for number in range(3_000)]
    assert len(outcomes.all) == 3_000


async def test_the_same_id_is_stored_once(bench: Bench) -> None:
    names, written = hub(), event()
    first = await bench.log.publish(names.all(), written)
    assert first == Stored(1)
    assert await bench.log.publish(names.all(), written) == Stored(1, duplicate=True)
    other = await bench.another()
    assert await other.publish(names.all(), written) == Stored(1, duplicate=True)
    assert await bench.log.last_sequence(0) == 1


async def test_partitions_are_separate(bench: Bench) -> None:
    assert await bench.log.publish(hub(0).all(), event()) == Stored(1)
    assert await bench.log.publish(hub(1).all(), event()) == Stored(1)
    assert await bench.log.publish(hub(1).all(), event()) == Stored(2)
    assert [await bench.log.last_sequence(number) for number in range(PARTITIONS)] == [1, 2]


# -- reading


async def test_nothing_is_found_where_nothing_is(bench: Bench) -> None:
    names = hub()
    await bench.log.publish(names.all(), event())
    assert await bench.log.last(names.group("g")) is None
    assert await bench.log.last_many([]) == {}
    assert await bench.log.last_many([names.group("g")]) == {}
    assert await bench.log.last_many([names.all()], up_to=0) == {}
    assert [one async for one in bench.log.read(names.group("g"), 1, 10)] == []
    assert [one async for one in bench.log.read(names.all(), 2, 10)] == []
    assert [one async for one in bench.log.read(names.all(), 2, 1)] == []


async def test_every_way_of_reading_gives_the_same(bench: Bench) -> None:
    names = hub()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    written = [event(b"one"), event(b"", traceparent=trace), event(b"\r\nNats-Stream: x\r\n")]
    await bench.log.append(names.session("s"), written, 0)
    last = await bench.log.last(names.session("s"))
    read = [one async for one in bench.log.read(names.session("s"), 1, 3)]
    followed: list[Recorded] = []
    async with aclosing(bench.log.follow(0, 0)) as batches:
        async for batch in batches:
            followed += batch
            if len(followed) == 3:
                break
    assert last == read[-1]
    assert await bench.log.last_many([names.session("s")]) == {names.session("s"): last}
    assert read == followed


async def test_the_last_of_thousands_at_once(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    wanted = [names.group(f"a room with spaces, ünïcödé and * > . no. {number}") for number in range(2_300)]
    for subject in wanted * 2:
        bench.log.submit(subject, event(subject.encode()), outcomes)
    await outcomes.reach(4_600)
    found = await bench.log.last_many([*wanted, names.group("none")])
    assert {subject: one.sequence for subject, one in found.items()} == {
        subject: number for number, subject in enumerate(wanted, 2_301)
    }
    before = await bench.log.last_many(wanted, up_to=2_400)
    assert before[wanted[99]].sequence == 2_400
    assert before[wanted[100]].sequence == 101


# Histories: which of five subjects each event goes to.
histories = st.lists(st.integers(0, 4), min_size=1, max_size=40)


@HELD
@given(history=histories, to=st.integers(0, 42), start=st.integers(0, 42))
async def test_reading_agrees_with_a_plain_list(bench: Bench, history: list[int], to: int, start: int) -> None:
    names = hub()
    of = [names.group("a"), names.group("b"), names.inbox("a"), names.user("a"), names.all()]
    base = await bench.log.last_sequence(0)
    outcomes = Outcomes()
    for number, choice in enumerate(history):
        bench.log.submit(of[choice], event(b"%d" % number), outcomes)
    await outcomes.reach(len(history))
    model = [(base + number, of[choice]) for number, choice in enumerate(history, 1)]
    up_to, low = base + min(to, len(history)), base + start
    last = {subject: sequence for sequence, subject in model if sequence <= up_to}
    found = await bench.log.last_many(of, up_to)
    assert {subject: one.sequence for subject, one in found.items()} == last
    for pattern in (*of, f"{names.prefix}.>", f"{names.prefix}.*.a", f"{names.prefix}.g.*"):
        expected = [sequence for sequence, subject in model if low <= sequence <= up_to and matches(pattern, subject)]
        assert [one.sequence async for one in bench.log.read(pattern, low, up_to)] == expected
    for subject in of:
        final = await bench.log.last(subject)
        whole = [sequence for sequence, written in model if written == subject]
        assert (final.sequence if final is not None else None) == (whole[-1] if whole else None)


async def test_large_events_are_read_in_several_pieces(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    for number in range(24):
        bench.log.submit(names.all(), event(bytes([number]) * 900_000), outcomes)
    await outcomes.reach(24)
    assert [one.payload[0] async for one in bench.log.read(names.all(), 1, 24)] == list(range(24))
    seen: list[int] = []
    async with aclosing(bench.log.follow(0, 0)) as batches:
        async for batch in batches:
            seen += [one.payload[0] for one in batch]
            if len(seen) == 24:
                break
    assert seen == list(range(24))


# -- follow


async def test_following_brings_everything_once_and_in_order(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    for number in range(2_500):
        bench.log.submit(names.group(str(number % 3)), event(str(number).encode()), outcomes)
    await outcomes.reach(2_500)
    sizes: list[int] = []
    sequences: list[int] = []
    async with aclosing(bench.log.follow(0, 7, batch_max=100)) as batches:
        async for batch in batches:
            sizes.append(len(batch))
            sequences += [one.sequence for one in batch]
            if sequences and sequences[-1] == 2_500:
                bench.log.submit(names.all(), event(), outcomes)
            if sequences and sequences[-1] == 2_501:
                break
    assert sequences == list(range(8, 2_502))
    assert max(sizes) <= 100


async def test_following_says_when_nothing_comes_and_goes_on(bench: Bench) -> None:
    names = hub()
    async with aclosing(bench.log.follow(0, 0)) as batches:
        assert await anext(batches) == []
        await bench.log.publish(names.all(), event(b"1"))
        assert [one.payload for one in await anext(batches)] == [b"1"]
        await bench.log.publish(names.all(), event(b"2"))
        assert [one.payload for one in await anext(batches)] == [b"2"]


async def test_following_beyond_the_end_is_a_regression(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.log.jetstream.read.FORMER_LEADER_S", 0.0)  # of several servers one may just be late
    await bench.log.publish(hub().all(), event())
    with pytest.raises(LogRegressed):
        await anext(bench.log.follow(0, 2))


# -- the live feed


async def test_what_is_submitted_after_subscribing_is_heard(bench: Bench) -> None:
    names, heard, outcomes = hub(), Heard(), Outcomes()
    bench.log.submit(names.all(), event(b"before"), outcomes)
    await outcomes.reach(1)
    bench.log.subscribe(names.all(), heard)
    bench.log.submit(names.all(), event(b"after"), outcomes)
    assert await heard.reach(1) == [(names.all(), 2, 1, b"after")]


async def test_appends_are_heard_too(bench: Bench) -> None:
    names, heard = hub(), Heard()
    bench.log.subscribe(names.session("s"), heard)
    await bench.log.append(names.session("s"), [event(b"1")], 0)
    await bench.log.publish(names.all(), event())
    await bench.log.append(names.session("s"), [event(b"2"), event(b"3")], 1)
    expected = [(1, 0, b"1"), (3, 1, b"2"), (4, 3, b"3")]
    assert [one[1:] for one in await heard.reach(3)] == expected


async def test_order_holds_across_subjects_and_subscriptions(bench: Bench) -> None:
    names, heard, outcomes = hub(), Heard(), Outcomes()
    other = await bench.another()
    for number in range(20):
        bench.log.subscribe(names.group(str(number)), heard)
    await bench.log.flush()
    for number in range(2_000):
        (bench.log if number % 2 else other).submit(names.group(str(number % 20)), event(b"%d" % number), outcomes)
    sequences = [one[1] for one in await heard.reach(2_000)]
    assert sequences == sorted(sequences)
    last: dict[str, int] = {}
    for subject, sequence, previous, _ in heard.all:
        assert previous == last.get(subject, 0)
        last[subject] = sequence


async def test_wildcards_and_unsubscribe(bench: Bench) -> None:
    names, heard, literal = hub(), Heard(), Heard()
    wild = bench.log.subscribe(f"{names.prefix}.>", heard)
    bench.log.subscribe(names.group("one"), literal)
    await bench.log.publish(names.group("one"), event())
    await bench.log.publish(names.user("two"), event())
    assert [one[0] for one in await heard.reach(2)] == [names.group("one"), names.user("two")]
    wild.unsubscribe()
    wild.unsubscribe()
    await bench.log.publish(names.group("one"), event())
    await literal.reach(2)
    assert len(heard.all) == 2


async def test_a_listener_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    names, heard = hub(), Heard()

    def fail(*_: object) -> None:
        raise RuntimeError("a defect of the listener")

    bench.log.subscribe(names.all(), fail)
    bench.log.subscribe(names.all(), heard)
    await bench.log.publish(names.all(), event(b"1"))
    await bench.log.publish(names.all(), event(b"2"))
    assert [one[3] for one in await heard.reach(2)] == [b"1", b"2"]


# -- going away and coming back


async def test_what_was_never_sent_is_refused_at_once(bench: Bench) -> None:
    names, outcomes, seen = hub(), Outcomes(), list[str]()
    bench.log.observe(lambda: seen.append("lost"), lambda: seen.append("regained"))
    bench.cut()
    await until(lambda: not bench.log.connected)
    assert seen == ["lost"]
    bench.log.submit(names.all(), event(), outcomes)
    assert outcomes.all == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(outcome) for outcome in outcomes.all] == [LogUnavailable]
    with pytest.raises(LogUnavailable):
        await bench.log.append(names.session("s"), [event()], 0)
    with pytest.raises(LogUnavailable):
        await bench.log.last(names.all())
    with pytest.raises(LogUnavailable):
        await bench.log.flush()
    bench.heal()
    await until(lambda: bench.log.connected)
    assert seen == ["lost", "regained"]
    assert await bench.log.publish(names.all(), event()) == Stored(1)


async def test_subscriptions_and_followers_survive(bench: Bench) -> None:
    names, heard = hub(), Heard()
    bench.log.subscribe(names.all(), heard)
    await bench.log.publish(names.all(), event(b"1"))
    await heard.reach(1)
    sequences: list[int] = []
    async with aclosing(bench.log.follow(0, 0)) as batches:
        sequences += [one.sequence for one in await anext(batches)]
        for _ in range(3):
            bench.cut()
            await until(lambda: not bench.log.connected)
            bench.heal()
            await until(lambda: bench.log.connected)
            await bench.log.publish(names.all(), event())
        async for batch in batches:
            sequences += [one.sequence for one in batch]
            if len(sequences) == 4:
                break
    assert sequences == [1, 2, 3, 4]
    assert [one[1] for one in await heard.reach(4)] == [1, 2, 3, 4]


async def test_a_subscription_made_while_disconnected_is_heard_afterwards(bench: Bench) -> None:
    names, heard, gone = hub(), Heard(), Heard()
    removed = bench.log.subscribe(names.all(), gone)
    bench.cut()
    await until(lambda: not bench.log.connected)
    bench.log.subscribe(names.all(), heard)
    removed.unsubscribe()
    bench.heal()
    await until(lambda: bench.log.connected)
    await bench.log.publish(names.all(), event())
    await heard.reach(1)
    assert gone.all == []


async def test_a_closed_log_refuses(bench: Bench) -> None:
    names, outcomes = hub(), Outcomes()
    bench.log.submit(names.all(), event(), outcomes)
    await bench.log.close()
    assert outcomes.all == [Stored(1)]
    bench.log.submit(names.all(), event(), outcomes)
    assert isinstance((await outcomes.reach(2))[1], LogUnavailable)
    with pytest.raises(LogUnavailable):
        await bench.log.append(names.session("s"), [event()], 0)


# -- leases


async def test_leases_keep_the_last_value_and_its_time(bench: Bench) -> None:
    assert await bench.log.lease_all() == {}
    assert await bench.log.lease_get("node.1") is None
    first = await bench.log.lease_put("node.1", b"a")
    assert await bench.log.lease_put("ünï *", b"x") > first
    assert await bench.log.lease_put("node.1", b"b") > first
    found = await bench.log.lease_all()
    assert {key: value for key, (value, _) in found.items()} == {"node.1": b"b", "ünï *": b"x"}
    assert await bench.log.lease_get("node.1") == found["node.1"]
    assert all(now >= before for before, now in pairwise(at_us for _, at_us in (found["ünï *"], found["node.1"])))


# -- traces


async def test_a_trace_context_stays_with_its_event_stored_and_live(bench: Bench) -> None:
    names, heard = hub(), []
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    bench.log.subscribe(names.all(), lambda _subject, _sequence, _previous, payload: heard.append(payload))
    header = b"\r\ntraceparent: " + context.encode()
    for written in (event(b"a", traceparent=context), event(header), event(b"c", traceparent="no context")):
        await bench.log.publish(names.all(), written)
    await until(lambda: len(heard) == 3)
    assert heard == [b"a", header, b"c"]
    assert [getattr(payload, "traceparent", None) for payload in heard] == [context, None, None]
    assert [type(payload) for payload in heard] == [Traced, bytes, bytes]
    stored = [trace.of(one.headers) async for one in bench.log.read(names.all(), 1, 3)]
    assert stored == [context, None, None]
