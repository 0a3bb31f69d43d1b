"""``Client``: one session on a list of nodes, with handlers that see each message once and in order.

Owns the session's life (connect, resume, give up) and its cursor. The wire, one connection, waiting calls and handlers
are files of their own; it knows nothing of how the service works inside.

What makes it exact: a message counts once it is in the inbox, and the cursor is that of the last one taken in. What
came on a connection before ``hub.session`` was answered counts only then, and not at all if that answer never comes.
"""

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec

from hublog import wire
from hublog.access import Token
from hublog.answers import Invoked, Membership, Resync, Session
from hublog.backoff import delay_s
from hublog.calls import Calls
from hublog.errors import ClientClosed, ConnectionLost, HublogError, OutcomeUnknown, ServerError, Unreachable
from hublog.handlers import Handler, Handlers, added
from hublog.lifecycle import Event, State, after
from hublog.link import DEFAULT_TIMERS, Link, LinkEnded, Timers, closed_by
from hublog.opening import Opening, open_link, read_session

START_ANEW = frozenset({"session_closed", "session_not_found", "not_resumable", "token_stale", "epoch_mismatch"})
"""Refusals of a resume after which a new session is the way on."""

GOODBYE_S = 2.0
"""How long closing may take to reach a node, where the connection is lost at that moment."""

T = TypeVar("T")

_log = logging.getLogger("hublog")


class Client:
    """One session. Use it as ``async with``: entering connects, leaving closes the session (see :meth:`close`).

    ``urls``: the nodes, tried in turn, e.g. ``http://host:8000``. ``connect_timeout_s`` bounds entering;
    ``give_up_after_s`` how long a lost connection is sought again (None: for ever). ``call_timeout_s`` bounds a call
    over all connections; keep it below the service's window of idempotency keys. ``http``: one to share, never closed
    here. ``token``: the access token, or a function (coroutine functions too) that gives one and is asked at each
    connection; user and metadata are then the token's.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        hub: str,
        *,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        token: Token | None = None,
        resumable: bool = True,
        connect_timeout_s: float = 30.0,
        give_up_after_s: float | None = None,
        call_timeout_s: float = 30.0,
        timers: Timers = DEFAULT_TIMERS,
        http: aiohttp.ClientSession | None = None,
    ) -> None:
        self._nodes = [_hub_url(url, hub) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._nodes:
            raise ValueError("at least one URL is needed")
        self._query: dict[str, str] = {}
        if user is not None:
            self._query["user"] = user
        if metadata is not None:
            self._query["meta"] = msgspec.json.encode(metadata).decode()
        if resumable:
            self._query["resumable"] = "1"
        self._access = token
        self._resumable = resumable
        self._connect_timeout_s = connect_timeout_s
        self._give_up_after_s = give_up_after_s
        self._call_timeout_s = call_timeout_s
        self._timers = timers
        self._http = http
        self._own_http = http is None

        self._state = State.DISCONNECTED
        self._known: Session | None = None
        self._token: str | None = None
        self._cursor = ""
        self._error: HublogError | None = None
        self._link: Link | None = None
        self._node = 0  # the one to try next, counted on and on
        self._sending = asyncio.Lock()
        self._calls = Calls()
        self._handlers = Handlers(positioned=resumable)
        self._state_observers: list[Handler] = []
        self._settled = asyncio.Event()  # connected for the first time, or ended
        self._closed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._shutting_down: asyncio.Task[None] | None = None

    # ---------------------------------------------------------------- what is known

    @property
    def state(self) -> State:
        return self._state

    @property
    def session_id(self) -> str | None:
        """Of the session as last heard; another one after a resync that lost it."""
        return self._known.session_id if self._known is not None else None

    @property
    def cursor(self) -> str:
        """The position up to which this client has taken in everything (handlers may be behind). Opaque."""
        return self._cursor

    @property
    def error(self) -> HublogError | None:
        """What ended the client; None while it lives, and if it was closed by its user."""
        return self._error

    # ---------------------------------------------------------------- handlers

    def on(self, target: str, handler: Handler) -> Callable[[], None]:
        """Call ``handler(*arguments)`` for each message, in order; give a function that takes it away again.

        Messages without a handler are dropped, so register before connecting. What a handler raises is logged.
        """
        return self._handlers.on(target, handler)

    def on_state(self, handler: Callable[[State], object]) -> Callable[[], None]:
        """Called at each change of state, at once; an ordinary function that returns soon."""
        return added(self._state_observers, handler)

    def on_resync(self, handler: Callable[[Resync], object]) -> Callable[[], None]:
        """Called in its place among the messages when what follows does not simply go on. No group is joined again."""
        return self._handlers.on_resync(handler)

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        """Raises: Unreachable, ServerError (refused for good), ClientClosed (used before)."""
        if self._state is not State.DISCONNECTED:
            raise ClientClosed("a client connects once")
        if self._http is None:
            self._http = aiohttp.ClientSession()
        self._move(Event.START)
        handing_over = asyncio.create_task(self._handlers.run())
        handing_over.add_done_callback(lambda _: self._closed.set())
        self._tasks = [asyncio.create_task(self._live(self._http)), handing_over]
        try:
            await self._settled.wait()
            if self._error is not None:
                raise self._error
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session and the client. Messages that no handler has seen yet are dropped; waiting calls fail.

        While it reconnects, each node is tried once more, for 2 s in all, to resume the session and end it. If none is
        reached, or nobody reads the Close any more, a resumable session stays until the service's time for it is over.
        """
        if self._shutting_down is None:
            link, adrift = self._link, self._link is None and self._state is not State.CLOSED
            self._finish(Event.STOPPED, None)
            self._shutting_down = asyncio.create_task(self._shut_down(link, asyncio.current_task(), adrift=adrift))
        await asyncio.shield(self._shutting_down)

    async def _shut_down(self, link: Link | None, handler: "asyncio.Task[Any] | None", *, adrift: bool) -> None:
        """Done once. ``handler``: the task that asks; if it is one of our own, it is not waited for."""
        if link is not None:
            await link.say_goodbye()
        others = [task for task in self._tasks if task is not handler]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if adrift and self._token is not None and self._http is not None:
            await self._end_session(self._http)
        if self._own_http and self._http is not None:
            await self._http.close()

    async def _end_session(self, http: aiohttp.ClientSession) -> None:
        """Resume a session that has no connection, only to close it. Whether that worked is not said."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                for node in range(self._node, self._node + len(self._nodes)):
                    try:
                        opening = await open_link(http, self._url(node), self._timers, self._access)
                    except LinkEnded:
                        continue
                    await opening.link.say_goodbye()
                    await opening.link.close()
                    return
        except Exception as exc:  # noqa: BLE001  closing does not fail: the service ends the session by itself, later
            _log.debug("hublog: the session was not ended: %r", exc)

    async def wait_closed(self) -> None:
        """Until ``close()``, or until the service has ended it (``error`` says why) and the handlers are done."""
        await self._closed.wait()

    # ---------------------------------------------------------------- calls

    async def invoke(
        self,
        selector: Mapping[str, Any],
        target: str,
        *arguments: object,
        key: str | None = None,
        ttl_ms: int | None = None,
    ) -> Invoked:
        """Call ``target(*arguments)`` on the sessions that ``selector`` means; durable once this returns.

        On a resumable session each call has a key, made here if none is given: repeated after a resume, done once.
        Raises: ServerError, OutcomeUnknown, ConnectionLost, Unreachable, ClientClosed.
        """
        if key is None and self._resumable:
            key = uuid.uuid4().hex
        options: dict[str, object] = {} if key is None else {"key": key}
        if ttl_ms is not None:
            options["ttlMs"] = ttl_ms
        parameters: list[object] = [selector, target, arguments]
        return await self._call(Invoked, "hub.invoke", [*parameters, options] if options else parameters, key)

    async def join(self, *groups: str) -> Membership:
        """Join groups; one that is joined already is no error. Raises: as ``invoke``."""
        return await self._call(Membership, "hub.join", [groups])

    async def leave(self, *groups: str) -> Membership:
        return await self._call(Membership, "hub.leave", [groups])

    async def leave_all(self) -> Membership:
        return await self._call(Membership, "hub.leaveAll", [])

    async def groups(self) -> tuple[str, ...]:
        return await self._call(tuple[str, ...], "hub.groups", [])

    async def session(self) -> Session:
        return await self._call(Session, "hub.session", [])

    async def _call(self, answer: type[T], target: str, parameters: list[object], key: str | None = None) -> T:
        if self._state is State.CLOSED or self._state is State.DISCONNECTED:
            raise ClientClosed(f"the client is {self._state}") from self._error
        call = self._calls.add(target, parameters, key)
        try:
            self._handlers.inbox.look_again()
            async with asyncio.timeout(self._call_timeout_s):
                if self._link is not None:
                    await self._send_waiting(self._link)
                result = await call.answer
        except TimeoutError:
            if call.sent:
                raise OutcomeUnknown(f"{target} was not answered in {self._call_timeout_s:g} s", key) from None
            raise Unreachable(f"no connection within {self._call_timeout_s:g} s for {target}") from None
        finally:
            self._calls.forget(call)
        try:
            return msgspec.json.decode(result, type=answer)
        except msgspec.DecodeError as exc:
            raise ServerError("internal", f"the answer to {target} does not fit: {exc}") from exc

    async def _send_waiting(self, link: Link) -> None:
        """Send what waits, in order; the lock is fair, so calls go out as they were made."""
        async with self._sending:
            # Looked at before each: a link that is lost meanwhile must not be marked as carrying what it never will.
            while link is self._link and (call := self._calls.next_for(link)) is not None:
                await link.send(call.frame)

    # ---------------------------------------------------------------- connections

    async def _live(self, http: aiohttp.ClientSession) -> None:
        """Connect, serve, and connect again, until something ends it."""
        loop = asyncio.get_running_loop()
        attempt, since_s = 0, loop.time()
        try:
            while True:
                opened_s: float | None = None
                try:
                    opening = await open_link(http, self._url(self._node), self._timers, self._access)
                    opened_s = loop.time()
                    await self._serve(opening)
                except LinkEnded as end:
                    ended = end if opened_s is not None else self._judge(end)
                _log.debug("hublog: a connection ended: %s", ended)
                if not ended.reconnect:
                    self._finish(Event.REFUSED, ended.error)
                    return
                self._move(Event.LOST)
                if opened_s is not None:
                    since_s = loop.time()
                    attempt = 0 if since_s - opened_s >= self._timers.stable_s else attempt
                pause_s = self._pause_s(attempt)
                self._node, attempt = self._node + 1, attempt + 1
                limit_s = self._connect_timeout_s if self._known is None else self._give_up_after_s
                if limit_s is not None and loop.time() + pause_s >= since_s + limit_s:
                    last = ended.error.message
                    gone = Unreachable(f"no node could be reached within {limit_s:g} s; the last attempt: {last}")
                    self._finish(Event.REFUSED, gone)
                    return
                await asyncio.sleep(pause_s)
        except Exception as exc:  # noqa: BLE001
            # A defect of ours must end the client: its callers would wait for ever.
            self._finish(Event.REFUSED, HublogError(f"the client failed: {exc!r}"))
            _log.exception("hublog: the client failed")

    def _pause_s(self, attempt: int) -> float:
        jitter = random.random()  # noqa: S311  no secret
        return delay_s(attempt, jitter, first_s=self._timers.backoff_first_s, longest_s=self._timers.backoff_longest_s)

    def _url(self, node: int) -> str:
        resume = {"resume": self._token, "cursor": self._cursor} if self._token is not None else {}
        return f"{self._nodes[node % len(self._nodes)]}?{urlencode({**self._query, **resume}, quote_via=quote)}"

    def _judge(self, end: LinkEnded) -> LinkEnded:
        """A connection that did not open: a resume that was refused outright is given up for a new session."""
        if not end.reconnect and end.error.code in START_ANEW and self._token is not None:
            self._token = None
            return LinkEnded(end.error, reconnect=True)
        return end

    async def _serve(self, opening: Opening) -> None:
        """Serve a connection until it ends. Raises: LinkEnded, always."""
        link = opening.link
        helpers: list[asyncio.Task[None]] = []
        try:
            self._adopt(opening.session, opening.early)
            self._link = link
            self._move(Event.OPENED)
            self._settled.set()
            helpers = [asyncio.create_task(self._send_waiting(link)), asyncio.create_task(link.keep_alive())]
            messages = opening.rest
            while True:
                self._take_in(messages)
                await self._handlers.inbox.room(lambda: len(self._calls) > 0)
                messages = await link.read()
        except wire.Unreadable as exc:
            raise LinkEnded(ConnectionLost(str(exc)), reconnect=True) from exc
        finally:
            self._link = None
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._calls.lost(link, repeatable=self._resumable)
            await link.close()

    def _adopt(self, session: Session, early: list[wire.Message]) -> None:
        """A new connection has said whose it is; what it brought before that is ours, too. Raises: LinkEnded."""
        previous, self._known = self._known, session
        if previous is not None and (session.session_id != previous.session_id or session.resync is not None):
            self._handlers.resync(
                Resync(session.resync or "lost", previous.session_id, session, session.code),
            )
        if previous is not None and session.session_id != previous.session_id:
            self._calls.another_session()
        self._take_in(early)
        self._learn(session)

    def _learn(self, session: Session) -> None:
        self._known, self._token, self._cursor = session, session.resume_token, session.cursor

    def _take_in(self, messages: list[wire.Message]) -> None:
        """Raises: LinkEnded on a Close, wire.Unreadable."""
        for message in messages:
            if message.type == wire.INVOCATION:
                position = self._handlers.take_in(message)
                if position is not None:
                    self._cursor = position
            elif message.type == wire.COMPLETION:
                call = self._calls.answered(message)
                if call is not None and call.target == "hub.session" and message.error is None:
                    self._learn(read_session(message.result))
            elif message.type == wire.CLOSE_TYPE:
                raise closed_by(message)

    # ---------------------------------------------------------------- state

    def _move(self, event: Event) -> None:
        before, self._state = self._state, after(self._state, event)
        if self._state is before:
            return
        for observer in list(self._state_observers):
            try:
                observer(self._state)
            except Exception:  # noqa: BLE001  an observer's defect does not stop the client
                _log.exception("hublog: an observer of the state failed")

    def _finish(self, event: Event, error: HublogError | None) -> None:
        if self._state is State.CLOSED:
            return
        self._error = error
        self._calls.end("the client was closed", error)
        self._move(event)
        self._settled.set()
        if event is Event.STOPPED:
            self._handlers.stop()
            self._closed.set()
        else:
            self._handlers.end()  # what was received before the end is still handed over


def _hub_url(url: str, hub: str) -> str:
    """Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not the address of a node, e.g. http://127.0.0.1:8000")
    return f"{url.rstrip('/')}/hubs/{quote(hub, safe='')}"
