"""From a handshake to an open session: a new one, or the one that the client goes on with.

Owns who may open one now, that it is heard before the log has it and answered after, and what the client is told where
that fails. It refuses to know frames, and how a connection ends.
"""

from typing import Protocol

import structlog

from events.errors import (
    BadToken,
    HublogError,
    Internal,
    LogOverloaded,
    Refused,
    SessionExists,
    ShuttingDown,
    Unavailable,
)
from events.ids import SessionId
from service.delivery.gate import Gate
from service.delivery.handover import Resumer
from service.delivery.interest import Receiver
from service.gateway.context import Connected, GatewayContext
from service.gateway.peer import Peer
from service.gateway.resume import Standing
from service.sessions.manager import Manager
from service.sessions.registry import NewSession
from service.telemetry.tracing import Attributes, within

CLOSINGS_MAX = 30_000  # sessions that wait to be closed, as while NATS is away; beyond it nobody new is taken

_log = structlog.get_logger(__name__)


class Newcomer(Connected, Protocol):
    """A connection without a session so far. What is found for it is set on it as soon as it must be let go again."""

    manager: Manager | None
    receiver: Receiver | None
    session_id: SessionId
    standing: Standing
    gate: Gate | None

    @property
    def context(self) -> GatewayContext: ...

    @property
    def peer(self) -> Peer: ...

    @property
    def resumable(self) -> bool: ...

    def attributes(self) -> Attributes: ...

    def here(self) -> bool: ...

    def new_receiver(self, session_id: SessionId, user: str | None) -> Receiver: ...

    async def take_over(self, manager: Manager, token: str, cursor: str) -> Resumer: ...

    def accept(self) -> bool: ...

    def begin_delivery(self) -> None: ...


async def open_session(newcomer: Newcomer) -> None:
    """The request that connected may belong to a trace; the session's beginning does then, and what follows not."""
    tracing, traceparent = newcomer.context.tracing, newcomer.peer.wire.traceparent
    if traceparent is not None or tracing.due():
        span = tracing.command("session.open", traceparent, newcomer.attributes())
        if span is not None:
            with within(span):
                await _open(newcomer)
            span.note("hublog.session", newcomer.session_id)
            span.end("ended" if newcomer.ended else None)
            return
    await _open(newcomer)


async def _open(newcomer: Newcomer) -> None:
    """The session is heard, then opened; the handshake is answered when the log has it."""
    context = newcomer.context
    context.coordinator.move(newcomer, "authenticating")
    resumer: Resumer | None = None
    try:
        async with context.admission:
            manager = await _admit(newcomer)
            if not newcomer.here():
                return
            if newcomer.peer.wire.token is not None:
                resumer = await _go_on(newcomer, manager, newcomer.peer.wire.token)
            if resumer is None and not newcomer.ended:
                await _register(newcomer, manager)
    except Unavailable as error:
        newcomer.end(error, None)  # nothing was written: nothing to close
        return
    except HublogError as error:
        newcomer.end(error, "transport_error")
        return
    except Exception as exc:  # noqa: BLE001  a defect, of a manager of one's own perhaps: this client is told
        _log.exception("session.not_opened", session_id=newcomer.session_id)
        newcomer.end(Internal(f"the session was not opened: {type(exc).__name__}"), "transport_error")
        return
    if newcomer.accept():
        if resumer is not None:
            context.handover(newcomer.peer.hub).begin(newcomer.peer.hub, resumer)
        elif newcomer.standing.code is not None:
            newcomer.begin_delivery()


async def _admit(newcomer: Newcomer) -> Manager:
    """The manager of the hub, for somebody who may open a session now."""
    context = newcomer.context
    if context.draining:
        raise ShuttingDown("this node is going away")
    if len(context.closings) >= CLOSINGS_MAX:
        raise LogOverloaded("too many sessions wait to be closed")
    return await context.hubs.manager(newcomer.peer.hub)


async def _go_on(newcomer: Newcomer, manager: Manager, token: str) -> Resumer | None:
    """Go on with the session that the client names; None where that is refused: it gets a new one, and is told."""
    try:
        return await newcomer.take_over(manager, token, newcomer.peer.wire.cursor)
    except (Refused, BadToken) as error:
        newcomer.context.counters.resumes_refused += 1
        newcomer.context.counters.told(error)
        _log.info("resume.refused", connection=newcomer.id, code=error.code)
        newcomer.standing = Standing(resync="lost", code=error.code)
        return None


async def _register(newcomer: Newcomer, manager: Manager) -> None:
    context, peer = newcomer.context, newcomer.peer
    newcomer.manager, newcomer.session_id = manager, context.author.new_session()
    receiver = newcomer.receiver = newcomer.new_receiver(newcomer.session_id, peer.user)
    if newcomer.resumable:
        newcomer.gate = Gate(receiver)
    context.dispatcher(peer.hub).interest.expect(context.subjects(peer.hub), receiver)
    opened = await manager.sessions.register(
        NewSession(
            session_id=newcomer.session_id,
            connection=newcomer.id,
            node=context.node,
            incarnation=context.incarnation,
            user=peer.user,
            metadata=peer.metadata,
            resumable=newcomer.resumable,
        )
    )
    if newcomer.ended:
        # It was kicked before we heard that it is open, and registering has made it known here again.
        manager.local.forget(newcomer.session_id)
    if not opened:
        raise SessionExists("the session id is taken")
