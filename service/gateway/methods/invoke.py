"""``hub.invoke(selector, target, arguments, options?)``: the hot path in.

Arguments stay the bytes that the client sent. The call is on its way to the log when :func:`submit` returns, and is
answered from the acknowledgement; calls of one connection keep their order.
"""

from collections.abc import Awaitable

import msgspec
import structlog

from events.errors import HublogError, Internal, InvalidArguments, InvalidOption, InvalidSelector
from events.selector import Selector
from service.gateway.methods.caller import Caller
from service.gateway.signalr.messages import InvocationReceived
from service.sessions.router import Call, Outcome
from service.telemetry.tracing import Span


class _Options(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    key: str | None = None
    ttl_ms: int | None = None


class _Arguments(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    selector: Selector
    target: str
    arguments: msgspec.Raw
    options: _Options | None = None


INVOKE = "hub.invoke"

_log = structlog.get_logger(__name__)

_arguments = msgspec.json.Decoder(_Arguments)
_encode = msgspec.json.Encoder().encode


def submit(caller: Caller, call: InvocationReceived, span: Span | None = None) -> Awaitable[None] | None:
    """Send the call on its way. ``span`` ends with its answer.

    Returns None, or what must be awaited before the next call is taken. Raises: HublogError where nothing was sent.
    """
    asked = _read(call.arguments)
    manager = caller.manager
    assert manager is not None, "methods are called on open sessions only"
    invocation_id = call.invocation_id

    answered = False

    def answer(outcome: Outcome | HublogError) -> None:
        nonlocal answered
        answered = True
        caller.call_answered()
        if isinstance(outcome, HublogError):
            caller.answer_error(invocation_id, outcome)
        else:
            caller.answer(invocation_id, _encode(outcome))
        if span is not None:
            _tell(span, outcome)

    options = asked.options
    request = Call(
        asked.selector,
        asked.target,
        bytes(asked.arguments),
        actor=f"session:{caller.session_id}",
        caller=caller.session_id,
        user=caller.user,
        key=options.key if options is not None else None,
        ttl_ms=options.ttl_ms if options is not None else None,
    )
    caller.call_started()
    try:
        first = manager.router.submit(request, answer)
    except Exception:
        caller.call_answered()
        raise
    if first is None:
        return None

    async def wait() -> None:
        try:
            await first
        except Exception as exc:  # noqa: BLE001  of a router of one's own: its caller is told, and the connection goes on
            _log.error("method.failed", target=INVOKE, session_id=caller.session_id, exc_info=exc)
            if not answered:
                answer(Internal(f"{INVOKE} failed: {type(exc).__name__}"))

    return wait()


def _tell(span: Span, outcome: Outcome | HublogError) -> None:
    if isinstance(outcome, HublogError):
        span.end(outcome.code)
        return
    span.note("hublog.invocation", outcome.invocation_id)
    span.note("hublog.outcome", outcome.outcome)
    span.end()


def _read(raw: bytes) -> _Arguments:
    """Raises: InvalidSelector, InvalidOption, InvalidArguments."""
    try:
        return _arguments.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        said = str(exc)
        if "`$[0]" in said:
            raise InvalidSelector(f"the selector cannot be read: {said}") from exc
        if "`$[3]" in said:
            if not _spread(raw):
                raise InvalidOption(f"the options cannot be read: {said}") from exc
            said = "the third is no array; what the clients are called with stands in one"
        raise InvalidArguments(f"hub.invoke takes (selector, target, arguments, options?): {said}") from exc


def _spread(raw: bytes) -> bool:
    """Whether the arguments for the clients stand one by one, as in other SignalR servers' ``SendAsync``."""
    try:
        return not bytes(msgspec.json.decode(raw, type=list[msgspec.Raw])[2]).startswith(b"[")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
