"""aiohttp's WebSocket, and a way past the queue of its frames.

aiohttp puts a frame into a queue and wakes whoever reads, a turn of the loop later. :class:`PromptSocket` first offers
it to ``at_once``, inside the socket's own callback, provided that the reader waits and nothing waits for it: so frames
keep their order. Owns that rule, and refuses to know what is in a frame.

What it relies on in aiohttp is named in ``tests/unit/gateway/test_prompt_socket.py``, which fails when it changes.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, TypeAlias

from aiohttp import WSMsgType, web
from aiohttp._websocket.models import WSMessageNoDecodeText, WSMessageTextBytes
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WebSocketWriter

QUEUE_BYTES = 2**16  # that wait before aiohttp stops reading the socket, as it has them

AtOnce: TypeAlias = Callable[[bytes], bytes | None]
"""Given the payload of a text frame; gives what of it is left for the reader, None for nothing."""


class PromptQueue(WebSocketDataQueue):
    """``prompt``: the reader waits, and the queue is empty."""

    def __init__(self, protocol: BaseProtocol, limit: int, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(protocol, limit, loop=loop)
        self.prompt = False
        self.at_once: AtOnce | None = None

    def feed_data(self, message: WSMessageNoDecodeText, size: int) -> None:
        at_once = self.at_once
        if self.prompt and at_once is not None and message.type is WSMsgType.TEXT:
            left = at_once(message.data)
            if left is None:
                return
            if left is not message.data:
                message = WSMessageTextBytes(WSMsgType.TEXT, left, "")
        self.prompt = False
        super().feed_data(message, size)


class PromptSocket(web.WebSocketResponse[Literal[False]]):
    """Text is read as bytes, and nothing is compressed."""

    def __init__(self, *, timeout: float, max_msg_size: int) -> None:
        super().__init__(timeout=timeout, max_msg_size=max_msg_size, compress=False, decode_text=False)
        self._queue: PromptQueue | None = None
        self._bytes_max = max_msg_size

    def offer_to(self, at_once: AtOnce | None) -> None:
        """From now on, until told otherwise."""
        assert self._queue is not None, "prepare it first"
        self._queue.at_once = at_once

    async def receive(self, timeout: float | None = None) -> WSMessageNoDecodeText:
        assert self._queue is not None, "prepare it first"
        self._queue.prompt = not self._queue._buffer  # noqa: SLF001
        return await super().receive(timeout)

    async def write_eof(self) -> None:  # type: ignore[override]  # as aiohttp has it
        """What aiohttp does with it at last; it closes it, where nobody has."""
        try:
            await super().write_eof()
        finally:
            self.forget_frames()

    def forget_frames(self) -> None:
        """What the socket keeps of its end, and what that came from, hold frames, and those the socket: a cycle that
        only the collector would find."""
        said = self.exception()
        while said is not None:
            said.__traceback__ = None
            said = said.__context__

    def _post_start(self, request: web.BaseRequest, protocol: str | None, writer: WebSocketWriter) -> None:
        """aiohttp's own, but for the kind of the queue."""
        self._ws_protocol = protocol
        self._writer = writer
        assert self._loop is not None
        self._reader = self._queue = PromptQueue(request.protocol, QUEUE_BYTES, loop=self._loop)
        self._parser = WebSocketReader(self._queue, self._bytes_max, compress=False, decode_text=False)
        request.protocol.set_parser(self._parser)
        request.protocol.keep_alive(False)  # noqa: FBT003
