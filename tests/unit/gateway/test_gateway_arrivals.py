"""A TCP connection on which no request comes is closed in time; one that has asked is left alone."""

import asyncio
from urllib.parse import urlsplit

import pytest

from service.gateway.signalr.machine import Limits
from tests.servers.gateway import MakeNode, Node

PATIENCE_S = 0.2
REQUEST = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    return await make_node(limits=Limits(handshake_s=PATIENCE_S))


async def connect(node: Node) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(node.url)
    return await asyncio.open_connection(where.hostname, where.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the end of the connection."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize("said", [b"", b"G", REQUEST[:-2]], ids=["nothing", "a letter", "headers without an end"])
async def test_who_does_not_ask_is_shown_out(node: Node, said: bytes) -> None:
    reader, writer = await connect(node)
    writer.write(said)
    assert await ended(reader) == b""
    assert node.server.arrivals.closed == 1
    writer.close()


async def test_one_byte_at_a_time_does_not_help(node: Node) -> None:
    reader, writer = await connect(node)

    async def trickle() -> None:
        writer.write(b"GET /")
        while True:
            writer.write(b"a")
            await asyncio.sleep(PATIENCE_S / 50)

    trickling = asyncio.create_task(trickle())
    assert await ended(reader) == b""
    trickling.cancel()
    await asyncio.gather(trickling, return_exceptions=True)
    assert node.server.arrivals.closed == 1
    writer.close()


async def test_who_has_asked_stays_and_may_ask_again(node: Node) -> None:
    reader, writer = await connect(node)
    silent_reader, silent_writer = await connect(node)
    async with node.client() as client:
        writer.write(REQUEST)
        first = await reader.readuntil(b"not_found")
        assert first.startswith(b"HTTP/1.1 404 ")
        # Longer than anybody may say nothing: another one, who came later, has been shown out meanwhile.
        await ended(silent_reader)
        late_reader, late_writer = await connect(node)
        await ended(late_reader)
        writer.write(REQUEST)
        assert (await reader.readuntil(b"HTTP/1.1 404 ")).endswith(b"HTTP/1.1 404 ")
        assert "result" in await client.call("hub.session", b"[]")
    assert node.server.arrivals.closed == 2
    assert not node.server.arrivals._waiting
    for one in (writer, silent_writer, late_writer):
        one.close()


async def test_who_went_before_leaves_nothing_behind(node: Node) -> None:
    _, writer = await connect(node)
    writer.close()
    await writer.wait_closed()
    reader, other = await connect(node)
    await ended(reader)
    assert node.server.arrivals.closed == 1
    assert not node.server.arrivals._waiting
    other.close()
