"""Resumable clients that go where they are sent: after each end they resume on the next gateway."""

import asyncio
import itertools
import json
from typing import Any

from tests.servers.raw_signalr import RawClient
from tests.servers.traffic import heard

STAYS_S = 120.0


class Roamer:
    """One session. It begins on the first of ``gateways`` and goes on with the next at every end, until ``leave``."""

    def __init__(self, gateways: tuple[str, ...], hub: str) -> None:
        self._gateways = itertools.cycle(gateways)
        self._hub = hub
        self._left = False
        self._wandering: asyncio.Task[None] | None = None
        self.connections: list[RawClient] = []
        self.answers: list[dict[str, Any]] = []

    async def begin(self) -> None:
        """Connected, and from now on followed by its own task."""
        await self._connect("?resumable=1")
        self._wandering = asyncio.ensure_future(self._wander())

    async def leave(self) -> None:
        """Raises what went wrong on the way."""
        self._left = True
        await self.connections[-1].__aexit__()
        if self._wandering is not None:
            await self._wandering

    @property
    def here(self) -> RawClient:
        return self.connections[-1]

    @property
    def lost(self) -> bool:
        """Whether something went wrong on the way: it will not come back."""
        return self._wandering is not None and self._wandering.done()

    def heard(self) -> list[str]:
        """Everything that it was told, on all its connections, in order."""
        return [tag for connection in self.connections for tag in heard(connection)]

    def closes(self) -> list[dict[str, Any]]:
        """The last word of every connection but the present one."""
        return [json.loads(connection.records[-1]) for connection in self.connections[:-1]]

    def cursor(self) -> str:
        """The position of the last message that it was sent."""
        for connection in reversed(self.connections):
            for record in reversed(connection.records):
                if b'"target":"tell"' in record:
                    return str(json.loads(record)["arguments"][-1])
        return str(self.answers[0]["cursor"])

    async def _wander(self) -> None:
        while True:
            await self.here.end(patience_s=STAYS_S)
            if self._left:
                return
            await self.here.__aexit__()
            token = self.answers[-1]["resumeToken"]
            await self._connect(f"?resumable=1&resume={token}&cursor={self.cursor()}")

    async def _connect(self, query: str) -> None:
        client = RawClient(next(self._gateways), self._hub, query)
        await client.__aenter__()
        self.connections.append(client)
        self.answers.append((await client.call("hub.session", b"[]"))["result"])
