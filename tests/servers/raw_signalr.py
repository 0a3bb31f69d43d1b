"""A SignalR client by bytes: what it is told to send goes out as it stands, what comes in is kept as it came."""

import asyncio
import itertools
import json
import os
from typing import Any, Self
from urllib.parse import urlsplit

from lab.frames import CLOSE, PING, PONG, TEXT, client_frame, split_frames, split_head, upgrade_request

HANDSHAKE = b'{"protocol":"json","version":1}\x1e'
BINARY = 0x2
PATIENCE_S = 20.0


class RawClient:
    """One WebSocket. ``async with`` opens it, shakes hands (unless ``handshake`` is None) and cuts it at the end.

    ``records`` are all that came, without their separators; ``close_code`` is that of the closing frame; ``ended``
    says that nothing more will come.
    """

    def __init__(self, gateway: str, hub: str, query: str = "", *, handshake: bytes | None = HANDSHAKE) -> None:
        parts = urlsplit(gateway)
        self._address = (parts.hostname or "", parts.port or 0)
        self._path = f"/hubs/{hub}{query}"
        self._handshake = handshake
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.records: list[bytes] = []
        self.close_code: int | None = None
        self.ended = False
        self.status = 0

    async def __aenter__(self) -> Self:
        self._reader, self.writer = await asyncio.open_connection(*self._address)
        try:
            await self._begin()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begin(self) -> None:
        host = f"{self._address[0]}:{self._address[1]}"
        self.writer.write(upgrade_request(host, self._path, os.urandom(16)))
        head = split_head(await self._reader.readuntil(b"\r\n\r\n"))
        assert head is not None
        self.status = head[0]
        assert self.status == 101, f"the upgrade was answered with {self.status}"
        self._reading = asyncio.ensure_future(self._read())
        if self._handshake is not None:
            self.send(self._handshake)
            await self.record(containing=b"{}")

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        if self._reading is not None:
            await self._reading

    def send(self, payload: bytes, opcode: int = TEXT) -> None:
        """One frame."""
        self.writer.write(client_frame(payload, opcode))

    def stop_reading(self) -> None:
        """From now on take nothing from the socket."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's, but StreamWriter hides it

    async def call(self, target: str, arguments: bytes) -> Any:
        """Call with raw arguments; gives the Completion, decoded."""
        number = b"%d" % next(self._numbers)
        self.send(
            b'{"type":1,"invocationId":"%s","target":"%s","arguments":%s}\x1e' % (number, target.encode(), arguments)
        )
        return json.loads(await self.record(containing=b'{"type":3,"invocationId":"%s",' % number))

    async def record(self, *, containing: bytes) -> bytes:
        """Wait for a record, or find it among those that came."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for record in self.records:
                    if containing in record:
                        return record
                assert not self.ended, f"ended without {containing!r}: {self.records[-3:]}, code {self.close_code}"
                await self._heard()

    async def end(self, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until the other side has ended it."""
        async with asyncio.timeout(patience_s):
            while not self.ended:
                await self._heard()

    async def _heard(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _read(self) -> None:
        rest = b""
        try:
            while data := await self._reader.read(65_536):
                frames, rest = split_frames(rest + data)
                for opcode, payload in frames:
                    if opcode == TEXT:
                        self.records += payload.split(b"\x1e")[:-1]
                    elif opcode == PING:
                        self.send(payload, PONG)
                    elif opcode == CLOSE:
                        self.close_code = int.from_bytes(payload[:2], "big")
                        self.send(payload, CLOSE)
                self._news.set()
        except ConnectionError:
            pass  # cut: that is an end as well
        finally:
            self.ended = True
            self._news.set()
