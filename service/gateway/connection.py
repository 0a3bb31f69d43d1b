"""One client's connection: the protocol machine on one side, its session on the other.

Owns what a frame leads to and how the connection ends. Knows no WebSocket: the transport gives it the payloads of text
frames, a way to write, and a way to close.
"""

import asyncio
import time
from typing import Protocol

import structlog

from events import session
from events.errors import (
    ClientTimeout,
    Hole,
    HublogError,
    Kicked,
    Replaced,
    Restarting,
    SlowConsumer,
    TokenExpired,
)
from events.ids import SessionId
from service.delivery.gate import Gate
from service.delivery.handover import Resumer
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.gateway import opening
from service.gateway.calls import Calls
from service.gateway.context import GatewayContext
from service.gateway.letting_go import detachment, let_go
from service.gateway.methods.invoke import INVOKE
from service.gateway.peer import Peer
from service.gateway.resume import Standing, take_over
from service.gateway.signalr import json_format
from service.gateway.signalr.framing import text_frame
from service.gateway.signalr.machine import HubMachine
from service.gateway.signalr.messages import (
    CloseReceived,
    HandshakeReceived,
    Incoming,
    InvocationReceived,
    PingDue,
    Refusal,
)
from service.log.commands import Known
from service.log.fenced import BEGUN_UNDER
from service.sessions.manager import Manager
from service.telemetry.tracing import Attributes

_log = structlog.get_logger(__name__)


class Wire(Protocol):
    """What a transport lends to a connection."""

    @property
    def transport(self) -> asyncio.WriteTransport: ...

    def close(self) -> None:
        """Close politely, behind what was written. Returns at once."""
        ...


class Connection:
    """Serves one client from its handshake to its end. All methods run on the loop of the process."""

    __slots__ = (
        "_busy",
        "_ended",
        "_reason",
        "_rewind",
        "_until_s",
        "_wire",
        "calls",
        "context",
        "gate",
        "id",
        "machine",
        "manager",
        "outbox",
        "peer",
        "receiver",
        "session_id",
        "standing",
        "written_seen",
    )

    def __init__(self, context: GatewayContext, peer: Peer, wire: Wire) -> None:
        self.context = context
        self.peer = peer
        self.id = peer.connection
        self.machine = HubMachine(time.monotonic(), context.limits)
        self.calls = Calls()
        self.outbox = Outbox(wire.transport, context.outbox_bytes_max, self._slow)
        self.manager: Manager | None = None
        self.receiver: Receiver | None = None
        self.session_id = SessionId("")
        self.written_seen = 0
        self._wire = wire
        self._busy = False
        self._ended = False
        self._reason: session.Closing | None = "transport_error"
        self._rewind: int | None = None
        self._until_s = time.monotonic() + (peer.until_s - time.time())
        self.standing = Standing()
        self.gate: Gate | None = None

    @property
    def user(self) -> str | None:
        return self.receiver.user if self.receiver is not None else self.peer.user

    @property
    def resumable(self) -> bool:
        return self.peer.wire.resumable

    # ---------------------------------------------------------------- what comes in

    def receive_at_once(self, payload: bytes) -> bytes | None:
        """The payload of one text frame, while :meth:`receive` is at work on none and none waits for it. Hot path.

        Returns what is left for :meth:`receive`: nothing where it was a ``hub.invoke`` that is on its way now.
        """
        if self._ended or not self.calls.have_room:
            return payload
        call = self.machine.lone_call(payload, INVOKE, time.monotonic())
        if call is None:
            return payload
        # Callbacks of all sockets share a context: what is set for this call must not be there for the next thing.
        before = BEGUN_UNDER.set(self.context.incarnation)
        try:
            return None if self.calls.invoke(self, call) else b""
        finally:
            BEGUN_UNDER.reset(before)

    async def receive(self, payload: bytes) -> None:
        """The payload of one text frame. What it asks for is done, in order, when this returns; invokes may go on."""
        self._busy = True
        BEGUN_UNDER.set(self.context.incarnation)
        try:
            await self.calls.settle()
            for incoming in self.machine.receive(payload, time.monotonic()):
                await self._handle(incoming)
                if self._ended:
                    return
        finally:
            self._busy = False

    async def _handle(self, incoming: Incoming) -> None:
        if isinstance(incoming, InvocationReceived):
            await self.calls.take(self, incoming)
        elif isinstance(incoming, Refusal):
            self.context.counters.refused += 1
            self.context.counters.told(incoming.error)
            if incoming.fatal:
                self.outbox.finish(text_frame(incoming.reply))
                self._end("transport_error")
            else:
                self.outbox.write(text_frame(incoming.reply))
        elif isinstance(incoming, HandshakeReceived):
            await opening.open_session(self)
        elif isinstance(incoming, CloseReceived):
            self._end("client")

    def attributes(self) -> Attributes:
        return {"hublog.hub": self.peer.hub, "hublog.session": self.session_id, "hublog.connection": self.id}

    # ---------------------------------------------------------------- answers

    def answer(self, invocation_id: str | None, result: bytes) -> None:
        """Complete a call with a raw JSON value; a call without an id wants no answer."""
        if invocation_id is not None:
            self.outbox.write(text_frame(json_format.completion_result(invocation_id, result)))

    def answer_error(self, invocation_id: str | None, error: HublogError) -> None:
        self.context.counters.failed_calls += 1
        self.context.counters.told(error)
        if invocation_id is not None:
            self.outbox.write(text_frame(json_format.completion_error(invocation_id, error.wire())))

    def call_started(self) -> None:
        self.calls.started()

    def call_answered(self) -> None:
        self.calls.answered()

    # ---------------------------------------------------------------- the session

    def accept(self) -> bool:
        """Answer the handshake: the session is open. False: there is nobody to answer any more."""
        accepted = self.machine.accept(time.monotonic())
        if not accepted or self._ended:
            return False
        self.context.coordinator.move(self, "active")
        self.context.counters.opened += 1
        self.outbox.uncork(text_frame(accepted))
        return True

    async def take_over(self, manager: Manager, token: str, cursor: str) -> Resumer:
        """Make another session this connection's; what it had before is closed as superseded.

        Raises: BadToken, Refused (and nothing has changed), Unavailable.
        """
        self.manager = self.manager or manager  # it learns what happens to the session from the first event on
        receiver = self.new_receiver(SessionId(""), None)
        taken = await take_over(self.context, manager, receiver, token, cursor, self.peer.user, self.here)
        if self._ended:  # meanwhile; what was taken over must wait for its client again
            self.context.dispatcher(self.peer.hub).interest.release(receiver)
            self._let_go(manager, receiver.session, "transport_error")
            return taken.resumer
        if self.receiver is not None:
            self.context.dispatcher(self.peer.hub).interest.release(self.receiver)
            self.context.coordinator.forget_session(self, self.session_id)
            self._let_go(manager, self.session_id, "superseded")
        self.receiver, self.session_id, self.manager = receiver, receiver.session, manager
        self.standing, self.gate = taken.standing, taken.resumer.gate
        self.context.counters.resumed += 1
        self.context.counters.resyncs[taken.standing.resync or "none"] += 1
        if self.context.coordinator.standing(self.id) == "active":
            self.context.coordinator.move(self, "active")  # now with another session
        return taken.resumer

    def here(self) -> bool:
        """Whether somebody is there still. While a frame is at work the transport alone knows."""
        return not self._ended and not self._wire.transport.is_closing()

    def begin_delivery(self) -> None:
        """A resumable connection has asked who it is: what was kept since its session opened goes out."""
        gate, receiver = self.gate, self.receiver
        if gate is None or receiver is None or gate.is_open or gate.handed_over or self.standing.resumed:
            return
        if not gate.dropped:
            gate.open()
        else:  # it asked late, and more came than is kept for it
            opened = receiver.since
            self.context.handover(self.peer.hub).begin(
                self.peer.hub, Resumer(receiver, gate, opened, opened, opened=opened)
            )

    def new_receiver(self, session_id: SessionId, user: str | None) -> Receiver:
        return Receiver(session_id, self.id, user, self.outbox, self._own_event, self._hole, self.peer.wire.kind)

    def _own_event(self, receiver: Receiver, event: session.Event, state: session.State, sequence: int) -> None:
        """One of the session's own events came by in the feed."""
        if self._ended or not receiver.live:
            return  # not this connection's session any more, or not yet
        if self.manager is not None:
            self.manager.local.learn(receiver.session, Known(state, sequence))
        if isinstance(event, session.Closed):
            self._gone(receiver, Kicked(f"the session was closed: {event.reason}"))
        elif state.connection != self.id:
            self._gone(receiver, Replaced("another connection resumed the session"))
        elif state.status == "detached":
            self._gone(receiver, Restarting("the session was detached from this connection"))

    def _gone(self, receiver: Receiver, error: HublogError) -> None:
        """The session is not this connection's any more: there is nothing to append."""
        if receiver is self.receiver:
            self._reason = None
            self.end(error, None)
        else:  # it was still being taken over: the session that the connection had is nobody else's to close
            if self.manager is not None:
                self.manager.local.forget(receiver.session)
            self.end(error, "superseded")

    # ---------------------------------------------------------------- the end

    @property
    def ended(self) -> bool:
        return self._ended

    def tick(self, now_s: float) -> None:
        """Timers: pings, silence, and what waits too long in the outbox. About once a second."""
        if self.outbox.written != self.written_seen:
            self.written_seen = self.outbox.written
            self.machine.sent(now_s)
        if self._busy:
            self.machine.last_received_s = now_s  # it may well speak: we do not listen, we wait for the log
        due = self.machine.tick(now_s)
        if isinstance(due, PingDue):
            self.outbox.write(text_frame(due.reply))
            self.machine.sent(now_s)
        elif due is not None:
            self.context.counters.timeouts += 1
            self.context.counters.told(due.error)
            self.outbox.finish(text_frame(due.reply))
            self._end("timeout" if isinstance(due.error, ClientTimeout) else "transport_error")
        self.outbox.check_age(now_s, self.context.outbox_age_s)
        if now_s >= self._until_s:
            # Reconnectable: the client comes back with a new token, and goes on with a resumable session.
            self.end(TokenExpired("the access token has expired"), "unauthorised", allow_reconnect=True)

    def end(
        self, error: HublogError | None, reason: session.Closing | None, *, allow_reconnect: bool | None = None
    ) -> None:
        """Say why and close the connection. ``reason`` is what the session is closed as (None: it is closed)."""
        if self._ended:
            return
        if error is not None:
            self.context.counters.told(error)
        said = self.machine.end(error, allow_reconnect=allow_reconnect)
        if said:
            self.outbox.finish(text_frame(said))
        self._end(reason)

    def fail(self) -> None:
        """A defect met the timers: nothing that would be said is to be trusted."""
        self.outbox.abort()

    def lost(self) -> None:
        """The transport is gone. Whatever reason was given before stands."""
        self._end("transport_error")
        # The receiver holds methods of this connection: no cycle, no work for the collector.
        self.receiver = None

    def _end(self, reason: session.Closing | None) -> None:
        if self._ended:
            return
        self._ended = True
        if self._reason is not None:
            self._reason = reason
        self.outbox.close()
        self._wire.close()
        if self.receiver is not None and self.receiver.hub is not None:
            self.context.dispatcher(self.peer.hub).interest.release(self.receiver)
        if self.manager is not None and self.session_id:
            self._let_go(self.manager, self.session_id, self._reason, self._rewind)
        self.context.coordinator.move(self, "detached" if self._detaches(self._reason) else "closed")

    def _detaches(self, reason: session.Closing | None) -> bool:
        """Whether a session that ends here for this reason goes on waiting; a Close by its client ends any session."""
        return self.resumable and reason not in {None, "client", "superseded"}

    def _let_go(
        self, manager: Manager, session_id: SessionId, reason: session.Closing | None, rewind: int | None = None
    ) -> None:
        """The session has ended here: have it appended, by a task that outlives this connection."""
        detach = None
        if reason is not None and self._detaches(reason):
            silent_us = int((time.monotonic() - self.machine.last_received_s) * 1e6)
            detach = detachment(self.id, reason, self.context.author.now_us() - silent_us, rewind)
        self.context.closings.start(let_go(self.context, manager, session_id, self.id, reason, detach))

    def _slow(self) -> None:
        """The client does not read. A Close would wait behind everything else: the connection is cut instead."""
        if self._ended:
            return
        self.context.counters.slow += 1
        error = SlowConsumer("the client does not read what it is sent")
        self.context.counters.told(error)
        _log.info("connection.slow", session_id=self.session_id, code=error.code)
        self.machine.end(error)
        self._end("slow_consumer")
        self.outbox.abort()

    def _hole(self, receiver: Receiver, sequence: int) -> None:
        if self._ended:
            return
        _log.warning("connection.hole", session_id=receiver.session, sequence=sequence)
        hole = Hole("a message can no longer be delivered in order")
        if receiver is self.receiver:
            self._rewind = sequence - 1
            self.end(hole, "hole", allow_reconnect=True)
        else:  # it was still being taken over, so nothing of it was written: it goes on from where its client is
            self.end(hole, "superseded", allow_reconnect=True)
