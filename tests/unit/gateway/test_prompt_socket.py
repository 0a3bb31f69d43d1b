"""Frames that are done where they arrive, and the ones that wait; and what that relies on in aiohttp."""

import ast
import asyncio
import inspect
import textwrap
from types import SimpleNamespace

import pytest
from aiohttp import WSMsgType, web
from aiohttp._websocket.reader import WebSocketReader

from lab.frames import client_frame
from service.gateway.transports.prompt import PromptQueue

READ = [
    "self._ws_protocol = protocol",
    "self._writer = writer",
    "self._reset_heartbeat()",
    "loop = self._loop",
    "assert loop is not None",
    "self._reader = WebSocketDataQueue(request._protocol, DEFAULT_CHUNK_SIZE, loop=loop)",
    (
        "self._parser = WebSocketReader(self._reader, self._max_msg_size, compress=bool(self._compress), "
        "decode_text=self._decode_text)"
    ),
    "cb = None if self._heartbeat is None else self._on_data_received",
    "request.protocol.set_parser(self._parser, data_received_cb=cb)",
    "request.protocol.keep_alive(False)",
]


def test_aiohttp_still_begins_to_read_as_it_did() -> None:
    """``PromptSocket._post_start`` is this without heartbeats and compression, and with a queue of another kind."""
    source = textwrap.dedent(inspect.getsource(web.WebSocketResponse._post_start))
    [function] = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert [ast.unparse(statement) for statement in function.body] == READ


class Reading:
    """A reader over a queue, and what was offered before it."""

    def __init__(self) -> None:
        self.offered: list[bytes] = []
        self.answer: dict[bytes, bytes | None] = {}
        protocol = SimpleNamespace(_reading_paused=False, pause_reading=lambda: None, resume_reading=lambda: None)
        self.queue = PromptQueue(protocol, 1 << 16, loop=asyncio.get_running_loop())  # type: ignore[arg-type]
        self.queue.at_once = self._offer
        self._parser = WebSocketReader(self.queue, 1 << 20, compress=False, decode_text=False)

    def _offer(self, payload: bytes) -> bytes | None:
        self.offered.append(payload)
        return self.answer.get(payload, payload)

    def feed(self, *frames: bytes) -> None:
        self._parser.feed_data(b"".join(frames))

    async def read(self) -> bytes:
        """As ``PromptSocket.receive`` does."""
        self.queue.prompt = not self.queue._buffer
        async with asyncio.timeout(1):
            return bytes((await self.queue.read()).data)


@pytest.fixture
async def reading() -> Reading:
    return Reading()


async def test_what_is_done_at_once_never_reaches_the_reader(reading: Reading) -> None:
    reading.answer = {b"1": None, b"2": None}
    waiting = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    reading.feed(client_frame(b"1"), client_frame(b"2"), client_frame(b"3"), client_frame(b"1"))
    assert reading.offered == [b"1", b"2", b"3"], "behind one that waits, all wait"
    assert await waiting == b"3"
    assert await reading.read() == b"1"


async def test_nothing_is_offered_while_nobody_waits_or_somebody_has_not_gone_on(reading: Reading) -> None:
    reading.answer = {b"2": None}
    reading.feed(client_frame(b"1"))
    assert reading.offered == []
    assert await reading.read() == b"1"
    reading.feed(client_frame(b"2"))
    assert reading.offered == []
    assert await reading.read() == b"2"


async def test_the_reader_is_woken_with_what_is_left(reading: Reading) -> None:
    reading.answer = {b"1": b""}
    waiting = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    reading.feed(client_frame(b"1"), client_frame(b"2"))
    assert await waiting == b""
    assert await reading.read() == b"2"
    assert reading.offered == [b"1"]


async def test_only_text_is_offered(reading: Reading) -> None:
    waiting = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    reading.feed(client_frame(b"1", WSMsgType.BINARY))
    assert await waiting == b"1"
    assert reading.offered == []
