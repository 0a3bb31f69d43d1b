"""A TCP proxy that fails on command, link by link: between clients and gateways, and between a gateway and NATS.

Owns connections and their faults. It knows no protocol: what it holds back, it holds back anywhere.
"""

import asyncio
import contextlib
import random
import socket
import struct

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0


class Link:
    """One connection through the proxy."""

    __slots__ = ("dead", "flowing", "writers")

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.writers = (near, far)
        self.flowing = (asyncio.Event(), asyncio.Event())  # towards the server, towards the client
        for gate in self.flowing:
            gate.set()
        self.dead = False

    def reset(self) -> None:
        self.dead = True
        for writer in self.writers:
            _reset(writer)
        self.flow()

    def stall(self, directions: tuple[int, ...]) -> None:
        for direction in directions:
            self.flowing[direction].clear()

    def flow(self) -> None:
        for gate in self.flowing:
            gate.set()


class FaultProxy:
    """Listens on a port of its own on loopback, in front of ``host:port``."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.links: set[Link] = set()
        self.parted = False

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the proxy is not started")
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self, share: float, rng: random.Random) -> int:
        """Resets this share of the links, at least one if there is any. Returns how many."""
        chosen = self._some(share, rng)
        for link in chosen:
            link.reset()
            self.links.discard(link)
        return len(chosen)

    def stall(self, share: float, rng: random.Random, directions: tuple[int, ...] = (0, 1)) -> int:
        """Holds back what this share of the links carries, until :meth:`heal`. Returns how many."""
        chosen = self._some(share, rng)
        for link in chosen:
            link.stall(directions)
        return len(chosen)

    def part(self) -> None:
        """Resets every link and refuses new ones, until :meth:`heal`."""
        self.parted = True
        for link in list(self.links):
            link.reset()
        self.links.clear()

    def heal(self) -> None:
        self.parted = False
        for link in self.links:
            link.flow()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _some(self, share: float, rng: random.Random) -> list[Link]:
        links = list(self.links)
        return rng.sample(links, min(len(links), max(1, round(share * len(links))))) if links else []

    def _accept(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(near, near_writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far, far_writer = await asyncio.open_connection(*self._target)
        except OSError:  # TimeoutError is one
            _reset(near_writer)
            return
        link = Link(near_writer, far_writer)
        if self.parted:
            link.reset()
            return
        self.links.add(link)
        try:
            await asyncio.gather(_pump(link, 0, near, far_writer), _pump(link, 1, far, near_writer))
        finally:
            self.links.discard(link)
            link.dead = True
            for writer in link.writers:
                writer.close()


async def _pump(link: Link, direction: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while chunk := await source.read(CHUNK_BYTES):
            await link.flowing[direction].wait()
            if link.dead:
                return
            sink.write(chunk)
            await sink.drain()
        await link.flowing[direction].wait()
        sink.write_eof()
    except (OSError, RuntimeError):  # uvloop says "closed" by RuntimeError
        link.reset()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST, not FIN: what is under way is gone."""
    connected = writer.get_extra_info("socket")
    if connected is not None and connected.fileno() >= 0:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
