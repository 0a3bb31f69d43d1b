"""What ``always`` and ``relaxed`` really do: the calls by which nats-server puts the log on the disk are counted.

``kill -9`` proves nothing about a power cut, since the page cache survives it. So a tracer counts ``fsync`` and
``fdatasync`` of the server and all its threads (see ``tests.servers.syscalls``): what was counted when an
acknowledgement arrives was on the disk before it was given.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from events.ids import parse_hub
from events.subjects import HubSubjects
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.up.nats_server import NatsServer, Sync, find_binary
from tests.servers.event_logs import event
from tests.servers.raw_signalr import RawClient
from tests.servers.syscalls import counting, read_counts
from tests.servers.up import Up

LONE = 100
FEW = LONE // 10


class Counted(NamedTuple):
    """A log on a server whose calls are counted."""

    server: NatsServer
    log: JetStreamLog
    counts: Path

    @property
    def calls(self) -> int:
        return read_counts(self.counts).total


@pytest.fixture
async def counted(tmp_path: Path) -> AsyncIterator[Callable[[Sync], Awaitable[Counted]]]:
    async with AsyncExitStack() as stack:

        async def make(sync: Sync) -> Counted:
            binary, counts = counting(find_binary(), tmp_path / "counted")
            server = NatsServer(tmp_path / "nats", log_file=tmp_path / "nats.log", sync=sync, binary=binary)
            await server.start()
            stack.push_async_callback(server.stop)
            await migrate_log(server.url, random=os.urandom(3))
            log = await jetstream_log(server.url, name="test")
            stack.push_async_callback(log.close)
            return Counted(server, log, counts)

        yield make


async def calls_of_each(counted: Counted, write: Callable[[int], Awaitable[object]]) -> list[int]:
    """How many calls there were by the acknowledgement of each of ``LONE`` writes, one after the other."""
    found = []
    for number in range(LONE):
        before = counted.calls
        await write(number)
        found.append(counted.calls - before)
    return found


def writes(log: JetStreamLog) -> dict[str, Callable[[int], Awaitable[object]]]:
    """Every way in which something is acknowledged."""
    subjects = HubSubjects(parse_hub("counted"), 1)
    batch = 0

    async def in_a_batch(_: int) -> None:
        nonlocal batch
        batch = await log.append(subjects.session("batch"), [event(), event()], batch)

    return {
        "unconditional": lambda _: log.publish(subjects.all(), event()),
        "conditional": lambda number: log.append(subjects.session(f"s{number}"), [event()], 0),
        "atomic batch": in_a_batch,
        "lease": lambda number: log.lease_put("node", str(number).encode()),
    }


async def test_with_always_every_lone_acknowledged_write_is_on_the_disk(
    counted: Callable[[Sync], Awaitable[Counted]],
) -> None:
    one = await counted("always")
    assert await one.server.sync_in_force() == "always"
    for how, write in writes(one.log).items():
        assert min(await calls_of_each(one, write)) >= 1, how


async def test_relaxed_leaves_it_to_the_page_cache(counted: Callable[[Sync], Awaitable[Counted]]) -> None:
    one = await counted("relaxed")
    assert await one.server.sync_in_force() == "every 120 s"
    found = {how: sum(await calls_of_each(one, write)) for how, write in writes(one.log).items()}
    # Batches are staged in a little store of their own, which nats-server 2.15 puts on the disk on either setting.
    del found["atomic batch"]
    assert max(found.values()) <= FEW, found


@pytest.mark.parametrize(
    ("sync", "printed", "least", "most"), [("always", "always", LONE, None), ("relaxed", "every 120 s", 0, FEW)]
)
async def test_up_prints_the_setting_as_read_back_and_a_client_gets_what_it_says(
    tmp_path: Path, sync: str, printed: str, least: int, most: int | None
) -> None:
    binary, counts = counting(find_binary(), tmp_path / "counted")
    up = Up(
        tmp_path / "data", gateways=1, options=("--no-restart",), HUBLOG_NATS_SYNC=sync, HUBLOG_NATS_BIN=str(binary)
    )
    try:
        await up.start()
        assert f"NATS writes to disk: {printed} (HUBLOG_NATS_SYNC)" in up.output
        async with RawClient(up.entry("gateway").url or "", "counted") as client:
            before = read_counts(counts).total
            for _ in range(LONE):
                assert "error" not in await client.call("hub.invoke", b'[{"to":"all"},"say",[]]')
            made = read_counts(counts).total - before
            assert made >= least
            assert most is None or made <= most
    finally:
        await up.stop()
