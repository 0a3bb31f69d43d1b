"""``Client``: one session on a list of nodes, with handlers that see each message once and in order.

Owns what users of the library see: the options, what is known, the calls. Staying connected is the connector's; it
knows nothing of how the service works inside.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from hublog.access import Token
from hublog.answers import Invoked, Membership, Resync, Session
from hublog.calls import Calls
from hublog.connector import Connector
from hublog.errors import ClientClosed, HublogError, OutcomeUnknown, ServerError, Unreachable
from hublog.handlers import Handler, Handlers, added
from hublog.lifecycle import State
from hublog.link import DEFAULT_TIMERS, Timers
from hublog.nodes import Nodes

T = TypeVar("T")


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
        self._resumable = resumable
        self._call_timeout_s = call_timeout_s
        self._calls = Calls()
        self._handlers = Handlers(positioned=resumable)
        self._connector = Connector(
            Nodes(urls, hub, user=user, metadata=metadata, resumable=resumable),
            self._calls,
            self._handlers,
            resumable=resumable,
            connect_timeout_s=connect_timeout_s,
            give_up_after_s=give_up_after_s,
            timers=timers,
            token=token,
            http=http,
        )

    # ---------------------------------------------------------------- what is known

    @property
    def state(self) -> State:
        return self._connector.state

    @property
    def session_id(self) -> str | None:
        """Of the session as last heard; another one after a resync that lost it."""
        known = self._connector.known
        return known.session_id if known is not None else None

    @property
    def cursor(self) -> str:
        """The position up to which this client has taken in everything (handlers may be behind). Opaque."""
        return self._connector.cursor

    @property
    def error(self) -> HublogError | None:
        """What ended the client; None while it lives, and if it was closed by its user."""
        return self._connector.error

    # ---------------------------------------------------------------- handlers

    def on(self, target: str, handler: Handler) -> Callable[[], None]:
        """Call ``handler(*arguments)`` for each message, in order; give a function that takes it away again.

        Messages without a handler are dropped, so register before connecting. What a handler raises is logged.
        """
        return self._handlers.on(target, handler)

    def on_state(self, handler: Callable[[State], object]) -> Callable[[], None]:
        """Called at each change of state, at once; an ordinary function that returns soon."""
        return added(self._connector.observers, handler)

    def on_resync(self, handler: Callable[[Resync], object]) -> Callable[[], None]:
        """Called in its place among the messages when what follows does not simply go on. No group is joined again."""
        return self._handlers.on_resync(handler)

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        """Raises: Unreachable, ServerError (refused for good), ClientClosed (used before)."""
        if self.state is not State.DISCONNECTED:
            raise ClientClosed("a client connects once")
        self._connector.start()
        try:
            await self._connector.settled.wait()
            if self.error is not None:
                raise self.error
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
        await self._connector.close()

    async def wait_closed(self) -> None:
        """Until ``close()``, or until the service has ended it (``error`` says why) and the handlers are done."""
        await self._connector.closed.wait()

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
        if self.state is State.CLOSED or self.state is State.DISCONNECTED:
            raise ClientClosed(f"the client is {self.state}") from self.error
        call = self._calls.add(target, parameters, key)
        try:
            self._handlers.inbox.look_again()
            async with asyncio.timeout(self._call_timeout_s):
                if self._connector.link is not None:
                    await self._connector.send_waiting(self._connector.link)
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
