"""WebSocket: aiohttp reads, delivery writes straight to the transport.

aiohttp does the opening and closing handshakes, masking, pings of its own layer and the reading; a call that waits for
nothing goes past its queue (``prompt``). Every text frame that we send is ready-made and goes to ``request.transport``
in one write.
"""

import asyncio

from aiohttp import WSMsgType, web

from events.errors import BadMessage, MessageTooLarge
from service.gateway.connection import Connection
from service.gateway.context import GatewayContext
from service.gateway.peer import Peer
from service.gateway.transports.prompt import PromptSocket

CLOSE_TIMEOUT_S = 2.0  # how long a closing client may take to agree
# A frame may hold several messages; the machine bounds each, this bounds what aiohttp collects for it.
FRAME_MESSAGES_MAX = 8


class WebSocketWire:
    """Lends one upgraded request to a connection."""

    def __init__(self, transport: asyncio.Transport, socket: PromptSocket) -> None:
        self._transport = transport
        self._socket = socket
        self._closing: asyncio.Task[bool] | None = None
        self._cut: asyncio.TimerHandle | None = None

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._transport

    def close(self) -> None:
        if self._closing is None and not self._socket.closed and not self._transport.is_closing():
            self._closing = asyncio.ensure_future(self._socket.close())
            # A client that does not read would keep the closing frame, and us, waiting for ever.
            self._cut = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S * 2, self._transport.abort)

    async def closed(self) -> None:
        """Wait until a closing that was begun here is over."""
        if self._closing is not None:
            await self._closing
        if self._cut is not None and self._transport.is_closing():
            self._cut.cancel()


async def serve(request: web.Request, context: GatewayContext, peer: Peer) -> web.StreamResponse:
    """Serve one WebSocket until it ends."""
    socket = PromptSocket(
        timeout=CLOSE_TIMEOUT_S,
        max_msg_size=context.limits.record_bytes_max * FRAME_MESSAGES_MAX,
    )
    await socket.prepare(request)
    transport = request.transport
    if transport is None:  # gone before it began
        return socket
    wire = WebSocketWire(transport, socket)
    connection = Connection(context, peer, wire)
    context.coordinator.create(connection)
    try:
        await _read(socket, connection)
    finally:
        socket.offer_to(None)
        connection.lost()
        context.coordinator.remove(connection)
        await wire.closed()
        socket.forget_frames()
    return socket


async def _read(socket: PromptSocket, connection: Connection) -> None:
    socket.offer_to(connection.receive_at_once)
    while not connection.ended:
        try:
            message = await socket.receive()
        except ConnectionError:
            return  # it is gone, and with it the pong that it asked for
        if message.type is WSMsgType.TEXT:
            await connection.receive(message.data)
        elif message.type is WSMsgType.BINARY:
            connection.end(BadMessage("JSON goes in text frames; this one is binary"), "transport_error")
        elif message.type is WSMsgType.ERROR:
            connection.end(MessageTooLarge(f"the frame cannot be read: {message.data}"), "transport_error")
        else:
            return
        del message  # while it waits, a connection does not keep the last frame alive
