"""Keeps one session connected: connects, serves, connects again, and ends it.

Owns the session's life over all its connections, what is known of it, and its cursor. The wire, one connection, waiting
calls and handlers are files of their own; what users of the client see of all this is ``Client``'s.

What makes it exact: a message counts once it is in the inbox, and the cursor is that of the last one taken in. What
came on a connection before ``hub.session`` was answered counts only then, and not at all if that answer never comes.
"""

import asyncio
import logging
import random
from typing import Any

import aiohttp

from hublog import wire
from hublog.access import Token
from hublog.answers import Resync, Session
from hublog.backoff import delay_s
from hublog.calls import Calls
from hublog.errors import ConnectionLost, HublogError, Unreachable
from hublog.handlers import Handler, Handlers
from hublog.lifecycle import Event, State, after
from hublog.link import Link, LinkEnded, Timers, closed_by
from hublog.nodes import Nodes
from hublog.opening import Opening, open_link, read_session

START_ANEW = frozenset({"session_closed", "session_not_found", "not_resumable", "token_stale", "epoch_mismatch"})
"""Refusals of a resume after which a new session is the way on."""

GOODBYE_S = 2.0
"""How long closing may take to reach a node, where the connection is lost at that moment."""

_log = logging.getLogger("hublog")


class Connector:
    """``link`` is the connection that there is now. ``settled``: connected for the first time, or ended."""

    def __init__(
        self,
        nodes: Nodes,
        calls: Calls,
        handlers: Handlers,
        *,
        resumable: bool,
        connect_timeout_s: float,
        give_up_after_s: float | None,
        timers: Timers,
        token: Token | None,
        http: aiohttp.ClientSession | None,
    ) -> None:
        self._nodes = nodes
        self._calls = calls
        self._handlers = handlers
        self._resumable = resumable
        self._connect_timeout_s = connect_timeout_s
        self._give_up_after_s = give_up_after_s
        self._timers = timers
        self._access = token
        self._http = http
        self._own_http = http is None

        self.state = State.DISCONNECTED
        self.observers: list[Handler] = []
        self.known: Session | None = None
        self.cursor = ""
        self.error: HublogError | None = None
        self.link: Link | None = None
        self.settled = asyncio.Event()
        self.closed = asyncio.Event()
        self._token: str | None = None
        self._sending = asyncio.Lock()
        self._living: asyncio.Task[None] | None = None
        self._handing_over: asyncio.Task[None] | None = None
        self._shutting_down: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected. Call once."""
        if self._http is None:
            self._http = aiohttp.ClientSession()
        self._move(Event.START)
        self._handing_over = asyncio.create_task(self._handlers.run())
        self._handing_over.add_done_callback(lambda _: self.closed.set())
        self._living = asyncio.create_task(self._live(self._http))

    async def send_waiting(self, link: Link) -> None:
        """Send what waits, in order; the lock is fair, so calls go out as they were made."""
        async with self._sending:
            # Looked at before each: a link that is lost meanwhile must not be marked as carrying what it never will.
            while link is self.link and (call := self._calls.next_for(link)) is not None:
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
                    opening = await self._open(http, keep=self._token is not None)
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
                self._nodes.move_on()
                attempt += 1
                limit_s = self._connect_timeout_s if self.known is None else self._give_up_after_s
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

    async def _open(self, http: aiohttp.ClientSession, *, keep: bool) -> Opening:
        """A connection to the node whose turn it is; ``keep`` its session if that fails. Raises: LinkEnded."""
        url = self._nodes.url(self._token, self.cursor)
        return await open_link(http, url, self._timers, self._access, keep=keep)

    def _pause_s(self, attempt: int) -> float:
        jitter = random.random()  # noqa: S311  no secret
        return delay_s(attempt, jitter, first_s=self._timers.backoff_first_s, longest_s=self._timers.backoff_longest_s)

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
            self.link = link
            self._move(Event.OPENED)
            self.settled.set()
            helpers = [asyncio.create_task(self.send_waiting(link)), asyncio.create_task(link.keep_alive())]
            messages = opening.rest
            while True:
                self._take_in(messages)
                await self._handlers.inbox.room(lambda: len(self._calls) > 0)
                messages = await link.read()
        except wire.Unreadable as exc:
            raise LinkEnded(ConnectionLost(str(exc)), reconnect=True) from exc
        finally:
            self.link = None
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._calls.lost(link, repeatable=self._resumable)
            await link.close()

    def _adopt(self, session: Session, early: list[wire.Message]) -> None:
        """A new connection has said whose it is; what it brought before that is ours, too. Raises: LinkEnded."""
        previous, self.known = self.known, session
        if previous is not None and (session.session_id != previous.session_id or session.resync is not None):
            self._handlers.resync(
                Resync(session.resync or "lost", previous.session_id, session, session.code),
            )
        if previous is not None and session.session_id != previous.session_id:
            self._calls.another_session()
        self._take_in(early)
        self._learn(session)

    def _learn(self, session: Session) -> None:
        self.known, self._token, self.cursor = session, session.resume_token, session.cursor

    def _take_in(self, messages: list[wire.Message]) -> None:
        """Raises: LinkEnded on a Close, wire.Unreadable."""
        for message in messages:
            if message.type == wire.INVOCATION:
                position = self._handlers.take_in(message)
                if position is not None:
                    self.cursor = position
            elif message.type == wire.COMPLETION:
                call = self._calls.answered(message)
                if call is not None and call.target == "hub.session" and message.error is None:
                    self._learn(read_session(message.result))
            elif message.type == wire.CLOSE_TYPE:
                raise closed_by(message)

    # ---------------------------------------------------------------- state

    def _move(self, event: Event) -> None:
        before, self.state = self.state, after(self.state, event)
        if self.state is before:
            return
        for observer in list(self.observers):
            try:
                observer(self.state)
            except Exception:  # noqa: BLE001  an observer's defect does not stop the client
                _log.exception("hublog: an observer of the state failed")

    def _finish(self, event: Event, error: HublogError | None) -> None:
        if self.state is State.CLOSED:
            return
        self.error = error
        why = "the client was closed" if error is None else f"the client has ended: {error.code}: {error.message}"
        self._calls.end(why, error)
        self._move(event)
        self.settled.set()
        if event is Event.STOPPED:
            self._handlers.stop()
            self.closed.set()
        else:
            self._handlers.end()  # what was received before the end is still handed over

    # ---------------------------------------------------------------- the end

    async def close(self) -> None:
        """End the session, wherever its connection is, and all that runs here."""
        if self._shutting_down is None:
            link, adrift = self.link, self.link is None and self.state is not State.CLOSED
            asker = asyncio.current_task()
            self._finish(Event.STOPPED, None)
            if link is None and self._living is not None and self._living is not asker:
                self._living.cancel()  # now: an answer that has just come must not be served any more
            self._shutting_down = asyncio.create_task(self._shut_down(link, asker, adrift=adrift))
        await asyncio.shield(self._shutting_down)

    async def _shut_down(self, link: Link | None, handler: "asyncio.Task[Any] | None", *, adrift: bool) -> None:
        """Done once. ``handler``: the task that asks; if it is one of our own, it is not waited for."""
        if link is not None:
            await link.say_goodbye()
        others = [task for task in (self._living, self._handing_over) if task is not None and task is not handler]
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
                for _ in range(len(self._nodes)):
                    try:
                        opening = await self._open(http, keep=False)
                    except LinkEnded:
                        self._nodes.move_on()
                        continue
                    await opening.link.say_goodbye()
                    await opening.link.close()
                    return
        except Exception as exc:  # noqa: BLE001  closing does not fail: the service ends the session by itself, later
            _log.debug("hublog: the session was not ended: %r", exc)
