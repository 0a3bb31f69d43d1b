"""Taking new connections a few at a time, so that thousands who come at once do not stop those who are here.

The event loop would take all that wait in one go, and each of them is work before it is asked for anything. Here the
kernel keeps them in its queue, and every turn of the loop takes its share. Owns the listening sockets of one address.
"""

import asyncio
import socket

from aiohttp import web

BACKLOG = 4_096  # the kernel caps it at net.core.somaxconn; whoever finds it full dials again after 1 s, then 2, 4 …
ACCEPTED_AT_ONCE = 16  # in one turn of the loop, of each address
FULL_S = 0.5  # no descriptors are left: look again after this long


class PacedSite(web.BaseSite):
    """A ``web.TCPSite`` that accepts little by little."""

    def __init__(self, runner: web.BaseRunner, host: str, port: int) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Raises: OSError when the address cannot be had."""
        await super().start()
        loop = asyncio.get_running_loop()
        protocols = self._runner.server
        assert protocols is not None
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        acceptor = _Acceptor(protocols)
        self._server = acceptor  # type: ignore[assignment]  # of a server, close() and sockets are asked for
        for family, kind, number, _, address in dict.fromkeys(found):
            acceptor.listen(family, kind, number, address)


class _Acceptor:
    def __init__(self, protocols: web.Server) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocols = protocols
        self._welcomes: set[asyncio.Task[None]] = set()
        self.sockets: list[socket.socket] = []

    def listen(self, family: int, kind: int, number: int, address: tuple[object, ...]) -> None:
        listening = socket.socket(family, kind, number)
        self.sockets.append(listening)
        listening.settimeout(0)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self.sockets = []

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connected, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors or no memory: asking again at once would be all that the loop does
                self._loop.remove_reader(listening)
                self._loop.call_later(FULL_S, self._again, listening)
                return
            connected.settimeout(0)
            task = self._loop.create_task(self._welcome(connected))
            self._welcomes.add(task)
            task.add_done_callback(self._welcomes.discard)

    def _again(self, listening: socket.socket) -> None:
        if listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    async def _welcome(self, connected: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocols, connected)
        except OSError:  # gone already
            connected.close()
