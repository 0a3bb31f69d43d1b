"""Messages handed over where they arrive: the same ones, in the same order, as nats-py's own reading gives."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from service.log.jetstream.client import Listening, SyncClient

WITH_HEADERS = b"HMSG lv.0.h.all 1 32 37\r\nNATS/1.0\r\nNats-Sequence: 123\r\n\r\nhello\r\n"
PLAIN = b"MSG lv.0.h.u.a 1 reply.to 2\r\nhi\r\n"
HEARD_WITH_HEADERS = (b"lv.0.h.all", b"", b"hello", b"NATS/1.0\r\nNats-Sequence: 123\r\n\r\n")
HEARD_PLAIN = (b"lv.0.h.u.a", b"reply.to", b"hi", None)

Heard = list[tuple[bytes, bytes, bytes, bytes | None]]


class Sink:
    """What is written goes nowhere, and takes its time: whoever answers a PING is not back at once."""

    def writelines(self, lines: list[bytes]) -> None: ...

    async def drain(self) -> None:
        await asyncio.sleep(0)


class Reading:
    """A client whose reading loop runs on a stream that the test feeds, as the socket would."""

    def __init__(self) -> None:
        self.client = SyncClient()
        self.client._flush_queue = asyncio.Queue()
        self.client._ps.reset()
        self.client._status = Client.CONNECTED
        self.stream = asyncio.StreamReader()
        transport = TcpTransport()
        transport._io_reader = self.stream
        transport._io_writer = Sink()  # type: ignore[assignment]
        self.client._transport = transport
        self.heard: Heard = []
        self.client._subs[1] = Listening(self.client, 1, "lv.>", lambda *parts: self.heard.append(parts))
        self.client._subs[2] = SimpleNamespace()  # type: ignore[assignment]  # one of nats-py's own

    async def begin(self) -> None:
        self.client._reading_task = asyncio.create_task(self.client._read_loop())
        await asyncio.sleep(0)

    async def end(self) -> None:
        assert self.client._reading_task is not None
        self.client._reading_task.cancel()
        await self.client._reading_task


@pytest.fixture
async def reading() -> Reading:
    reading = Reading()
    await reading.begin()
    return reading


async def test_a_whole_message_is_heard_before_the_socket_s_callback_returns(reading: Reading) -> None:
    reading.stream.feed_data(WITH_HEADERS + PLAIN)
    assert reading.heard == [HEARD_WITH_HEADERS, HEARD_PLAIN]
    await reading.end()


async def test_behind_a_piece_everything_waits_until_the_piece_is_whole(reading: Reading) -> None:
    reading.stream.feed_data(PLAIN + WITH_HEADERS[:40])
    reading.stream.feed_data(WITH_HEADERS[40:] + PLAIN)
    assert reading.heard == [HEARD_PLAIN]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reading.heard == [HEARD_PLAIN, HEARD_WITH_HEADERS, HEARD_PLAIN]
    reading.stream.feed_data(WITH_HEADERS)
    assert len(reading.heard) == 4
    await reading.end()


async def test_a_payload_that_looks_like_a_message_is_none(reading: Reading) -> None:
    """Cut behind its first line: nats-py has nothing in its buffer then, and waits for the payload."""
    reading.stream.feed_data(b"MSG lv.0.h.u.a 1 %d\r\n" % len(PLAIN))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.stream.feed_data(PLAIN + b"\r\n" + PLAIN)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reading.heard == [(b"lv.0.h.u.a", b"", PLAIN, None), HEARD_PLAIN]
    await reading.end()


async def test_what_is_not_ours_goes_to_nats_py_and_nothing_overtakes_it(reading: Reading) -> None:
    pong = asyncio.get_running_loop().create_future()
    reading.client._pongs.append(pong)
    reading.stream.feed_data(b"PONG\r\n")
    reading.stream.feed_data(PLAIN)
    assert reading.heard == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pong.done()
    assert reading.heard == [HEARD_PLAIN]
    await reading.end()


async def test_after_the_connection_is_lost_nothing_more_is_heard_of_it(reading: Reading) -> None:
    reading.client._status = Client.RECONNECTING
    reading.stream.feed_data(PLAIN)
    assert reading.heard == []
    await reading.end()


@pytest.mark.parametrize(
    "odd",
    [b"MSG a 1 x\r\n", b"MSG a one 2\r\n", b"MSG a 1 b c 2\r\n", b"HMSG a 1 2\r\n", b"MSG a 7 2\r\n", b"MSGS\r\n"],
)
async def test_what_is_no_message_of_ours_is_left_to_nats_py(odd: bytes) -> None:
    reading = Reading()
    passed: list[bytes] = []
    reading.stream.feed_data = passed.append  # type: ignore[method-assign]
    await reading.begin()
    reading.stream.feed_data(PLAIN + odd + PLAIN)
    assert (reading.heard, passed) == ([HEARD_PLAIN], [odd + PLAIN])
    await reading.end()


PIECES = st.lists(st.sampled_from([WITH_HEADERS, PLAIN, b"PONG\r\n", b"+OK\r\n", b"PING\r\n"]), max_size=12)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 300), max_size=6), turns=st.lists(st.booleans(), min_size=8))
def test_however_the_stream_is_cut_it_is_heard_as_nats_py_hears_it(
    pieces: list[bytes], cuts: list[int], turns: list[bool]
) -> None:
    stream = b"".join(pieces)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    chunks = [stream[start:end] for start, end in pairwise(edges)]

    async def ours() -> Heard:
        reading = Reading()
        await reading.begin()
        for chunk, turn in zip(chunks, turns, strict=False):
            reading.stream.feed_data(chunk)
            if turn:
                await asyncio.sleep(0)
        for _ in range(2 * len(pieces) + 4):
            await asyncio.sleep(0)
        await reading.end()
        return reading.heard

    async def theirs() -> Heard:
        reading = Reading()
        for chunk in chunks:
            await reading.client._ps.parse(chunk)
        return reading.heard

    assert asyncio.run(ours()) == asyncio.run(theirs())
