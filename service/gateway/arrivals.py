"""Who has connected and does not ask: a TCP connection on which no request comes is closed in time.

Owns the first moments of a connection to the public port, up to the first request on it; after that it belongs to
aiohttp, whose own timer for idle connections must stay longer than that of the proxies before it. A connection costs
one timer and nothing for each message.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from service import unread

KEEP_ALIVE_S = 75.0  # between requests; proxies let go of idle connections after a minute
STOP_TIMEOUT_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Arrivals:
    """``middleware`` must see every request; ``closed`` counts who was shown out."""

    def __init__(self, patience_s: float) -> None:
        self.closed = 0
        self._patience_s = patience_s
        self._waiting: dict[object, asyncio.TimerHandle] = {}

    def runner(self, app: web.Application) -> web.AppRunner:
        """Serves ``app`` to those who ask in time."""
        return _Runner(self, app)

    def enter(self, protocol: asyncio.Protocol, transport: asyncio.Transport) -> None:
        timer = asyncio.get_running_loop().call_later(self._patience_s, self._show_out, protocol, transport)
        self._waiting[protocol] = timer

    def asked(self, protocol: object) -> None:
        """A request has come, whole, on a connection."""
        timer = self._waiting.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.asked(request.protocol)
        return await handler(request)

    def _show_out(self, protocol: object, transport: asyncio.Transport) -> None:
        del self._waiting[protocol]
        if not transport.is_closing():
            self.closed += 1
            transport.abort()


class _Entrance(asyncio.Protocol):
    """Sees a connection come, and hands it on: nothing of what it says goes through here."""

    def __init__(self, arrivals: Arrivals, protocol: asyncio.Protocol) -> None:
        self._arrivals = arrivals
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        line = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        line.set_protocol(self._protocol)
        self._arrivals.enter(self._protocol, line)
        self._protocol.connection_made(line)


class _Runner(unread.Runner):
    __slots__ = ("_arrivals",)

    def __init__(self, arrivals: Arrivals, app: web.Application) -> None:
        super().__init__(
            app,
            handle_signals=False,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        self._arrivals = arrivals

    def protocol(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        behind = unread.Protocol(server, loop=loop, access_log=None, keepalive_timeout=KEEP_ALIVE_S)  # type: ignore[arg-type]
        return _Entrance(self._arrivals, behind)
