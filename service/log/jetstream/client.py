"""One connection to NATS: nats-py underneath, with a synchronous way in and out.

Owns the connection's life (for ever reconnecting, with back-off and jitter), the order of what is written, and the
dispatch of what arrives: a message of a subscription made by :meth:`SyncClient.listen` is handed to its callback where
it arrives (``intake``), with no task, queue or header dictionary in between, and in the order of the wire across all
subjects. What :meth:`SyncClient.send` and ``listen`` write has gone out or is in the buffer of the connection when they
return; nothing is buffered while there is no connection. Knows nothing of streams and events.

Everything of nats-py that this relies on is listed in ``tests/unit/test_nats_client.py``, which fails when it changes.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client, Server, Srv
from nats.aio.transport import TcpTransport

from events.errors import LogUnavailable, PayloadTooLarge
from service.log.jetstream.intake import Intake, OnRaw, hand_over
from service.voice import Voice

CONNECT_TIMEOUT_S = 2
PING_INTERVAL_S = 5  # a dead peer is noticed after two of these
PINGS_OUTSTANDING_MAX = 2
FLUSH_TIMEOUT_S = 5
RECONNECT_FIRST_S = 0.05  # doubled up to the maximum, each with full jitter
RECONNECT_MAX_S = 2.0

log = structlog.get_logger(__name__)


class Listening:
    """A synchronous subscription, and the face of one that nats-py expects of what is in its table."""

    __slots__ = ("_client", "_id", "_received", "_subject", "callback")

    # nats-py looks at these when it replays, drains and closes subscriptions.
    _queue: ClassVar[str] = ""
    _max_msgs: ClassVar[int] = 0
    _wait_for_msgs_task: ClassVar[None] = None
    _message_iterator: ClassVar[None] = None
    _pending_next_msgs_calls: ClassVar[None] = None

    def __init__(self, client: "SyncClient", sid: int, subject: str, callback: OnRaw) -> None:
        self._client = client
        self._id = sid
        self._subject = subject
        self._received = 0
        self.callback = callback

    def unsubscribe(self) -> None:
        """Hear nothing more, from now on: also nothing that is already on its way."""
        self._client._unlisten(self._id)  # noqa: SLF001 — one pair of classes

    async def _drain(self) -> None:
        self.unsubscribe()


class Connection(Protocol):
    """Somebody who wants to know, synchronously, when the connection goes and comes."""

    def lost(self) -> None: ...

    def regained(self) -> None: ...


class SyncClient(Client):
    """See the module. Made by :func:`connect`."""

    def __init__(self) -> None:
        # Before the base class, which assigns `_status` (a property here) in its own constructor.
        self._state: int = Client.DISCONNECTED
        self._usable = False
        self._observers: list[Connection] = []
        self._flushes: set[asyncio.Future[Any]] = set()
        self._kick: asyncio.Future[None] | None = None
        self._turn_over: asyncio.Handle | None = None
        self._delay_s = RECONNECT_FIRST_S
        self._turn = 0
        self.last_problem: str | None = None
        self._voice = Voice(log)
        self.on_cluster_changed: Callable[[], None] = lambda: None
        self._cluster: frozenset[str] = frozenset()
        self.losses = 0
        self._left: tuple[str | None, int | None] | None = None  # the server that was given up last
        super().__init__()

    # -- the way in and out, all synchronous

    @property
    def connected(self) -> bool:
        """Whether what is sent now goes out now: connected, and every subscription replayed."""
        return self._usable

    def listen(self, subject: str, callback: OnRaw) -> Listening:
        """Subscribe. Effective on the server before anything that is sent later; replayed on every reconnect."""
        if self.is_closed:
            raise LogUnavailable("the connection to NATS is closed")
        self._sid += 1
        listening = Listening(self, self._sid, subject, callback)
        self._subs[self._sid] = listening  # type: ignore[assignment]
        if self.is_connected:
            self._write(f"SUB {subject} {self._sid}\r\n".encode())
        return listening

    def _unlisten(self, sid: int) -> None:
        if self._subs.pop(sid, None) is not None and self.is_connected:
            self._write(f"UNSUB {sid}\r\n".encode())

    def send(self, subject: str, reply: str, payload: bytes, headers: bytes | None = None) -> None:
        """Publish; ``headers`` is the raw block (``NATS/1.0\\r\\n…\\r\\n\\r\\n``).

        Raises: LogUnavailable (nothing was written), PayloadTooLarge.
        """
        if not self._usable:
            raise LogUnavailable("there is no connection to NATS")
        if headers is None:
            self.must_fit(len(payload))
            self._write(b"".join((f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n")))
            return
        whole = len(headers) + len(payload)
        self.must_fit(whole)
        head = f"HPUB {subject} {reply} {len(headers)} {whole}\r\n".encode()
        self._write(b"".join((head, headers, payload, b"\r\n")))

    def must_fit(self, size: int) -> None:
        """Raises: PayloadTooLarge for more bytes of headers and payload than the server takes."""
        if size > self._max_payload:
            raise PayloadTooLarge(f"{size} bytes are more than the {self._max_payload} that NATS takes")

    def _write(self, command: bytes) -> None:
        """The first of a turn of the loop goes out at once, what follows in the same turn together at its end."""
        by_turns = self._usable and self._transport is not None
        if by_turns and self._turn_over is None:
            self._turn_over = asyncio.get_running_loop().call_soon(self._end_turn)
            if not self._pending:
                self._put_out([command])
                return
        self._pending.append(command)
        self._pending_data_size += len(command)
        if by_turns:
            return
        # While the subscriptions are replayed, nats-py's own flusher writes.
        queue = self._flush_queue
        assert queue is not None, "connect first"
        if queue.empty():
            if self._kick is None:
                self._kick = asyncio.get_running_loop().create_future()
                self._kick.set_result(None)
            queue.put_nowait(self._kick)

    def _end_turn(self) -> None:
        self._turn_over = None
        if self._pending and self._usable:
            pending, self._pending = self._pending, []
            self._pending_data_size = 0
            self._put_out(pending)

    def _put_out(self, commands: list[bytes]) -> None:
        """On a socket that has just been closed it goes nowhere, as if it had been lost on the way: the reading side
        is about to say so, and whoever waits for an answer hears of it then."""
        assert self._transport is not None
        with contextlib.suppress(RuntimeError):  # uvloop's way to say that it is closed
            self._transport.writelines(commands)

    def observe(self, observer: Connection) -> None:
        """``lost`` is called before any message of a later connection, ``regained`` when sending works again."""
        self._observers.append(observer)

    async def flush(self, timeout: float = FLUSH_TIMEOUT_S) -> None:
        """Return when the server has read everything written before. Raises: nats.errors.Error.

        Surprising because nats-py's own writes its PING ahead of what is still in the buffer, and cancels the future of
        a flush that timed out, which kills its reading loop when the PONG comes at last. A server that does not answer
        in time is taken for gone.
        """
        if self.is_closed:
            raise nats_errors.ConnectionClosedError
        if self._transport is None or not self.is_connected:
            raise nats_errors.ConnectionReconnectingError
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._flushes.add(pong)
        try:
            await self._send_ping(pong)
            done, _ = await asyncio.wait((pong,), timeout=timeout)
        finally:
            self._flushes.discard(pong)
        if not done:
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
            raise nats_errors.FlushTimeoutError
        pong.result()

    # -- what nats-py calls

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        found: Any = self._subs.get(sid)
        if type(found) is not Listening:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        hand_over(found, subject, reply, data, headers)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 — the shape of nats-py
        await super()._process_info(info, initial_connection)
        before, self._cluster = self._cluster, frozenset(info.get("connect_urls") or ())
        if not initial_connection and before != self._cluster:
            self.on_cluster_changed()

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self._pending and self._transport is not None:
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    async def _process_err(self, err_msg: str) -> None:
        # nats-py closes for ever on most errors of a running connection; the server has closed it, so connect anew.
        self.last_problem = err_msg
        if "permissions violation" in err_msg:
            log.error("nats.permission_denied", error=err_msg)
            return
        await self._process_op_err(nats_errors.Error(f"nats: {err_msg}"))

    async def _read_loop(self) -> None:
        transport = self._transport
        if isinstance(transport, TcpTransport) and transport._io_reader is not None:  # noqa: SLF001
            Intake(transport._io_reader, self._ps, self._subs, Listening, lambda: self.is_connected).begin()  # noqa: SLF001
        await super()._read_loop()
        task = asyncio.current_task()
        if task is self._reading_task and task is not None and not task.cancelling() and self.is_connected:
            # It ends without a word on an unexpected exception, and the connection would look alive.
            await self._process_op_err(nats_errors.UnexpectedEOF())

    @property
    def _status(self) -> int:
        return self._state

    @_status.setter
    def _status(self, status: int) -> None:
        # Every path of nats-py that loses the connection assigns this, synchronously, before it reads anything new.
        self._state = status
        if self.is_connected:
            return
        # What is still in the buffer goes nowhere: subscriptions are replayed, publishers know what is unanswered.
        self._pending = []
        self._pending_data_size = 0
        for pong in self._flushes:
            if not pong.done():
                pong.set_exception(nats_errors.ConnectionReconnectingError())
        if not self._usable:
            return
        self._usable = False
        if status != Client.CLOSED:
            self.losses += 1
            self._voice.say("warning", "nats.disconnected", problem=self.last_problem)
        for observer in self._observers:
            observer.lost()

    async def go_elsewhere(self, why: str) -> None:
        """Give the server up for another one, if there is another one: it answers, but not as one that has the rest.

        A server that a partition has cut off keeps its clients, and says nothing to them.
        """
        here = self._current_server
        if here is None or not self.is_connected or all(_address(one) == _address(here) for one in self._server_pool):
            return
        self._left = _address(here)
        await self._process_op_err(nats_errors.Error(f"server given up: {why}"))

    async def _regained(self) -> None:
        """nats-py calls it after a reconnect, when the server has read every replayed subscription."""
        self._delay_s = RECONNECT_FIRST_S
        if self._usable or not self.is_connected:
            return
        self._usable, self._left, self.last_problem = True, None, None
        self._voice.say("info", "nats.connected", server=self.connected_url.hostname if self.connected_url else None)
        for observer in self._observers:
            observer.regained()

    async def _problem(self, exc: Exception) -> None:
        if isinstance(exc, OSError) and "uthorization" in (self.last_problem or ""):
            return  # the server has said why it hangs up; that it did, before or behind its words, says no more
        self.last_problem = repr(exc)

    def _choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server | None, float]:
        """Which server to try next, and after how many seconds."""
        self._turn += 1
        others = [server for server in servers if _address(server) != self._left] or servers
        delay_s = self._delay_s * secrets.randbelow(1_000) / 1_000
        self._delay_s = min(self._delay_s * 2, RECONNECT_MAX_S)
        return others[self._turn % len(others)], delay_s


def _address(server: Server | Srv) -> tuple[str | None, int | None]:
    return server.uri.hostname, server.uri.port


def _credentials(servers: list[str]) -> dict[str, Any]:
    """Those of the first server that has some, as options for all.

    Surprising because nats-py takes them from the URL of the server that it is about to try, and the ones that a
    cluster makes known by itself have none: a client that loses its server would be refused by all others.
    """
    for server in servers:
        parts = urlsplit(server)
        if parts.username is not None:
            if parts.password is None:
                return {"token": parts.username}
            return {"user": parts.username, "password": parts.password}
    return {}


async def connect(url: str, *, name: str, deadline_s: float = 10.0) -> SyncClient:
    """Connect to one of the servers of ``url`` (comma-separated, credentials in it). Reconnects for ever afterwards.

    Raises: LogUnavailable, naming the last problem, when there is no connection by the deadline.
    """
    client = SyncClient()
    servers = [part.strip() for part in url.split(",")]
    try:
        async with asyncio.timeout(deadline_s):
            await client.connect(
                servers,
                **_credentials(servers),
                name=name,
                error_cb=client._problem,  # noqa: SLF001
                reconnected_cb=client._regained,  # noqa: SLF001
                reconnect_to_server_handler=client._choose,  # noqa: SLF001
                connect_timeout=CONNECT_TIMEOUT_S,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_OUTSTANDING_MAX,
            )
    except TimeoutError as exc:
        await client.close()
        raise LogUnavailable(f"no connection to NATS within {deadline_s:g} s ({client.last_problem})") from exc
    except nats_errors.Error as exc:
        raise LogUnavailable(f"no connection to NATS: {exc}") from exc
    except asyncio.CancelledError:
        await client.close()  # who gives it up leaves no socket behind
        raise
    await client._regained()  # noqa: SLF001
    return client
