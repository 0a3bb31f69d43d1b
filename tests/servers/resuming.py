"""Many resumable clients by bytes: what each was sent, and how they come back on another gateway."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient

AT_ONCE = 50
PAUSE_S = 0.05


async def connect_all(stack: AsyncExitStack, gateway: str, hub: str, count: int) -> list[RawClient]:
    clients = [RawClient(gateway, hub, f"?resumable=1&user=u{number}") for number in range(count)]
    return await _enter(stack, clients)


async def resume_all(
    stack: AsyncExitStack, gateway: str, hub: str, old: list[RawClient], sessions: list[dict[str, Any]]
) -> list[RawClient]:
    """Go on with each session where its client left it, in the same order."""
    queries = [
        f"?resumable=1&resume={answer['resumeToken']}&cursor={(said(client) or [answer['cursor']])[-1]}"
        for client, answer in zip(old, sessions, strict=True)
    ]
    return await _enter(stack, [RawClient(gateway, hub, query) for query in queries])


async def send_until(client: RawClient, stop: asyncio.Event) -> str:
    """One call after another for everybody else; gives the position of the last."""
    position = ""
    while not stop.is_set():
        answer = await client.call("hub.invoke", b'[{"to":"others"},"say",[]]')
        position = str(answer["result"]["position"])
        await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=PAUSE_S)
    return position


def said(client: RawClient) -> list[str]:
    """The positions of what came, in order."""
    return [json.loads(one)["arguments"][-1] for one in client.records if b'"target":"say"' in one]


async def calls(api: Api, up_to: str) -> list[dict[str, Any]]:
    """Everything that was called, as soon as the read models have it up to a position."""
    return list(await api.items("events", type="invocation.requested", min_position=up_to))


async def positions(api: Api, up_to: str) -> list[str]:
    """Of everything that was said, as the log has it."""
    return [one["position"] for one in await calls(api, up_to) if one["data"]["target"] == "say"]


async def _enter(stack: AsyncExitStack, clients: list[RawClient]) -> list[RawClient]:
    for start in range(0, len(clients), AT_ONCE):
        await asyncio.gather(*(stack.enter_async_context(one) for one in clients[start : start + AT_ONCE]))
    return clients
