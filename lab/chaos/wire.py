"""One connection of the workload: negotiated, so that its name in the log is known; every call and delivery recorded.

Owns what is recorded of a connection, and that each call gets exactly one of ok, fail and unknown (an answer that comes
after all counts). It decides nothing: what to do next is the peer's.
"""

import asyncio
import base64
import itertools
import time
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from lab.chaos.history import Command as Commanded
from lab.chaos.history import Delivered, Dialled, Ended, Fail, Goodbye, Greeted, History, Invoke, Ok, Resume, Unknown
from lab.client import Answer, LoadClient, NotOpened, open_client

TARGET = "chaos"
NEGOTIATE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 15.0
"""A call without an answer for so long: a watchful client gives the connection up."""

LARGE_EVERY = 4
LARGE_BYTES = 4_000
"""What is put into every fourth message, so that a few seconds without reading fill what is kept for one client."""

NOT_DEFINITE = frozenset({"outcome_unknown", "internal"})
"""Errors after which the call may have happened."""


class Invocation(msgspec.Struct):
    """What of an invocation matters here. ``arguments``: the message, its ballast if it is large, and in the end the
    position where positions were asked."""

    target: str
    arguments: list[object]


class Greeting(msgspec.Struct, rename="camel"):
    """The answer of ``hub.session`` and ``hub.resume``."""

    session_id: str
    cursor: str
    groups: list[str]
    resume_token: str | None = None
    resumed: bool = False
    resync: str | None = None
    code: str | None = None


class Membership(msgspec.Struct):
    position: str
    groups: list[str]


class Outcome(msgspec.Struct):
    position: str | None
    outcome: str


class Negotiated(msgspec.Struct, rename="camel"):
    connection_id: str = ""
    connection_token: str = ""
    error: str | None = None


class _Claims(msgspec.Struct):
    sub: str | None = None


class NotDialled(Exception):
    """No connection; the text says why."""


class Pending(msgspec.Struct):
    """A call that waits for its answer."""

    call: int
    since_s: float
    invoke: Invoke | None = None
    unknown: bool = False


_invocation = msgspec.json.Decoder(Invocation).decode
_encode = msgspec.json.Encoder().encode


def sequence_of(position: str | None) -> int:
    """For the client's own bookkeeping: a later position has a greater one."""
    return int(position.rpartition("-")[2]) if position else 0


class Numbers:
    """What is counted over a whole run."""

    def __init__(self) -> None:
        self.conns = itertools.count(1)
        self.calls = itertools.count(1)
        self.messages = itertools.count(1)


class Wire:
    """See the module. ``ended`` is set once the connection is over; ``cursor`` is what a resume would show."""

    def __init__(self, history: History, numbers: Numbers, conn: int, *, resumable: bool, cursor: str | None) -> None:
        self.history = history
        self.conn = conn
        self.resumable = resumable
        self.cursor = cursor
        self.ended = asyncio.Event()
        self.heard: set[int] = set()
        self.session: str | None = None
        self.token: str | None = None
        self.lost_calls: list[Invoke] = []
        self._numbers = numbers
        self._client: LoadClient | None = None
        self._pending: dict[int, Pending] = {}

    async def open(self, client: LoadClient) -> None:
        self._client = client
        client.on_end = self._over
        if client.ended is not None:
            self._over(client.ended)

    # -------------------------------------------------------------------------------------------- calls

    async def greet(self, resume: tuple[str, str, str] | None = None) -> Greeting | None:
        """``hub.session``, or ``hub.resume`` with (session, token, cursor). None where no greeting came, or a refusal.

        A resume that is refused leaves the connection's own session, which :meth:`greet` then asks for.
        """
        target, arguments, cursor = "hub.session", b"[]", None
        if resume is not None:
            session, token, cursor = resume
            self.history.add(Resume(t=self.history.now, conn=self.conn, session=session, cursor=cursor))
            target, arguments = "hub.resume", _encode([token, cursor])
        if self._client is None or self.ended.is_set():
            return None
        greeted: asyncio.Future[Greeting | None] = asyncio.get_running_loop().create_future()

        def on_answer(answer: Answer) -> None:
            # At once: what stands behind the answer in the same bytes is recorded behind it.
            if not greeted.done():
                greeted.set_result(self._greeted(answer, cursor))

        over = asyncio.ensure_future(self.ended.wait())
        try:
            self._client.call_with(on_answer, target, arguments)
            await asyncio.wait((greeted, over), timeout=CALL_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        except NotOpened:
            return None
        finally:
            over.cancel()
            greeted.cancel()
        return None if greeted.cancelled() else greeted.result()

    def _greeted(self, answer: Answer, resumed_from: str | None) -> Greeting | None:
        """The answer of ``hub.session``, or of ``hub.resume`` with a cursor."""
        if answer.error is not None:
            return None
        greeting = msgspec.json.decode(answer.result, type=Greeting)
        self.session, self.token = greeting.session_id, greeting.resume_token
        self.history.add(
            Greeted(
                t=self.history.now,
                conn=self.conn,
                session=greeting.session_id,
                cursor=greeting.cursor,
                resumed=greeting.resumed,
                resync=greeting.resync,
                code=greeting.code,
                groups=greeting.groups,
            )
        )
        if resumed_from is not None:
            self.cursor = resumed_from
        if self.resumable and (
            not greeting.resumed or (resumed_from is None and sequence_of(greeting.cursor) > sequence_of(self.cursor))
        ):
            self.cursor = greeting.cursor
        return greeting

    def invoke(self, selector: msgspec.Raw, retry_of: Invoke | None = None) -> int:
        """Sends an invocation on its way; raises nothing, a connection that is over makes it unknown.

        Returns its message.
        """
        call = next(self._numbers.calls)
        message = retry_of.message if retry_of is not None else next(self._numbers.messages)
        said = Invoke(
            t=self.history.now,
            call=call,
            conn=self.conn,
            message=message,
            selector=selector,
            retry=retry_of is not None,
        )
        self.history.add(said)
        ballast = b',"%s"' % (b"." * LARGE_BYTES) if message % LARGE_EVERY == 0 else b""
        arguments = b'[%s,"%s",[%d%s],{"key":"m%d"}]' % (bytes(selector), TARGET.encode(), message, ballast, message)
        self._send(Pending(call, time.monotonic(), said), "hub.invoke", arguments)
        return message

    def command(self, do: str, groups: list[str]) -> None:
        call = next(self._numbers.calls)
        said = msgspec.convert(
            {"what": "command", "t": self.history.now, "call": call, "conn": self.conn, "do": do, "groups": groups},
            Commanded,
        )
        self.history.add(said)
        self._send(Pending(call, time.monotonic()), f"hub.{do}", b"[]" if do == "leaveAll" else _encode([groups]))

    @property
    def waiting(self) -> int:
        return len(self._pending)

    def _send(self, pending: Pending, target: str, arguments: bytes) -> None:
        self._pending[pending.call] = pending
        try:
            if self._client is None:
                raise NotOpened("not connected")
            self._client.call_with(lambda answer: self._answered(pending, answer), target, arguments)
        except NotOpened as exc:
            self._unknown(pending, str(exc))
            self._pending.pop(pending.call, None)

    def _answered(self, pending: Pending, answer: Answer) -> None:
        self._pending.pop(pending.call, None)
        now = self.history.now
        if answer.error is not None:
            if answer.error.partition(":")[0] in NOT_DEFINITE:
                self._unknown(pending, answer.error)
            else:
                self.history.add(Fail(t=now, call=pending.call, error=answer.error))
        elif pending.invoke is not None:
            outcome = msgspec.json.decode(answer.result, type=Outcome)
            self.history.add(Ok(t=now, call=pending.call, position=outcome.position, outcome=outcome.outcome))
        else:
            changed = msgspec.json.decode(answer.result, type=Membership)
            self.history.add(Ok(t=now, call=pending.call, position=changed.position, groups=changed.groups))

    def _unknown(self, pending: Pending, why: str) -> None:
        if not pending.unknown:
            pending.unknown = True
            self.history.add(Unknown(t=self.history.now, call=pending.call, why=why))
            if pending.invoke is not None:
                self.lost_calls.append(pending.invoke)

    # -------------------------------------------------------------------------------------------- what comes

    def received(self, record: bytes) -> None:
        """One invocation, as it came."""
        said = _invocation(record)
        if said.target != TARGET:
            return
        message, position = said.arguments[0], said.arguments[-1] if self.resumable else None
        if not isinstance(message, int) or not isinstance(position, str | None):
            raise TypeError(f"not what was sent: {record[:200]!r}")
        self.history.add(Delivered(t=self.history.now, conn=self.conn, message=message, position=position))
        self.heard.add(message)
        if position is not None:
            self.cursor = position

    def check(self, silence_s: float, keep_alive: bytes) -> None:
        """Pings; gives up a connection that is silent, or leaves a call unanswered, for too long."""
        client = self._client
        if client is None or self.ended.is_set():
            return
        oldest = next(iter(self._pending.values()), None)
        if time.perf_counter_ns() - client.heard_ns > silence_s * 1e9:
            client.abort(f"the client heard nothing for {silence_s:g} s")
        elif oldest is not None and time.monotonic() - oldest.since_s > CALL_TIMEOUT_S:
            client.abort(f"a call was not answered within {CALL_TIMEOUT_S:g} s")
        elif client.transport is not None:
            client.transport.write(keep_alive)

    def goodbye(self) -> None:
        if self._client is not None and not self.ended.is_set():
            self.history.add(Goodbye(t=self.history.now, conn=self.conn))
            self._client.close()

    def drop(self, why: str) -> None:
        if self._client is not None:
            self._client.abort(why)
        self._over(why)

    def _over(self, why: str) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self.history.add(Ended(t=self.history.now, conn=self.conn, why=why))
        for pending in self._pending.values():
            self._unknown(pending, why)
        self._pending.clear()


def user_of(token: str) -> str | None:
    """The user that an access token names; whether it may, the service says. None for what is no such token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=_Claims)
    except (ValueError, msgspec.DecodeError):
        return None
    return claims.sub


async def dial(
    http: aiohttp.ClientSession,
    history: History,
    numbers: Numbers,
    address: tuple[str, int],
    hub: str,
    *,
    client: int,
    gateway: int,
    user: str | None,
    resumable: bool,
    resume: tuple[str, str, str] | None = None,
    token: str | None = None,
) -> Wire:
    """Connects; ``resume``: (session, token, cursor) in the URL. Raises: NotDialled.

    ``token``: the access token, which says who ``user`` is; ``http`` shows it when negotiating.
    """
    base = f"http://{address[0]}:{address[1]}/hubs/{hub}"
    who = {"user": user} if user is not None and token is None else {}
    try:
        timeout = aiohttp.ClientTimeout(total=NEGOTIATE_TIMEOUT_S)
        url = f"{base}/negotiate?{urlencode({'negotiateVersion': 1, **who})}"
        async with http.post(url, timeout=timeout) as said:
            negotiated = msgspec.json.decode(await said.read(), type=Negotiated)
    except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as exc:
        raise NotDialled(f"negotiate: {exc or type(exc).__name__}") from exc
    if negotiated.error is not None:
        raise NotDialled(f"negotiate: {negotiated.error}")
    asked = {"id": negotiated.connection_token, **who, **({"resumable": "1"} if resumable else {})}
    if token is not None:
        asked["access_token"] = token
    if resume is not None:
        asked |= {"resume": resume[1], "cursor": resume[2]}
    conn = next(numbers.conns)
    history.add(
        Dialled(
            t=history.now,
            conn=conn,
            connection=negotiated.connection_id,
            client=client,
            gateway=gateway,
            resumable=resumable,
            user=user,
            session=resume[0] if resume is not None else None,
            cursor=resume[2] if resume is not None else None,
        )
    )
    wire = Wire(history, numbers, conn, resumable=resumable, cursor=resume[2] if resume is not None else None)
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            opened = await open_client(address, f"/hubs/{hub}?{urlencode(asked, quote_via=quote)}", 0, wire.received)
            await wire.open(opened)
    except (OSError, NotOpened) as exc:  # TimeoutError is an OSError
        why = str(exc) or type(exc).__name__
        wire.drop(why)
        raise NotDialled(why) from exc
    return wire
