"""A TCP proxy that fails on command: for tests of what happens when the network does.

``async with proxy_to(host, port) as proxy``: connect to ``proxy.port``, or to ``proxy.url(of_the_server)``. ``cut()``
ends every connection with a reset and refuses new ones until ``heal()``; ``reset()`` only ends those that are there;
``stall()`` holds the bytes of one or both directions back while connections stay up, and ``heal()`` lets them go on.
``edit`` is given whatever the server says, a chunk at a time, and says what the client hears instead.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 64 * 1024

Direction = Literal["up", "down"]  # towards the server, towards the client


class Proxy:
    """See the module. Made by :func:`proxy_to`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: dict[Direction, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._open.values():
            gate.set()
        self._refusing = False
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.edit: Callable[[bytes], bytes] = lambda chunk: chunk
        self.accepted = 0  # connections so far
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def url(self, of: str) -> str:
        """The URL ``of`` the server, through this proxy: the same scheme and credentials."""
        parts = urlsplit(of)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def cut(self) -> None:
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        for link in list(self._links):
            for writer in link:
                _reset(writer)
        self._links.clear()

    def stall(self, *directions: Direction) -> None:
        for direction in directions or ("up", "down"):
            self._open[direction].clear()

    def heal(self) -> None:
        self._refusing = False
        for gate in self._open.values():
            gate.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        self.accepted += 1
        self._spawn(self._link(reader, writer))

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _link(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            far, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(near_writer)
            return
        link = (near_writer, far_writer)
        if self._refusing:
            for writer in link:
                _reset(writer)
            return
        self._links.add(link)
        self._spawn(self._pump(near, far_writer, "up", link))
        self._spawn(self._pump(far, near_writer, "down", link))

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        link: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while chunk := await source.read(CHUNK_BYTES):
                await self._open[direction].wait()
                if link not in self._links:
                    return
                self.bytes[direction] += len(chunk)
                sink.write(self.edit(chunk) if direction == "down" else chunk)
                await sink.drain()
            sink.write_eof()
        except OSError:
            for writer in link:
                _reset(writer)
            self._links.discard(link)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, not FIN: what is under way is gone."""
    connected = writer.get_extra_info("socket")
    if connected is not None and connected.fileno() >= 0:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxy_to(host: str, port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(host, port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
