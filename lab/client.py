"""A SignalR client made for load: thousands in one process, a few microseconds for each message received.

Owns one connection (upgrade, handshake, calls, records) and the opening and keeping alive of many. It knows the wire as
documented and nothing of the service's code. It does not decode invocations: it looks for :data:`MARK` in them.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from typing import Protocol, cast
from urllib.parse import urlencode, urlsplit

import msgspec

from lab.frames import CLOSE, PING, PONG, TEXT, BadFrame, client_frame, split_frames, split_head, upgrade_request

MARK = b'["hublog-bench",'
"""How arguments made by :func:`marked_arguments` begin; a sequence number and a time in ns follow."""
TAIL_BYTES = 48
"""More than a position takes at the end of an invocation."""
RS = b"\x1e"
HANDSHAKE = client_frame(b'{"protocol":"json","version":1}\x1e')
KEEP_ALIVE = client_frame(b'{"type":6}\x1e')
KEEP_ALIVE_S = 10.0
OPENING_AT_ONCE = 128
DIALLED_PER_TURN = 20
"""So that those who are open already are heard while thousands dial."""
OPEN_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 20.0

_json = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, gc=False):
    """A Completion; ``result`` is empty where there is none."""

    type: int
    invocationId: str = ""  # noqa: N815
    result: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None


_decode = msgspec.json.Decoder(Answer).decode


class NotOpened(Exception):
    """A connection could not be opened, or has ended; the text says how."""


class CallFailed(Exception):
    """The service answered a call with an error."""


class Sink(Protocol):
    """What is told of each marked invocation that a client receives."""

    def note(self, receiver: int, message: int, delay_ns: int) -> None: ...


def marked_arguments(message: int, sent_ns: int, size: int) -> bytes:
    """A JSON array of ``size`` bytes (or a little more, if that is too few) that :class:`LoadClient` recognises."""
    head = MARK + b'%d,%d,"' % (message, sent_ns)
    return head + b"x" * (size - len(head) - 2) + b'"]'


class LoadClient(asyncio.Protocol):
    """One connection. ``ended`` is None while it lives, and says afterwards what ended it."""

    __slots__ = (
        "_calls",
        "_ids",
        "_opened",
        "_path",
        "_phase",
        "_rest",
        "ended",
        "heard_ns",
        "index",
        "on_end",
        "on_invocation",
        "sink",
        "tail",
        "transport",
    )

    def __init__(self, index: int, host_and_path: tuple[str, str], opened: "asyncio.Future[None]") -> None:
        self.index = index
        self.sink: Sink | None = None
        self.tail = b""  # how the latest marked invocation ends
        self.ended: str | None = None
        self.transport: asyncio.Transport | None = None
        self.heard_ns = time.perf_counter_ns()  # when anything came last
        self.on_invocation: Callable[[bytes], None] | None = None  # given each one that is not marked, as it came
        self.on_end: Callable[[str], None] | None = None  # called once, with what ended it
        self._path = host_and_path
        self._opened: asyncio.Future[None] | None = opened
        self._phase = 0  # 0 upgrading, 1 shaking hands, 2 open
        self._rest = b""
        self._calls: dict[str, Callable[[Answer], None]] | None = None
        self._ids: itertools.count[int] | None = None

    # -------------------------------------------------------------------------------------------- calling

    @property
    def cursor(self) -> str | None:
        """The position of the latest marked invocation, which a connection with ``resumable=1`` ends with."""
        return self.tail.rsplit(b'"', 2)[1].decode() if self.tail else None

    def send(self, frame: bytes) -> None:
        if self.ended is not None or self.transport is None:
            raise NotOpened(self.ended or "not connected")
        self.transport.write(frame)

    def call_with(self, on_answer: Callable[[Answer], None], target: str, arguments: bytes) -> None:
        """Calls a method with a raw JSON array; ``on_answer`` is called once, unless the connection ends first."""
        if self._calls is None or self._ids is None:
            self._calls, self._ids = {}, itertools.count(1)
        number = str(next(self._ids))
        self._calls[number] = on_answer
        self.send(
            client_frame(
                b'{"type":1,"invocationId":"%s","target":%s,"arguments":%s}\x1e'
                % (number.encode(), _json(target), arguments)
            )
        )

    async def call(self, target: str, *arguments: object) -> object:
        """Calls a method and waits for its result. Raises: CallFailed, NotOpened, TimeoutError."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_answer(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.call_with(on_answer, target, _json(arguments))
        async with asyncio.timeout(CALL_TIMEOUT_S):
            answer = await answered
        if answer.error is not None:
            raise CallFailed(f"{target}: {answer.error}")
        return msgspec.json.decode(answer.result) if answer.result else None

    def close(self) -> None:
        """Leaves as a client does: a Close, then the end of the connection."""
        if self.transport is not None and self.ended is None:
            self.ended = "closed by the bench"
            self._told(self.ended)
            self.transport.write(client_frame(b'{"type":7}\x1e') + client_frame(b"\x03\xe8", CLOSE))
            self.transport.close()

    def abort(self, why: str) -> None:
        """Gives the connection up without a word, as a client does that lost its network."""
        self._end(why)

    def stop_reading(self) -> None:
        """From now on takes nothing from the socket, and is heard to live all the same, if somebody keeps it alive."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None and self.ended is None:
            self.transport.resume_reading()

    # -------------------------------------------------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # cast: uvloop's transports are no subclass of asyncio.Transport
        self.transport = cast("asyncio.Transport", transport)
        host, path = self._path
        self.transport.write(upgrade_request(host, path, os.urandom(16)))

    def data_received(self, data: bytes) -> None:
        self.heard_ns = now_ns = time.perf_counter_ns()
        try:
            if self._phase == 0:
                data = self._upgraded(self._rest + data)
                if not data:
                    return
            elif self._rest:
                data = self._rest + data
            frames, self._rest = split_frames(data)
            for opcode, payload in frames:
                if opcode == TEXT:
                    self._records(payload, now_ns)
                else:
                    self._control(opcode, payload)
        except BadFrame as exc:
            self._end(str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc or 'closed by the service'}")

    # -------------------------------------------------------------------------------------------- inside

    def _upgraded(self, data: bytes) -> bytes:
        head = split_head(data)
        if head is None:
            self._rest = data
            return b""
        self._rest = b""
        status, rest = head
        if status != 101:
            raise BadFrame(f"the upgrade was answered with status {status}: {rest[:200].decode(errors='replace')}")
        self._phase = 1
        self.send(HANDSHAKE)
        return rest

    def _records(self, payload: bytes, now_ns: int) -> None:
        start = 0
        while (end := payload.find(RS, start)) >= 0:
            mark = payload.find(MARK, start, end)
            if mark >= 0 and self.sink is not None:
                first = payload.index(b",", mark + len(MARK))
                second = payload.index(b",", first + 1)
                sent_ns = int(payload[first + 1 : second])
                self.tail = payload[end - TAIL_BYTES : end]
                self.sink.note(self.index, int(payload[mark + len(MARK) : first]), now_ns - sent_ns)
            elif mark < 0:
                self._other(payload[start:end])
            start = end + 1

    def _other(self, record: bytes) -> None:
        if self._phase == 1:
            if record != b"{}":
                raise BadFrame(f"the handshake was answered with {record[:300].decode(errors='replace')}")
            self._phase = 2
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
            self._opened = None
            return
        answer = _decode(record)
        if answer.type == 3 and self._calls is not None:
            waiting = self._calls.pop(answer.invocationId, None)
            if waiting is not None:
                waiting(answer)
        elif answer.type == 1 and self.on_invocation is not None:
            self.on_invocation(record)
        elif answer.type == 7:
            self._end(f"closed by the service: {answer.error}")

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING and self.transport is not None:
            self.transport.write(client_frame(payload, PONG))
        elif opcode == CLOSE:
            self._end(f"closed with code {int.from_bytes(payload[:2], 'big')}")

    def _end(self, why: str) -> None:
        if self.ended is None:
            self.ended = why
            self._told(why)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(NotOpened(self.ended))
        self._opened = None
        if self.transport is not None:
            self.transport.abort()

    def _told(self, why: str) -> None:
        told, self.on_end = self.on_end, None
        if told is not None:
            told(why)


async def open_client(
    address: tuple[str, int],
    path: str,
    index: int = 0,
    on_invocation: Callable[[bytes], None] | None = None,
    sink: Sink | None = None,
) -> LoadClient:
    """Connects and shakes hands; ``path`` with its query, ``on_invocation`` and ``sink`` from the first byte on.

    Raises: OSError, NotOpened, TimeoutError.
    """
    loop = asyncio.get_running_loop()
    host, port = address
    opened: asyncio.Future[None] = loop.create_future()
    client = LoadClient(index, (f"{host}:{port}", path), opened)
    client.on_invocation, client.sink = on_invocation, sink
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await loop.create_connection(lambda: client, host, port)
            await opened
    except BaseException:
        if client.transport is not None:
            client.transport.abort()
        raise
    return client


class Crowd:
    """Many clients on one address, kept alive together."""

    def __init__(
        self,
        url: str,
        hub: str,
        *,
        users: str | None = None,
        query: Callable[[int], str] | None = None,
        sink: Sink | None = None,
        at_once: int = OPENING_AT_ONCE,
    ) -> None:
        """``users``: a prefix; each client is then its own user, ``<prefix><index>``. ``query``: of the client with an
        index, instead. ``sink``: hears all of them from their first byte on. ``at_once``: how many open together.
        """
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = f"/hubs/{hub}"
        self._query = (lambda index: urlencode({"user": f"{users}{index}"})) if users is not None else query
        self._sink = sink
        self._at_once = at_once
        self._keeper: asyncio.TimerHandle | None = None
        self._turn = 0
        self.clients: list[LoadClient] = []
        self.failures: list[str] = []

    async def open(
        self,
        count: int,
        on_progress: Callable[[int], None] | None = None,
        on_open: Callable[[LoadClient], None] | None = None,
    ) -> None:
        """Opens ``count`` more, some at once; failures are collected, not raised."""
        gate = asyncio.Semaphore(self._at_once)
        first = len(self.clients) + len(self.failures)

        async def one(index: int) -> None:
            async with gate:
                try:
                    client = await self._open_one(index)
                    self.clients.append(client)
                    if on_open is not None:
                        on_open(client)
                except (OSError, NotOpened, TimeoutError) as exc:
                    self.failures.append(str(exc) or type(exc).__name__)
                if on_progress is not None:
                    on_progress(1)

        if self._keeper is None:
            self._keep_alive()
        async with asyncio.TaskGroup() as group:
            for index in range(first, first + count):
                group.create_task(one(index))
                if index % DIALLED_PER_TURN == 0:
                    await asyncio.sleep(0)

    async def _open_one(self, index: int) -> LoadClient:
        path = self._path if self._query is None else f"{self._path}?{self._query(index)}"
        return await open_client((self._host, self._port), path, index, sink=self._sink)

    def listen(self, sink: Sink | None) -> None:
        """Numbers the clients from 0 and sends what they receive from now on to ``sink``."""
        for index, client in enumerate(self.clients):
            client.index, client.sink = index, sink

    @property
    def ended(self) -> list[str]:
        """How those that have ended did."""
        return [client.ended for client in self.clients if client.ended is not None]

    async def close(self) -> None:
        """Closes all, a few hundred at a time, so that the service is not measured at drowning."""
        if self._keeper is not None:
            self._keeper.cancel()
        for start in range(0, len(self.clients), 200):
            for client in self.clients[start : start + 200]:
                client.close()
            await asyncio.sleep(0.01)

    def _keep_alive(self) -> None:
        """A twentieth of the clients at a time, so that pings do not come as a wave."""
        for client in self.clients[self._turn :: 20]:
            if client.ended is None and client.transport is not None:
                client.transport.write(KEEP_ALIVE)
        self._turn = (self._turn + 1) % 20
        self._keeper = asyncio.get_running_loop().call_later(KEEP_ALIVE_S / 20, self._keep_alive)
