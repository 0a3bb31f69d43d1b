"""Calls under numbers, from one client to all others, and what was heard of them: for tests in which calls may fail.

Calls go out at a steady pace and are not waited for, so that some are under way at any moment. What was acknowledged
must arrive; what was refused must be refused as worth trying again; what nobody knows of may have arrived.
"""

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient

PAUSE_S = 0.05
MARK = b'"target":"tell"'


class Sender:
    """Calls ``tell`` with ``<name>-<number>`` for everybody else, until ``finish``."""

    def __init__(self, client: RawClient, name: str, *, pause_s: float = PAUSE_S, text: str = "") -> None:
        self.client = client
        self._name = name
        self._pause_s = pause_s
        self._text = text
        self._stop = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())
        self.sent = 0

    async def _run(self) -> None:
        while not self._stop.is_set() and not self.client.ended:
            self.sent += 1
            tag = f"{self._name}-{self.sent}"
            arguments = f'[{{"to":"others"}},"tell",["{tag}","{self._text}"]]'
            self.client.send(
                f'{{"type":1,"invocationId":"{tag}","target":"hub.invoke","arguments":{arguments}}}\x1e'.encode()
            )
            await pause(self._stop, self._pause_s)

    async def finish(self) -> None:
        """Send no more, and wait until everything was answered."""
        self._stop.set()
        await self._task
        if self.sent:
            await self.client.record(containing=f'"invocationId":"{self._name}-{self.sent}"'.encode())

    def answers(self) -> dict[str, dict[str, Any]]:
        """Completions by tag."""
        prefix = f'{{"type":3,"invocationId":"{self._name}-'.encode()
        found = [json.loads(one) for one in self.client.records if one.startswith(prefix)]
        return {one["invocationId"]: one for one in found}

    def acknowledged(self) -> list[str]:
        return [tag for tag, answer in self.answers().items() if "error" not in answer]

    def reached(self) -> str:
        """The position of the last that was acknowledged."""
        return str([answer["result"]["position"] for answer in self.answers().values() if "error" not in answer][-1])

    def refused(self) -> Counter[str]:
        """How often with which code."""
        return Counter(code_of(answer) for answer in self.answers().values() if "error" in answer)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """For so long, unless it is time to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


def code_of(answer: dict[str, Any]) -> str:
    return str(answer["error"]).split(": ", 1)[0]


def heard(client: RawClient) -> list[str]:
    """The tags that came, in order."""
    return [json.loads(one)["arguments"][0] for one in client.records if MARK in one and b'"type":1' in one]


async def told(api: Api, *senders: Sender) -> list[str]:
    """The tags of everything that was told, in the order of the log, up to the last that these have acknowledged."""
    reached = max((sender.reached() for sender in senders), key=lambda position: int(position.rpartition("-")[2]))
    events = await api.items("events", type="invocation.requested", min_position=reached)
    return [one["data"]["arguments"][0] for one in events if one["data"]["target"] == "tell"]


def by(name: str, tags: list[str]) -> list[int]:
    """The numbers of one sender."""
    return [int(tag.rpartition("-")[2]) for tag in tags if tag.rpartition("-")[0] == name]
