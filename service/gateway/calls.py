"""The calls of one connection: their order, how many may be on their way, and what becomes of those that fail.

``hub.invoke`` goes out at once and is answered by the log; any other method waits for those before it. Knows no frames,
and not how an answer is written.
"""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

import structlog

from events.errors import HublogError, Internal
from service.gateway.methods import METHODS, invoke
from service.gateway.methods.caller import Caller
from service.gateway.signalr.messages import InvocationReceived
from service.telemetry.tracing import Attributes, Span, within

CALLS_AT_ONCE_MAX = 256  # calls of one connection that are on their way to the log; beyond it we stop reading

_log = structlog.get_logger(__name__)


class TracedCaller(Caller, Protocol):
    """A connection, and what a span is told of it."""

    def attributes(self) -> Attributes: ...


class Calls:
    """``caller`` is always the connection that these are of. It is not held: the two would be a cycle."""

    __slots__ = ("_first", "_idle", "_under_way")

    def __init__(self) -> None:
        self._under_way = 0
        self._idle: asyncio.Event | None = None
        self._first: asyncio.Future[None] | None = None

    def started(self) -> None:
        """A call is on its way to the log."""
        self._under_way += 1

    def answered(self) -> None:
        self._under_way -= 1
        if self._idle is not None:
            self._idle.set()

    @property
    def have_room(self) -> bool:
        return self._under_way < CALLS_AT_ONCE_MAX

    def invoke(self, caller: TracedCaller, call: InvocationReceived) -> bool:
        """A ``hub.invoke`` for which there is room, begun without waiting for anything.

        False: the next call must wait until :meth:`settle` returns.
        """
        span = self._span(caller, call)
        if span is None:
            return self._begun(self._send(caller, call, None))
        with within(span):
            return self._begun(self._send(caller, call, span))

    async def settle(self) -> None:
        """Wait for what :meth:`invoke` has left to be waited for."""
        if self._first is not None:
            first, self._first = self._first, None
            await first

    async def take(self, caller: TracedCaller, call: InvocationReceived) -> None:
        """Any call, when it is its turn. Returns when the next one may follow."""
        span = self._span(caller, call)
        if span is None:
            await self._take(caller, call, None)
            return
        with within(span):
            await self._take(caller, call, span)

    async def _take(self, caller: TracedCaller, call: InvocationReceived, span: Span | None) -> None:
        if call.target == invoke.INVOKE:
            await self._below(CALLS_AT_ONCE_MAX)
            first = self._send(caller, call, span)
            if first is not None:
                await first
            return
        try:
            method = METHODS.find(call.target)
            await self._below(1)
            result = await method(caller, call.arguments)
        except Exception as exc:  # noqa: BLE001  a defect in one method stays with its caller
            _refuse(caller, call, exc, span)
        else:
            caller.answer(call.invocation_id, result)
            if span is not None:
                span.end()

    def _send(self, caller: TracedCaller, call: InvocationReceived, span: Span | None) -> Awaitable[None] | None:
        try:
            return invoke.submit(caller, call, span)
        except Exception as exc:  # noqa: BLE001  as above
            _refuse(caller, call, exc, span)
            return None

    def _begun(self, first: Awaitable[None] | None) -> bool:
        if first is None:
            return True
        # Here, in the context of the call: the trace, and the node's life, that it began under are its own.
        self._first = asyncio.ensure_future(first)
        return False

    async def _below(self, limit: int) -> None:
        while self._under_way >= limit:
            self._idle = asyncio.Event()
            await self._idle.wait()
            self._idle = None

    def _span(self, caller: TracedCaller, call: InvocationReceived) -> Span | None:
        """Ends with the answer. None: this call is not traced."""
        tracing = caller.context.tracing
        if call.traceparent is None and not tracing.due():
            return None
        return tracing.command(METHODS.known(call.target), call.traceparent, caller.attributes())


def _refuse(caller: Caller, call: InvocationReceived, exc: Exception, span: Span | None) -> None:
    if isinstance(exc, HublogError):
        error = exc
    else:
        _log.error("method.failed", target=call.target[:64], session_id=caller.session_id, exc_info=exc)
        error = Internal(f"{call.target[:64]} failed: {type(exc).__name__}")
    caller.answer_error(call.invocation_id, error)
    if span is not None:
        span.end(error.code)
