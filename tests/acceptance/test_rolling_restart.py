"""Both gateways are restarted, one after the other, as a rolling deploy does it, under the load of clients that resume.

Each gateway that is told to stop sends its clients away with a Close that lets them come back; they go on with their
sessions on the other one. None of them misses a message, gets one twice, or out of order.
"""

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest

from events import codec, node, subjects
from service.log.jetstream import jetstream_log
from tests.servers.health import wait_ready
from tests.servers.processes import gone, until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.roaming import Roamer
from tests.servers.traffic import Sender, told
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

DRAIN_S = 4.0
EXITS_WITHIN_S = DRAIN_S + 5.0
OPTIONS = ()  # up restarts what ends
SETTINGS = {"HUBLOG_DRAIN": f"{DRAIN_S:g}"}
CLIENTS = 200
AT_ONCE = 50
PAUSE_S = 0.02  # between the calls of each of two senders: 20,000 deliveries a second in all


async def test_nothing_is_lost_twice_or_out_of_order(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    async with AsyncExitStack() as stack:
        roamers = [Roamer((gateways[number % 2], gateways[1 - number % 2]), hub) for number in range(CLIENTS)]
        for start in range(0, CLIENTS, AT_ONCE):
            await asyncio.gather(*(one.begin() for one in roamers[start : start + AT_ONCE]))
        for one in roamers:
            stack.push_async_callback(one.leave)
        # Of these two each ends with its gateway, and one begins on each that is back.
        senders = [
            Sender(await stack.enter_async_context(RawClient(gateways[at], hub)), f"from{at}", pause_s=PAUSE_S)
            for at in (0, 1)
        ]
        await _hear_more(roamers)
        for at in (0, 1):
            await _restart(served, at)
            senders.append(
                Sender(await stack.enter_async_context(RawClient(gateways[at], hub)), f"after{at}", pause_s=PAUSE_S)
            )
            await _hear_more(roamers)
        for sender in senders[2:]:
            await sender.finish()
        sent = await told(api, senders[-1])
        for one in roamers:
            await one.here.record(containing=f'"{sent[-1]}"'.encode())
            assert one.heard() == sent, "lost, twice, or out of order"
            assert [answer["sessionId"] for answer in one.answers] == [one.answers[0]["sessionId"]] * len(one.answers)
            assert all(answer["resumed"] and answer["resync"] is None for answer in one.answers[1:])
            for close in one.closes():
                assert (close["type"], close["allowReconnect"]) == (7, True)
                assert close["error"].startswith("shutdown: ")
        for sender in senders:
            assert set(sender.acknowledged()) <= set(sent)
        assert {len(one.connections) for one in roamers} == {2, 3}
        await _left_as_draining(api, roamers)
        for index in range(2):
            await _said_in_the_log(served, api, gateways[index])


async def _hear_more(roamers: list[Roamer]) -> None:
    counts = [len(one.heard()) for one in roamers]

    def more() -> bool:
        assert not any(one.lost for one in roamers)
        return all(len(one.heard()) > count for one, count in zip(roamers, counts, strict=True))

    await until(more, what="traffic everywhere")


async def _restart(served: Up, index: int) -> None:
    """Tell a gateway to stop; gives when ``up`` has started it again and it is ready."""
    old = served.entry("gateway", index)
    assert old.pid is not None
    os.kill(old.pid, signal.SIGTERM)
    await until(lambda: gone(old.pid or 0), what="the end of the drain", timeout_s=EXITS_WITHIN_S)
    await until(
        lambda: any(
            (one.role, one.index) == ("gateway", index) and one.pid not in {None, old.pid} for one in served.entries
        ),
        what="the next process",
    )
    await wait_ready(served.entry("gateway", index).admin_url)


async def _left_as_draining(api: Api, roamers: list[Roamer]) -> None:
    """Whoever was not quick enough to resume before its end was written was detached, and said to be draining."""
    detached = await api.items("events", type="session.detached")
    assert {one["data"]["reason"] for one in detached} == {"draining"}
    attached = await api.items("events", type="session.attached")
    assert len(attached) == sum(len(one.connections) - 1 for one in roamers)
    assert len(detached) <= len(attached)
    assert len(detached) > CLIENTS / 4, "most were"


async def _said_in_the_log(served: Up, api: Api, gateway: str) -> None:
    """The node said that it was going before it was gone, and began a new life afterwards."""
    (found,) = [one for one in await api.items("/v1/nodes") if one["url"] == gateway]
    assert found["state"] == "started"
    log = await jetstream_log(served.entry("nats").url or "", name="test")
    try:
        said = log.read(subjects.node(found["node"]), 1, await log.last_sequence(0))
        events = [codec.decode(one.payload)[1] async for one in said]
    finally:
        await log.close()
    match events:
        case [node.Started() as first, node.Draining() as leaving, node.Started() as second]:
            assert first.incarnation == leaving.incarnation != second.incarnation
        case _:
            pytest.fail(f"another life than expected: {events}")
