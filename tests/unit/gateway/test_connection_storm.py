"""Many clients at random, while the log goes and comes and loses messages: what each received, and what is left."""

import asyncio
import json
import random

import pytest

from service.gateway.signalr.machine import Limits
from tests.servers.gateway import MakeNode, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient

CLIENTS = 12
STEPS = 25
GROUPS = ["red", "blue", "green"]


def received(client: RawClient) -> list[int]:
    calls = [found for record in client.records if b'"target"' in record and (found := json.loads(record))]
    return [call["arguments"][0] for call in calls]


async def live(node: Node, dice: random.Random, numbers: "list[int]") -> None:
    """One client's life: connect, do this and that, and go in one way or another."""
    client = RawClient(node.url, "chat", dice.choice(["", "?user=ann", "?user=bob"]), handshake=None)
    await client.__aenter__()
    client.send(HANDSHAKE)
    for step in range(dice.randint(1, STEPS)):
        if client.ended or client.writer.transport.is_closing():
            break
        numbers[0] += 1
        to = dice.choice([{"to": "all"}, {"to": "others"}, {"to": "group", "group": dice.choice(GROUPS)}])
        target, arguments = dice.choice(
            [
                ("hub.invoke", [to, "say", [numbers[0]]]),
                ("hub.invoke", [{"to": "user", "user": "ann"}, "say", [numbers[0]]]),
                ("hub.invoke", [{"to": "client", "session": "nobody"}, "say", [numbers[0]]]),
                ("hub.join", [dice.sample(GROUPS, 2)]),
                ("hub.leave", [dice.choice(GROUPS)]),
                ("hub.leaveAll", []),
                ("hub.session", []),
            ]
        )
        call = {"type": 1, "invocationId": str(step), "target": target, "arguments": arguments}
        client.send(json.dumps(call).encode() + b"\x1e")
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.005]))
    how = dice.choice(["cut", "close", "silent", "broken"])
    if client.writer.transport.is_closing():
        how = "cut"
    if how == "close":
        client.send(b'{"type":7}\x1e')
    elif how == "broken":
        client.send(b"\xff\x1e")
    if how != "cut":
        await client.end()
    await client.__aexit__()
    found = received(client)
    assert found == sorted(found, key=node.order), "out of order"  # type: ignore[attr-defined]
    assert len(found) == len(set(found)), "twice"
    answered = [json.loads(record)["invocationId"] for record in client.records if b'"type":3' in record]
    assert len(answered) == len(set(answered)), "a call was answered twice"


async def weather(node: Node, dice: random.Random) -> None:
    while True:
        await asyncio.sleep(dice.uniform(0.005, 0.05))
        match dice.choice(["cut", "drop", "slow", "fine"]):
            case "cut":
                node.log.disconnect()
                await asyncio.sleep(dice.uniform(0, 0.02))
                node.log.reconnect()
            case "drop":
                node.log.drop_next_live(dice.randint(1, 3))
            case "slow":
                for gate in (node.log.may_answer, node.log.may_read):
                    gate.clear()
                await asyncio.sleep(dice.uniform(0, 0.05))
                for gate in (node.log.may_answer, node.log.may_read):
                    gate.set()
            case _:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_leaves_nothing_behind(make_node: MakeNode, seed: int):
    node = await make_node(limits=Limits(silence_s=0.3, ping_s=0.1, handshake_s=0.3))
    dice, numbers = random.Random(seed), [0]
    places: dict[int, int] = {}

    def order(number: int) -> int:
        if number not in places:
            for found in node.log._partitions[0].events:
                if b'"invocation.requested.v1"' in found.payload:
                    places[json.loads(found.payload)["data"]["arguments"][0]] = found.sequence
        return places[number]

    node.order = order  # type: ignore[attr-defined]
    changing = asyncio.ensure_future(weather(node, dice))
    try:
        async with asyncio.timeout(20):
            for _ in range(4):
                await asyncio.gather(*(live(node, dice, numbers) for _ in range(CLIENTS)))
    finally:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
    for gate in (node.log.may_answer, node.log.may_read):
        gate.set()
    node.log.reconnect()
    await node.empty()
    states = node.log.sessions().values()
    assert {state.status for state in states} == {"closed"}
    assert {state.reason for state in states} <= {"client", "timeout", "transport_error", "hole"}
    await until(lambda: node.dispatcher.live, "delivery to be live")
