"""One WebSocket to one node: opening, the handshake, records in and out, heartbeats, and how it ended.

Owns the translation of everything that can go wrong here into one ``LinkEnded``, which says whether another attempt
makes sense. It knows no session and no calls.
"""

import asyncio
from typing import Literal

import aiohttp
import msgspec

from hublog import access, wire
from hublog.errors import ConnectionLost, HublogError, ServerError, Unreachable
from hublog.reason import reason

CLOSE_TIMEOUT_S = 0.5
FRAME_BYTES_MAX = 4 * 1024 * 1024
RETRYABLE_STATUSES = frozenset({408, 425, 429})  # and every 5xx


class Timers(msgspec.Struct, frozen=True):
    """Seconds. The defaults are those that the service and all SignalR clients go by."""

    open_s: float = 15.0
    """From dialling to the answer of ``hub.session``."""
    ping_s: float = 15.0
    """Send silence after which we ping."""
    silence_s: float = 30.0
    """Receive silence after which the node is taken for gone."""
    backoff_first_s: float = 0.25
    """The first pause before another attempt is up to this, each next one up to twice as long …"""
    backoff_longest_s: float = 10.0
    """… and none longer than this."""
    stable_s: float = 5.0
    """A connection that lived this long makes the pauses short again."""


class LinkEnded(Exception):
    """The connection is over, or never was. ``reconnect``: whether another attempt makes sense."""

    def __init__(self, error: HublogError, *, reconnect: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.reconnect = reconnect


class Link:
    """Made by :func:`dial`. One task reads; any may send."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[Literal[False]], timers: Timers) -> None:
        self._socket = socket
        self._timers = timers
        self._records = wire.Records()
        self._shaken = False
        self._sent_s = 0.0

    async def send(self, data: bytes) -> None:
        """Whether it went out is not said here: the reader learns first and best that a connection is gone."""
        self._sent_s = asyncio.get_running_loop().time()
        try:
            await self._socket.send_frame(data, aiohttp.WSMsgType.TEXT)
        except (OSError, aiohttp.ClientError):
            await self.close()

    async def read(self) -> list[wire.Message]:
        """The messages of the next frame; Pings are kept from the caller. Raises: LinkEnded."""
        try:
            frame = await self._socket.receive(timeout=self._timers.silence_s)
        except TimeoutError:
            silence = ConnectionLost(f"the node was silent for {self._timers.silence_s:g} s")
            raise LinkEnded(silence, reconnect=True) from None
        if frame.type is aiohttp.WSMsgType.TEXT:
            try:
                return self._messages(frame.data)
            except wire.Unreadable as exc:
                raise LinkEnded(ConnectionLost(str(exc)), reconnect=True) from exc
        code = self._socket.close_code
        raise LinkEnded(ConnectionLost(f"the connection ended (WebSocket code {code})"), reconnect=True)

    def _messages(self, data: bytes) -> list[wire.Message]:
        """Raises: LinkEnded if the handshake is refused, Unreadable."""
        messages: list[wire.Message] = []
        for record in self._records.feed(data):
            if not self._shaken:
                refusal = wire.handshake_error(record)
                if refusal is not None:
                    error = ServerError.from_wire(refusal)
                    raise LinkEnded(error, reconnect=error.retryable)
                self._shaken = True
                continue
            message = wire.message(record)
            if message.type != wire.PING_TYPE:
                messages.append(message)
        return messages

    async def keep_alive(self) -> None:
        """Ping whenever nothing was sent for a while. Ends by cancellation."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = self._sent_s + self._timers.ping_s - loop.time()
            if due_s > 0:
                await asyncio.sleep(due_s)
            else:
                await self.send(wire.PING)

    async def say_goodbye(self) -> None:
        """A Close, which ends the session, if the other side still takes it."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.send(wire.CLOSE)
        except TimeoutError:
            return  # its socket is full: it finds out otherwise

    async def close(self) -> None:
        """End the socket, whether or not the other side still listens."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._socket.close()
        except (TimeoutError, OSError, aiohttp.ClientError):
            return  # aiohttp has cut it then
        finally:
            # Surprising because aiohttp keeps the connection of a socket that was reset while it was read.
            self._socket._response.close()  # noqa: SLF001


DEFAULT_TIMERS = Timers()


def closed_by(message: wire.Message) -> LinkEnded:
    """What a Close says."""
    error = (
        ServerError.from_wire(message.error)
        if message.error is not None
        else ServerError("closed", "the service closed the connection")
    )
    return LinkEnded(error, reconnect=message.allowReconnect)


async def dial(http: aiohttp.ClientSession, url: str, timers: Timers, token: access.Token | None = None) -> Link:
    """Connect. Raises: LinkEnded."""
    try:
        bearer = await access.fetch(token)
    except access.NoToken as exc:
        raise LinkEnded(Unreachable(f"no access token: {exc}"), reconnect=True) from exc
    headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    try:
        socket = await http.ws_connect(
            url,
            headers=headers,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
            max_msg_size=FRAME_BYTES_MAX,
            decode_text=False,
        )
    except aiohttp.WSServerHandshakeError as exc:
        not_admitted = access.refusal(exc.status, exc.headers or {})
        if not_admitted is not None:
            # Another attempt helps only if it brings another token.
            again = not_admitted.code == "token_expired" and callable(token)
            raise LinkEnded(not_admitted, reconnect=again) from exc
        again = exc.status >= 500 or exc.status in RETRYABLE_STATUSES
        refused = None if again else await reason(http, url, headers)
        if refused is None:
            hint = "Check the address, the hub, the user and the metadata."
            refused = ServerError(f"http_{exc.status}", f"the gateway refused with HTTP {exc.status}", hint)
        raise LinkEnded(refused, reconnect=again) from exc
    except (OSError, aiohttp.ClientError, TimeoutError) as exc:
        raise LinkEnded(Unreachable(f"no connection: {exc or type(exc).__name__}"), reconnect=True) from exc
    return Link(socket, timers)
