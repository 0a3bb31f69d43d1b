"""The streams as they are made, compared and refused, and the server's refusals as the service sees them."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from events.errors import (
    HublogError,
    Internal,
    LogDrifted,
    LogFull,
    LogMissing,
    LogRegressed,
    LogUnavailable,
    Misconfigured,
    PayloadTooLarge,
)
from service.log.jetstream import JetStreamLog, cursor, jetstream_log, migrate_log, streams
from service.log.jetstream import append as append_module
from service.log.jetstream import lane as lane_module
from service.log.jetstream.answers import BATCH_INCOMPLETE, WRONG_LAST_SEQUENCE, Ack, failure
from service.log.jetstream.replies import ApiError
from service.log.port import Stored
from service.up.nats_server import SYSTEM_USER, USER, NatsServer
from tests.servers.event_logs import event, until
from tests.servers.nats import MakeNats, may_write

RANDOM = b"\x01\x02\x03"


class Admin:
    """The JetStream API in raw JSON."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def __call__(self, verb: str, **body: Any) -> dict[str, Any]:
        answer = await self._client.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=5)
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def change(self, name: str, **settings: Any) -> dict[str, Any]:
        config = (await self(f"STREAM.INFO.{name}"))["config"]
        return await self(f"STREAM.UPDATE.{name}", **config | settings)


@pytest.fixture
async def admin(clean_nats: NatsServer) -> AsyncIterator[Admin]:
    client = await nats.connect(clean_nats.url, allow_reconnect=False)
    yield Admin(client)
    await client.close()


@pytest.fixture
async def open_log(clean_nats: NatsServer) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def open_(**shape: int) -> JetStreamLog:
            log = await jetstream_log(clean_nats.url, name="test", **shape)
            stack.push_async_callback(log.close)
            return log

        yield open_


async def test_migrate_makes_what_verify_wants_and_keeps_the_epoch(clean_nats: NatsServer, open_log: Any) -> None:
    epoch = await migrate_log(clean_nats.url, random=RANDOM, partitions=3)
    assert await migrate_log(clean_nats.url, random=os.urandom(3), partitions=3) == epoch
    log: JetStreamLog = await open_log(partitions=3)
    assert log.epoch == epoch == "aebagba="[:4]
    assert log.partitions == 3


async def test_several_migrations_at_once_make_one_log(clean_nats: NatsServer, open_log: Any) -> None:
    """As when a job of Kubernetes is started twice, or two who install it do not know of each other."""
    migrating = [migrate_log(clean_nats.url, random=bytes([number] * 3), partitions=8) for number in range(4)]
    (epoch,) = set(await asyncio.gather(*migrating))
    log: JetStreamLog = await open_log(partitions=8)
    assert log.epoch == epoch


async def test_nothing_is_made_by_opening(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    with pytest.raises(LogMissing, match="EV_0, KV_hublog_leases"):
        await open_log()
    assert (await admin("STREAM.NAMES"))["total"] == 0


async def test_a_missing_stream_is_made_with_the_epoch_of_the_others(clean_nats: NatsServer, admin: Admin) -> None:
    epoch = await migrate_log(clean_nats.url, random=RANDOM, partitions=2)
    await admin("STREAM.DELETE.EV_1")
    with pytest.raises(LogMissing, match="missing in JetStream: EV_1"):
        await jetstream_log(clean_nats.url, name="test", partitions=2)
    assert await migrate_log(clean_nats.url, random=os.urandom(3), partitions=2) == epoch


async def test_a_store_that_cannot_be_made_yet_is_tried_again(fresh_nats: MakeNats) -> None:
    """As where a stream of that name was deleted a moment ago, and its files are still being removed."""
    server = await fresh_nats()
    may_write(server, 0)
    making = asyncio.create_task(migrate_log(server.url, random=RANDOM))
    await asyncio.wait([making], timeout=0.3)
    assert not making.done()
    may_write(server, None)
    assert len(await making) == 4


async def test_a_store_that_cannot_be_made_is_the_disk_s_fault(
    fresh_nats: MakeNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STORE_TIMEOUT_S", 0.2)
    server = await fresh_nats()
    may_write(server, 0)
    with pytest.raises(LogUnavailable, match=r"NATS cannot make a store for EV_0 on its disk: 10049"):
        await migrate_log(server.url, random=RANDOM)


async def test_the_stream_is_what_the_design_says(clean_nats: NatsServer, admin: Admin) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    config = (await admin("STREAM.INFO.EV_0"))["config"]
    assert config["subjects"] == ["ev.0.>"]
    assert config["storage"] == "file"
    assert config["discard"] == "new"
    assert config["max_age"] == 7 * 24 * 3600 * 10**9
    assert config["duplicate_window"] == 120 * 10**9
    assert config["deny_delete"]
    assert config["deny_purge"]
    assert config["allow_direct"]
    assert config["allow_atomic"]
    assert config["republish"] == {"src": "ev.0.>", "dest": "lv.0.>"}
    leases = (await admin("STREAM.INFO.KV_hublog_leases"))["config"]
    assert (leases["max_age"], leases["max_msgs_per_subject"], leases["allow_direct"]) == (0, 1, True)


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ({"republish": None}, "republish"),
        ({"allow_direct": False}, "allow_direct"),
        ({"allow_atomic": False}, "allow_atomic"),
        ({"max_bytes": 1_000_000}, "max_bytes"),
        ({"allow_msg_ttl": True}, "allow_msg_ttl"),
        ({"subjects": ["ev.0.>", "other"]}, "subjects"),
        ({"discard": "old"}, "discard"),
        ({"metadata": {"hublog.epoch": "k7qd", "hublog.partitions": "8", "hublog.version": "1"}}, "hublog.partitions"),
        ({"metadata": {}}, "epoch"),
    ],
)
async def test_drift_is_refused_and_named(
    clean_nats: NatsServer, admin: Admin, open_log: Any, drift: dict[str, Any], said: str
) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    assert "error" not in await admin.change("EV_0", **drift)
    with pytest.raises(LogDrifted, match=said):
        await open_log()
    with pytest.raises(LogDrifted, match=said):
        await migrate_log(clean_nats.url, random=RANDOM)


async def test_every_difference_is_named_at_once(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM, partitions=2)
    await admin.change("EV_0", allow_direct=False, max_msgs=5)
    await admin.change("EV_1", republish=None)
    await admin.change("KV_hublog_leases", max_msgs_per_subject=4)
    with pytest.raises(LogDrifted) as caught:
        await open_log(partitions=2)
    named = ["EV_0.allow_direct", "EV_0.max_msgs is 5", "EV_1.republish", "KV_hublog_leases.max_msgs_per_subject"]
    assert [name for name in named if name not in caught.value.message] == []


async def test_what_may_change_is_changed_by_migrate_only(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    epoch = await migrate_log(clean_nats.url, random=RANDOM)
    with pytest.raises(
        LogDrifted, match=r"EV_0.max_age is 604800s, defined 3600s \(HUBLOG_MAX_AGE: set it to 604800s, or"
    ):
        await open_log(max_age_s=3600)
    assert await migrate_log(clean_nats.url, random=RANDOM, max_age_s=3600, duplicate_window_s=90) == epoch
    log: JetStreamLog = await open_log(max_age_s=3600, duplicate_window_s=90)
    assert log.epoch == epoch
    config = (await admin("STREAM.INFO.EV_0"))["config"]
    assert (config["max_age"], config["deny_purge"], config["allow_atomic"]) == (3600 * 10**9, True, True)


async def test_the_number_of_partitions_is_fixed(clean_nats: NatsServer) -> None:
    await migrate_log(clean_nats.url, random=RANDOM, partitions=2)
    with pytest.raises(LogDrifted, match=r"is '2', defined '4' \(HUBLOG_PARTITIONS: set it to 2; "):
        await migrate_log(clean_nats.url, random=RANDOM, partitions=4)
    with pytest.raises(LogDrifted, match="partitions"):
        await migrate_log(clean_nats.url, random=RANDOM, partitions=1)
    with pytest.raises(LogDrifted, match="partitions"):
        await jetstream_log(clean_nats.url, name="test", partitions=1)


async def test_a_window_shorter_than_the_repeats_is_refused(clean_nats: NatsServer) -> None:
    with pytest.raises(Misconfigured, match="duplicate window"):
        await migrate_log(clean_nats.url, random=RANDOM, duplicate_window_s=10)


# -- refusals of the server


async def test_a_full_stream_is_said_to_be_full(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await admin.change("EV_0", max_bytes=2_000)
    await log.publish("ev.0.h.all", event(b"x" * 1_500))
    with pytest.raises(LogFull):
        await log.publish("ev.0.h.all", event(b"x" * 1_500))
    with pytest.raises(LogFull):
        await log.append("ev.0.h.s.a.log", [event(b"x" * 1_500)], 0)
    assert await log.last_sequence(0) == 1


async def test_too_large_for_the_stream(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await admin.change("EV_0", max_msg_size=1_000)
    with pytest.raises(PayloadTooLarge):
        await log.publish("ev.0.h.all", event(b"x" * 1_500))
    with pytest.raises(PayloadTooLarge):
        await log.append("ev.0.h.s.a.log", [event(b"x" * 1_500)], 0)


async def test_unknown_refusals_are_never_success(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await admin.change("EV_0", sealed=True)
    with pytest.raises(Internal) as submitted:
        await log.publish("ev.0.h.all", event())
    with pytest.raises(Internal) as appended:
        await log.append("ev.0.h.s.a.log", [event()], 0)
    assert submitted.value.details["err_code"] == appended.value.details["err_code"] == 10109
    assert isinstance(failure(99_999, ApiError(400, 99_999, "of tomorrow")), Internal)


async def test_nobody_there_is_unavailable_and_mends_itself(
    clean_nats: NatsServer, admin: Admin, open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_module, "CONDITIONAL_DEADLINE_S", 0.3)
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await admin("STREAM.DELETE.EV_0")
    with pytest.raises(LogUnavailable):
        await log.append("ev.0.h.s.a.log", [event()], 0)
    with pytest.raises(LogMissing):
        await log.last_sequence(0)
    outcomes: list[Stored | HublogError] = []
    for number in range(3):
        log.submit("ev.0.h.all", event(b"%d" % number), outcomes.append)
    await until(lambda: log._writer._lanes[0].repeated > 3)
    assert outcomes == []
    await migrate_log(clean_nats.url, random=RANDOM)
    await until(lambda: len(outcomes) == 3)
    assert outcomes == [Stored(1), Stored(2), Stored(3)]
    assert [one.payload async for one in log.read("ev.0.>", 1, 3)] == [b"0", b"1", b"2"]


async def test_nobody_there_until_the_deadline_is_unavailable(
    clean_nats: NatsServer, admin: Admin, open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "PUBLISH_DEADLINE_S", 0.3)
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await admin("STREAM.DELETE.EV_0")
    with pytest.raises(LogUnavailable):
        await log.publish("ev.0.h.all", event())


async def test_an_abandoned_batch_leaves_nothing(clean_nats: NatsServer, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    client = await nats.connect(clean_nats.url)
    headers = {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
    answer = await client.request("ev.0.h.s.a.log", b"{}", headers=headers)
    await client.close()
    error = json.loads(answer.data)["error"]
    assert error["err_code"] == BATCH_INCOMPLETE
    verdict = await log._writer._judge(
        Ack(error=ApiError(400, error["err_code"], "")), "ev.0.h.s.a.log", [event(), event()], 0, maybe=False
    )
    assert isinstance(verdict, LogUnavailable)
    assert WRONG_LAST_SEQUENCE == 10071


# -- following


async def test_a_stream_made_anew_is_a_regression(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    await log.publish("ev.0.h.all", event())
    async with aclosing(log.follow(0, 0)) as batches:
        assert len(await anext(batches)) == 1
        await admin("STREAM.DELETE.EV_0")
        await migrate_log(clean_nats.url, random=RANDOM)
        for _ in range(3):
            await log.publish("ev.0.h.all", event())
        with pytest.raises(LogRegressed, match="made anew"):
            async for _ in batches:
                pass


async def test_a_consumer_that_is_deleted_is_made_again(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    sequences: list[int] = []
    async with aclosing(log.follow(0, 0)) as batches:
        for round_ in range(1, 4):
            await log.publish("ev.0.h.all", event())
            while len(sequences) < round_:
                sequences += [one.sequence for one in await anext(batches)]
            for name in (await admin("CONSUMER.NAMES.EV_0"))["consumers"]:
                assert (await admin(f"CONSUMER.DELETE.EV_0.{name}"))["success"]
    assert sequences == [1, 2, 3]
    await until_no_consumer(admin)


async def test_pulls_that_expire_are_followed_by_others(
    clean_nats: NatsServer, admin: Admin, open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "PULL_EXPIRES_S", 0.1)
    monkeypatch.setattr(cursor, "HEARTBEAT_S", 0.04)
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    async with aclosing(log.follow(0, 0, batch_max=2)) as batches:
        assert await anext(batches) == []
        names = (await admin("CONSUMER.NAMES.EV_0"))["consumers"]
        for number in range(1, 6):
            await log.publish("ev.0.h.all", event())
            assert [one.sequence for one in await anext(batches)] == [number]
        assert (await admin("CONSUMER.NAMES.EV_0"))["consumers"] == names


async def until_no_consumer(admin: Admin) -> None:
    """A follower that is closed takes its consumer with it."""
    for _ in range(1_000):
        if not (await admin("CONSUMER.NAMES.EV_0"))["consumers"]:
            return
    pytest.fail("a consumer was left behind")


async def test_a_sequence_that_is_missing_is_a_regression(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    # The stream as the design wants it cannot lose a message in the middle; one that may be edited can.
    config = (await admin("STREAM.INFO.EV_0"))["config"]
    await admin("STREAM.DELETE.EV_0")
    await admin("STREAM.CREATE.EV_0", **config | {"deny_delete": False, "deny_purge": False})
    for _ in range(5):
        await log.publish("ev.0.h.all", event())
    assert (await admin("STREAM.MSG.DELETE.EV_0", seq=3, no_erase=True))["success"]
    with pytest.raises(LogRegressed, match="no sequence 3"):
        await follow_for_ever(log)
    await admin("STREAM.PURGE.EV_0", seq=5)
    assert await log.first_sequence(0) == 5
    with pytest.raises(LogRegressed, match="begins at 5"):
        await anext(log.follow(0, 2))
    async with aclosing(log.follow(0, await log.first_sequence(0) - 1)) as batches:
        assert [one.sequence for one in await anext(batches)] == [5]
    await admin("STREAM.PURGE.EV_0")
    assert await log.first_sequence(0) == await log.last_sequence(0) + 1 == 6


# -- a replica that lags


class Replica:
    """Answers direct gets in the server's place: at first like one that knows nothing yet, then having caught up."""

    def __init__(self, client: Client, log: JetStreamLog, stale: int) -> None:
        self._client = client
        self._log = log
        self._stale = stale
        self.asked: list[dict[str, Any]] = []

    async def start(self) -> None:
        await self._client.subscribe("$JS.API.DIRECT.GET.EV_0", cb=self._answer)
        await self._client.flush()

    async def _answer(self, message: Msg) -> None:
        self.asked.append(json.loads(message.data))
        if len(self.asked) <= self._stale:
            await self._send(message.reply, b"NATS/1.0 404 No Results\r\n\r\n", b"")
            return
        found = await self._log._reader.at(0, 1)
        assert found is not None
        added = f"Nats-Stream: EV_0\r\nNats-Subject: {found.subject}\r\nNats-Sequence: 1\r\n"
        stamp = "Nats-Time-Stamp: 2026-11-21T10:00:00.1Z\r\n\r\n"
        await self._send(message.reply, found.headers[:-2] + (added + stamp).encode(), found.payload)
        await self._send(message.reply, b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n", b"")

    async def _send(self, reply: str, headers: bytes, payload: bytes) -> None:
        whole = len(headers) + len(payload)
        await self._client._send_command(
            f"HPUB {reply} {len(headers)} {whole}\r\n".encode() + headers + payload + b"\r\n"
        )
        await self._client.flush()


async def test_a_replica_that_lags_is_not_believed(clean_nats: NatsServer, admin: Admin, open_log: Any) -> None:
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    log._reader._replicas = 3
    await log.publish("ev.0.h.all", event(b"one"))
    await admin.change("EV_0", allow_direct=False)
    async with await nats.connect(clean_nats.url) as client:
        replica = Replica(client, log, stale=2)
        await replica.start()
        assert [one.payload async for one in log.read("ev.0.h.all", 1, 1)] == [b"one"]
        assert len(replica.asked) == 3
        replica._stale = 5
        found = await log.last_many(["ev.0.h.g.other"], up_to=1)
        assert found == {}  # known from a replica that has what is at 1, and not from one that has nothing
        assert len(replica.asked) == 6
        assert replica.asked[-1]["multi_last"] == ["ev.0.h.g.other", "ev.0.h.all"]
        replica._stale = 8
        assert [one async for one in log.read("ev.0.h.g.other", 1, 1)] == []  # the leader says that there is nothing
        assert len(replica.asked) == 7


async def test_a_replica_that_lags_for_ever_is_left(
    clean_nats: NatsServer, admin: Admin, open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.log.jetstream.read.LAG_MAX_S", 0.2)
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    log._reader._replicas = 3
    left: list[str] = []

    async def go_elsewhere(why: str) -> None:
        left.append(why)

    monkeypatch.setattr(log._client, "go_elsewhere", go_elsewhere)
    await log.publish("ev.0.h.all", event())
    await admin.change("EV_0", allow_direct=False)
    async with await nats.connect(clean_nats.url) as client:
        await Replica(client, log, stale=1_000_000).start()
        with pytest.raises(LogUnavailable, match="direct get does not answer"):
            assert [one async for one in log.read("ev.0.h.all", 1, 1)] == []
        with pytest.raises(LogUnavailable, match="direct get does not answer"):
            await log.last_many(["ev.0.h.all"], up_to=1)
    assert left == ["its replica lags"] * 2


async def test_a_leader_that_leads_no_more_is_not_believed_for_a_while(
    clean_nats: NatsServer, open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off from the others, it goes on answering with what it has."""
    await migrate_log(clean_nats.url, random=RANDOM)
    log: JetStreamLog = await open_log()
    log._reader._replicas = 3
    await log.publish("ev.0.h.all", event())
    assert await log.last_sequence(0) == 1
    log._reader.reached(0, 2)
    with pytest.raises(LogUnavailable, match="EV_0 ends at 1, which it had passed"):
        await log.last_sequence(0)
    with pytest.raises(LogUnavailable, match="a former leader"):
        await log._reader._nothing_more("ev.0.h.g.other", 1, 2)
    await log.publish("ev.0.h.all", event())
    assert await log.last_sequence(0) == 2
    monkeypatch.setattr("service.log.jetstream.read.FORMER_LEADER_S", 0.0)
    with pytest.raises(LogRegressed, match="ends at 2, it was read up to 9"):
        await anext(log.follow(0, 9))


async def follow_for_ever(log: JetStreamLog) -> None:
    async with aclosing(log.follow(0, 0)) as batches:
        async for _ in batches:
            pass


async def test_an_account_that_has_no_jetstream_is_said_at_once(clean_nats: NatsServer):
    url = clean_nats.url.replace(f"{USER}:", f"{SYSTEM_USER}:")
    async with asyncio.timeout(streams.FOUND_TIMEOUT_S / 4):
        with pytest.raises(LogUnavailable, match="not enabled for account"):
            await jetstream_log(url, name="stranger")
