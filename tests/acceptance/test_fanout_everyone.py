"""Two thousand connections on each of two gateways: a call on all reaches every one exactly once, in its place among
the calls around it, whoever made them and wherever; and both gateway processes really served their half.
"""

import asyncio
import re
from array import array

import aiohttp
import msgspec
import pytest

from lab.client import Answer, Crowd, LoadClient, marked_arguments
from lab.proc import raise_file_limit
from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

HALF = 2_000
SENDERS = 4  # on each gateway
ROUNDS = 8
MEMBERS = 50  # on each gateway, of the group that is called in between
TIME_MAX_S = 60
GROUP = "some"


class Heard:
    """Which messages each client of one crowd received, in order."""

    def __init__(self) -> None:
        self.messages = [array("l") for _ in range(HALF)]

    def note(self, receiver: int, message: int, delay_ns: int) -> None:
        self.messages[receiver].append(message)


class Calls:
    """The calls of all senders: numbered, with whom they mean and, once answered, their position."""

    def __init__(self) -> None:
        self.audiences: list[str] = []
        self.positions: dict[int, str] = {}
        self.refused: list[str] = []

    def make(self, sender: LoadClient, audience: str) -> None:
        """``audience`` is ``all``, ``group``, or ``user <name>``."""
        number = len(self.audiences)
        self.audiences.append(audience)
        to, _, user = audience.partition(" ")
        selector = {"all": {"to": to}, "group": {"to": to, "group": GROUP}, "user": {"to": to, "user": user}}[to]

        def answered(answer: Answer) -> None:
            if answer.error is not None:
                self.refused.append(answer.error)
            else:
                self.positions[number] = msgspec.json.decode(answer.result)["position"]

        arguments = b'[%s,"say",%s]' % (msgspec.json.encode(selector), marked_arguments(number, 0, 100))
        sender.call_with(answered, "hub.invoke", arguments)

    @property
    def answered(self) -> bool:
        return len(self.positions) + len(self.refused) == len(self.audiences)

    def place(self, number: int) -> int:
        """Where in the hub's order a call is."""
        return int(self.positions[number].rpartition("-")[2])

    def due(self, *audiences: str) -> list[int]:
        """What one in these audiences must have received, in order."""
        mine = [number for number, audience in enumerate(self.audiences) if audience in audiences]
        return sorted(mine, key=self.place)


async def metric(admin_url: str | None, name: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{admin_url}/metrics") as answer:
        found = re.search(rf"^{name} ([0-9.e+]+)$", await answer.text(), re.MULTILINE)
    assert found is not None, name
    return int(float(found[1]))


async def members(crowd: Crowd) -> None:
    await asyncio.gather(*(client.call("hub.join", GROUP) for client in crowd.clients[:MEMBERS]))


async def test_a_call_on_all_reaches_every_one_of_four_thousand_once_and_in_order(
    served: Up, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    raise_file_limit(2 * HALF + 1_000)
    crowds = [Crowd(url, hub, users=f"gateway{index}-") for index, url in enumerate(gateways)]
    admins = [served.entry("gateway", index).admin_url for index in range(2)]
    async with asyncio.timeout(TIME_MAX_S):
        try:
            await asyncio.gather(*(crowd.open(HALF) for crowd in crowds))
            assert [crowd.failures for crowd in crowds] == [[], []]
            assert [await metric(admin, "hublog_connections") for admin in admins] == [HALF, HALF]
            await asyncio.gather(*map(members, crowds))
            delivered_before = [await metric(admin, "hublog_deliveries_total") for admin in admins]
            heard, calls = await play(crowds)
            assert calls.refused == []
            check(calls, heard)
            await check_the_processes(api, calls, heard, admins, delivered_before)
            assert [crowd.ended for crowd in crowds] == [[], []]
        finally:
            await asyncio.gather(*(crowd.close() for crowd in crowds))


async def play(crowds: list[Crowd]) -> tuple[list[Heard], Calls]:
    """Every sender calls on all, the group and single users, by turns; returns when all of it has arrived."""
    heard, calls = [Heard(), Heard()], Calls()
    for crowd, sink in zip(crowds, heard, strict=True):
        crowd.listen(sink)
    for turn in range(ROUNDS):
        for index in range(SENDERS):
            for crowd in crowds:
                sender = crowd.clients[-1 - index]
                audience = ("group", "all", f"user gateway{index % 2}-{turn}", "group")[(turn + index) % 4]
                calls.make(sender, audience)
    await until(lambda: calls.answered, what="every call answered")
    # Whatever was on its way, once or twice, comes before this.
    last = len(calls.audiences)
    calls.make(crowds[0].clients[0], "all")
    await until(lambda: calls.answered, what="the last call answered")
    await until(
        lambda: all(messages and messages[-1] == last for sink in heard for messages in sink.messages),
        what="the last call everywhere",
    )
    return heard, calls


def check(calls: Calls, heard: list[Heard]) -> None:
    assert calls.audiences.count("all") > 2
    for_members, for_others = calls.due("all", "group"), calls.due("all")
    for_users = {number for number, audience in enumerate(calls.audiences) if audience.startswith("user ")}
    users_received: list[int] = []
    for sink in heard:
        for place, messages in enumerate(sink.messages):
            received = messages.tolist()
            assert received == sorted(received, key=calls.place)
            users_received += [number for number in received if number in for_users]
            shared = [number for number in received if number not in for_users]
            assert shared == (for_members if place < MEMBERS else for_others)
    assert sorted(users_received) == sorted(for_users), "each user has one session, which received its calls once"


async def check_the_processes(
    api: Api, calls: Calls, heard: list[Heard], admins: list[str | None], delivered_before: list[int]
) -> None:
    """Each process wrote to its own two thousand, and the read models know which they are."""
    for index, admin in enumerate(admins):
        delivered = await metric(admin, "hublog_deliveries_total") - delivered_before[index]
        assert delivered == sum(len(messages) for messages in heard[index].messages)
        assert await metric(admin, "hublog_delivery_holes_total") == 0
        assert await metric(admin, "hublog_slow_consumers_total") == 0
    last = calls.positions[max(calls.positions, key=calls.place)]
    (counted,) = [item for item in await api.items("/v1/hubs", min_position=last) if item["hub"] == api.hub]
    assert counted["active"] == 2 * HALF
    nodes = {item["node"] for item in (await api.get("/v1/nodes"))["items"]}
    assert len(nodes) == 2
    for node in nodes:
        assert len(await api.items("sessions", node=node, state="active", limit=1_000)) == HALF
    assert (await api.get("groups"))["items"] == [{"group": GROUP, "size": 2 * MEMBERS, "attached": 2 * MEMBERS}]
