"""Every answer of JetStream to a write that means something to us, met on three real servers.

| answer | what it means | met in |
|---|---|---|
| 10071 | wrong last sequence | ``test_10071_...`` |
| 10164 | another write to the subject is under way | ``test_10164_...`` |
| 10158 | a write with the same id is under way | ``test_10158_...`` |
| duplicate | stored already | ``test_duplicate_...`` |
| 10201 | a batch with an id that is known | ``test_10201_...`` |
| 10176 | a batch that is not whole | ``test_10176_and_10210_...`` |
| 10210 | too many batches are under way | the same: our batches ask at their end only, and hear 10176 |
| 10199 | a batch of more than 1,000 | ``test_10199_...`` |
| 10167 | too much waits for the stream | ``test_10167_...``: a proxy gives this answer, see there |
| 503 | nobody leads the stream | ``test_503_...`` |
| 10077 | the store takes no more | ``test_10077_...`` |
| no answer | nobody knows | ``test_no_answer_...`` |

Each test looks at the answers themselves, as they came over the wire, and at what became of the write.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import nats
import pytest
import pytest_asyncio

from events import codec
from events.envelope import NewEvent
from events.errors import Conflict, HublogError, Internal, LogFull, OutcomeUnknown
from events.ids import SessionId
from lab.nats_cluster import NatsCluster, nats_cluster
from service.log.jetstream import JetStreamLog, jetstream_log
from service.log.jetstream import append as append_module
from service.log.port import Stored
from service.sessions.manager import session_manager
from service.sessions.registry import NewSession
from tests.servers.cluster import ON_ONE_LOOP, REPLICAS, migrate_cluster
from tests.servers.event_logs import event, until
from tests.servers.nats import delete_all_streams
from tests.servers.proxy import proxy_to

pytestmark = ON_ONE_LOOP
FAILOVER_S = 30.0
SESSION = "ev.0.h.s.one.log"
GROUP = "ev.0.h.g.one"

ACK = re.compile(rb'MSG (\S+) (\d+) \d+\r\n\{"stream":"EV_0", ?"seq":[^\r]*\r\n')
TOO_MANY = b'{"error":{"code":429,"err_code":10167,"description":"too many requests"},"stream":"EV_0","seq":0}'

Answer = tuple[int, bool]  # the error's code (503 where nobody heard the question, 0 for none), and duplicate


class Process:
    """A log of its own, and every answer to what it wrote."""

    def __init__(self, log: JetStreamLog) -> None:
        self.log = log
        self.answers: list[Answer] = []
        inbox = next(one for one in log._client._subs.values() if one._subject.startswith(log._replies._prefix))
        hand_on = inbox.callback

        def heard(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            self.answers.append(_answer(payload, headers))
            hand_on(subject, reply, payload, headers)

        inbox.callback = heard

    @property
    def codes(self) -> set[int]:
        return {code for code, _ in self.answers}

    def submit(self, *events: NewEvent) -> list[Stored | HublogError]:
        outcomes: list[Stored | HublogError] = []
        for one in events:
            self.log.submit(GROUP, one, outcomes.append)
        return outcomes


def _answer(payload: bytes, headers: bytes | None) -> Answer:
    if headers is not None and headers.startswith(b"NATS/1.0 503"):
        return 503, False
    if headers is not None:
        return 0, False  # a message that was read back
    decoded = json.loads(payload)
    return (decoded.get("error") or {}).get("err_code", 0), bool(decoded.get("duplicate"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    async with nats_cluster(folder, proxied=True, advertise=False) as made:
        yield made


class Field:
    """Processes on servers of one's choice, and the leader of the stream at the beginning."""

    def __init__(self, cluster: NatsCluster, leader: int, stack: AsyncExitStack) -> None:
        self.cluster, self.leader, self._stack = cluster, leader, stack
        self.others = [node.index for node in cluster.nodes if node.index != leader]

    async def process(self, server: int) -> Process:
        log = await jetstream_log(self.cluster.url_of(server), name="test", replicas=REPLICAS)
        self._stack.push_async_callback(log.close)
        return Process(log)

    def hold_back_votes(self) -> None:
        """What the leader is given it proposes, and nobody agrees until ``cluster.heal()``."""
        for other in self.others:
            self.cluster.mute(other, self.leader)

    async def stored(self) -> list[bytes]:
        witness = (await self.process(self.others[0])).log
        return [one.payload async for one in witness.read("ev.0.>", 1, await witness.last_sequence(0))]


@pytest_asyncio.fixture(loop_scope="module")
async def field(cluster: NatsCluster) -> AsyncIterator[Field]:
    await delete_all_streams(cluster.url_of(0))
    await migrate_cluster(cluster)
    async with AsyncExitStack() as stack:
        yield Field(cluster, await cluster.leader_of("EV_0"), stack)
    cluster.heal()
    for node in cluster.nodes:
        if node.pid is None:  # of a test that failed
            await cluster.launch(node.index)
    await cluster.ready()


async def test_10071_another_was_first(field: Field) -> None:
    here, there = await field.process(field.leader), await field.process(field.others[0])
    assert await here.log.append(SESSION, [event(b"first")], 0) == 1
    with pytest.raises(Conflict):
        await there.log.append(SESSION, [event(b"second")], 0)
    assert there.codes == {10071}
    assert await field.stored() == [b"first"]


async def test_10164_another_is_under_way_on_the_subject(field: Field) -> None:
    one, other = await field.process(field.leader), await field.process(field.leader)
    field.hold_back_votes()
    first = asyncio.create_task(one.log.append(SESSION, [event(b"first")], 0))
    await asyncio.sleep(0)
    await one.log.flush()
    with pytest.raises(Conflict) as refused:
        await other.log.append(SESSION, [event(b"second")], 0)
    assert other.codes == {10164}
    assert refused.value.details["err_code"] == 10164
    field.cluster.heal()
    assert await first == 1
    with pytest.raises(Conflict):
        await other.log.append(SESSION, [event(b"second")], 0)
    assert await field.stored() == [b"first"]


async def test_10158_the_same_id_is_under_way(field: Field) -> None:
    one, other = await field.process(field.leader), await field.process(field.leader)
    field.hold_back_votes()
    written = event(b"once")
    first = one.submit(written)
    await one.log.flush()
    second = other.submit(written)
    await until(lambda: 10158 in other.codes)
    assert (first, second) == ([], [])  # it is repeated until somebody knows
    field.cluster.heal()
    await until(lambda: len(first) == len(second) == 1, FAILOVER_S)
    assert first == [Stored(1)]
    assert second == [Stored(1, duplicate=True)]
    assert await field.stored() == [b"once"]


async def test_duplicate_is_success(field: Field) -> None:
    here, there = await field.process(field.leader), await field.process(field.others[0])
    written, opened = event(b"call"), event(b"opened")
    assert await here.log.publish(GROUP, written) == Stored(1)
    assert await there.log.publish(GROUP, written) == Stored(1, duplicate=True)
    assert await here.log.append(SESSION, [opened], 0) == 2
    assert await there.log.append(SESSION, [opened], 0) == 2  # on one server this would have been 10071
    assert there.answers.count((0, True)) == 2
    assert await field.stored() == [b"call", b"opened"]


async def test_10201_a_batch_that_is_there_is_found_and_another_is_a_conflict(field: Field) -> None:
    here, there = await field.process(field.leader), await field.process(field.others[0])
    batch = [event(b"1"), event(b"2")]
    assert await here.log.append(SESSION, batch, 0) == 2
    assert await there.log.append(SESSION, batch, 0) == 2
    assert 10201 in there.codes
    with pytest.raises(Conflict) as refused:
        await there.log.append(SESSION, [batch[0], event(b"3")], 2)
    assert refused.value.details["err_code"] == 10201
    assert await field.stored() == [b"1", b"2"]


async def test_10176_and_10210_too_many_batches_are_waited_for(field: Field) -> None:
    here = await field.process(field.others[0])
    client = await nats.connect(field.cluster.url_of(field.others[0]), allow_reconnect=False)
    codes: list[int] = []
    for number in range(51):  # begun, and not ended
        headers = {"Nats-Batch-Id": f"b{number}", "Nats-Batch-Sequence": "1"}
        answer = await client.request("ev.0.h.s.other.log", b"{}", headers=headers)
        codes.append(json.loads(answer.data)["error"]["err_code"] if answer.data else 0)
    assert codes == [0] * 50 + [10210]
    appending = asyncio.create_task(here.log.append(SESSION, [event(b"1"), event(b"2")], 0))
    await until(lambda: 10176 in here.codes)
    for number in range(50):  # abandoned: their ends come before what lies between
        headers = {"Nats-Batch-Id": f"b{number}", "Nats-Batch-Sequence": "3", "Nats-Batch-Commit": "1"}
        answer = await client.request("ev.0.h.s.other.log", b"{}", headers=headers)
        assert json.loads(answer.data)["error"]["err_code"] == 10176
    await client.close()
    assert await appending == 2
    assert await field.stored() == [b"1", b"2"]


async def test_10199_a_batch_of_more_than_a_thousand_is_refused(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    here = await field.process(field.leader)
    many = [event() for _ in range(1_001)]
    with pytest.raises(ValueError, match="1 to 1000"):  # nobody here sends one
        await here.log.append(SESSION, many, 0)
    monkeypatch.setattr(append_module, "APPEND_EVENTS_MAX", len(many))
    with pytest.raises(Internal) as refused:
        await here.log.append(SESSION, many, 0)
    assert refused.value.details["err_code"] == 10199
    assert await field.stored() == []


class Overloaded:
    """Says in the server's place, to the first so many writes, that it takes none; they are stored all the same."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, chunk: bytes) -> bytes:
        return ACK.sub(self._instead, chunk)

    def _instead(self, found: re.Match[bytes]) -> bytes:
        if self.left == 0:
            return found[0]
        self.left -= 1
        return b"MSG %b %b %d\r\n%b\r\n" % (found[1], found[2], len(TOO_MANY), TOO_MANY)


async def test_10167_what_is_too_much_is_sent_again_in_order(field: Field) -> None:
    """The answer is a proxy's: the server gives it with more than 10,000 writes outstanding, which this machine never
    has. One that was meant would not have stored anything; here the repeats find what is stored.
    """
    async with proxy_to("127.0.0.1", field.cluster.nodes[field.leader].port) as proxy:
        log = await jetstream_log(proxy.url(field.cluster.url_of(field.leader)), name="edited", replicas=REPLICAS)
        here = Process(log)
        proxy.edit = overloaded = Overloaded(3)
        events = [event(b"%d" % number) for number in range(5)]
        outcomes = here.submit(*events)
        await until(lambda: len(outcomes) == 5)
        assert overloaded.left == 0
        assert [one.sequence for one in outcomes if isinstance(one, Stored)] == [4, 5, 1, 2, 3]
        overloaded.left = 2
        assert await log.append(SESSION, [event(b"opened")], 0) == 6
        assert [code for code, _ in here.answers].count(10167) == 5
        assert await field.stored() == [*(one.payload for one in events), b"opened"]
        await log.close()


async def test_503_nobody_leads(field: Field) -> None:
    here = await field.process(field.others[0])
    assert await here.log.publish(GROUP, event(b"before")) == Stored(1)
    await field.cluster.kill(field.leader)
    outcomes = here.submit(event(b"during"))
    with pytest.raises(HublogError) as refused:
        await here.log.append(SESSION, [event(b"refused")], 0)
    assert refused.value.retryable
    await until(lambda: 503 in here.codes, FAILOVER_S)
    await until(lambda: outcomes == [Stored(2)], FAILOVER_S)
    assert await field.stored() == [b"before", b"during"]
    await field.cluster.restart(field.leader)


async def test_who_starts_while_nobody_leads_waits_until_somebody_does(field: Field) -> None:
    await field.cluster.kill(field.leader)
    here = await field.process(field.others[0])
    assert await here.log.last_sequence(0) == 0
    await field.cluster.restart(field.leader)


async def test_10077_a_store_that_is_full_is_said_to_be(field: Field) -> None:
    here = await field.process(field.leader)
    config = (await field.cluster.ask("STREAM.INFO.EV_0"))["config"]
    assert "error" not in await field.cluster.ask("STREAM.UPDATE.EV_0", config | {"max_bytes": 2_000})
    await here.log.publish(GROUP, event(b"x" * 1_500))
    with pytest.raises(LogFull):
        await here.log.publish(GROUP, event(b"x" * 1_500))
    with pytest.raises(LogFull):
        await here.log.append(SESSION, [event(b"x" * 1_500)], 0)
    assert 10077 in here.codes
    assert await here.log.last_sequence(0) == 1


async def test_no_answer_is_resolved_by_asking_again_or_by_reading_back(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "CONDITIONAL_DEADLINE_S", FAILOVER_S)
    here = await field.process(field.leader)
    field.hold_back_votes()
    outcomes = here.submit(event(b"call"))
    appending = asyncio.create_task(here.log.append(SESSION, [event(b"opened"), event(b"joined")], 0))
    lane = here.log._writer._lanes[0]
    await until(lambda: lane.mending is not None)
    assert 0 not in here.codes
    field.cluster.heal()
    assert await appending in {2, 3}
    await until(lambda: len(outcomes) == 1, FAILOVER_S)
    assert isinstance(outcomes[0], Stored)
    assert sorted(await field.stored()) == [b"call", b"joined", b"opened"]


async def test_an_open_that_is_agreed_to_after_it_was_given_up_is_ended_all_the_same(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader has proposed it, and says that there is no such session until the others agree."""
    monkeypatch.setattr(append_module, "CONDITIONAL_WAIT_S", 0.3)
    monkeypatch.setattr(append_module, "CONDITIONAL_DEADLINE_S", 0.5)
    here = await field.process(field.leader)
    manager = session_manager("h", here.log)
    field.hold_back_votes()
    with pytest.raises(OutcomeUnknown):
        await manager.sessions.register(NewSession(SessionId("one"), "c1"))
    ending = asyncio.create_task(
        manager.sessions.unregister(SessionId("one"), "transport_error", connection="c1", insist=True)
    )
    asked = len(here.answers)
    await until(lambda: ending.done() or len(here.answers) > asked)
    assert not ending.done(), "it is believed that there is no such session"
    field.cluster.heal()
    assert await asyncio.wait_for(ending, FAILOVER_S)
    last = await here.log.last(SESSION)
    assert codec.session_state(last).status == "closed"
