"""A node as a client sees it, driven line by line: a real WebSocket server that says only what a test tells it to say.

For what a real gateway does rarely or never: an answer that does not come, a refusal in the middle, silence, nonsense.
``link = await hub.accept()`` is the next connection; ``opens`` answers its handshake and its ``hub.session``.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import WSMsgType, web

PATIENCE_S = 5.0
END = "\x1e"


class FakeLink:
    """One connection. What the client sends is waited for with :meth:`heard`, :meth:`call`."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self.query = dict(request.query)
        self.authorization = request.headers.get("Authorization")
        self._request = request
        self._socket = socket
        self._heard: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def read(self) -> None:
        async for frame in self._socket:
            if frame.type is WSMsgType.TEXT:
                for record in frame.data.split(END)[:-1]:
                    self._heard.put_nowait(json.loads(record))
        self._heard.put_nowait(None)
        self.ended.set()

    async def heard(self, *, pings: bool = False) -> dict[str, Any]:
        """The next record; its Pings are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                record = await self._heard.get()
                assert record is not None, "the client has gone"
                if pings or record.get("type") != 6:
                    return record

    async def call(self, target: str) -> dict[str, Any]:
        record = await self.heard()
        assert (record["type"], record["target"]) == (1, target), record
        return record

    async def say(self, *records: object) -> None:
        """All in one frame."""
        await self._socket.send_str("".join(json.dumps(record) + END for record in records))

    async def raw(self, text: str) -> None:
        await self._socket.send_str(text)

    async def message(self, position: str | None, target: str, *arguments: object) -> None:
        last = [] if position is None else [position]
        await self.say({"type": 1, "target": target, "arguments": [*arguments, *last]})

    async def answer(self, call: dict[str, Any], result: object) -> None:
        await self.say({"type": 3, "invocationId": call["invocationId"], "result": result})

    async def refuse(self, call: dict[str, Any], error: str) -> None:
        await self.say({"type": 3, "invocationId": call["invocationId"], "error": error})

    async def shakes(self) -> dict[str, Any]:
        """Accept the handshake; gives the ``hub.session`` behind it, which is not answered."""
        assert await self.heard() == {"protocol": "json", "version": 1}
        await self.say({})
        return await self.call("hub.session")

    async def opens(self, session: str = "s1", token: str | None = "t1", cursor: str = "p0", **more: Any) -> None:
        await self.answer(await self.shakes(), about(session, token, cursor, **more))

    async def close(self, error: str | None = None, *, reconnect: bool = False) -> None:
        said = {"type": 7, **({"error": error} if error else {}), **({"allowReconnect": True} if reconnect else {})}
        await self.say(said)

    def cut(self) -> None:
        assert self._request.transport is not None
        self._request.transport.abort()


class FakeHub:
    """Made by :func:`fake_hub`."""

    def __init__(self) -> None:
        self.url = ""
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.requests = 0
        self.negotiation: dict[str, str] | None = None
        self._links: asyncio.Queue[FakeLink] = asyncio.Queue()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.status is not None:
            return web.Response(status=self.status, headers=self.headers)
        socket = web.WebSocketResponse(timeout=0.1)
        await socket.prepare(request)
        link = FakeLink(request, socket)
        self._links.put_nowait(link)
        await link.read()
        return socket

    async def negotiate(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(self.negotiation, status=404 if self.negotiation is None else 200)

    async def accept(self) -> FakeLink:
        async with asyncio.timeout(PATIENCE_S):
            return await self._links.get()


def about(session: str, token: str | None, cursor: str, **more: Any) -> dict[str, Any]:
    """What ``hub.session`` answers."""
    return {
        "sessionId": session,
        "userId": None,
        "resumeToken": token,
        "cursor": cursor,
        "groups": [],
        "resumed": False,
        "resync": None,
        "code": None,
        **more,
    }


@asynccontextmanager
async def fake_hub() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    app = web.Application()
    app.router.add_get("/hubs/{hub}", hub.serve)
    app.router.add_post("/hubs/{hub}/negotiate", hub.negotiate)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield hub
    finally:
        await runner.cleanup()
