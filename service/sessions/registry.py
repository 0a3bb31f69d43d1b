"""Which sessions there are."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from events import session
from events.errors import OutcomeUnknown, SessionClosed, SessionExists, SessionNotFound
from events.ids import HubName, SessionId, parse_name
from events.nesting import too_deep
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.commands import CommandRunner, Executed, Known
from service.log.port import EventLog
from service.sessions.local import LocalSessions
from service.sessions.view import AsOf, GlobalView

_metadata: msgspec.json.Decoder[dict[str, msgspec.Raw] | None] = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)

# Connections whose first write may still arrive; beyond, the oldest is taken to have come to nothing.
DOUBTS_MAX = 30_000

SessionRunner = CommandRunner[session.State, session.Command]
KnownSession = Known[session.State]


class NewSession(msgspec.Struct, frozen=True):
    """A session about to be registered, with its first connection.

    ``session_id``: from ``Author.new_session`` (16 random bytes as base64url); ``metadata``: one JSON object in UTF-8,
    or ``null``; ``node`` and ``incarnation``: of the gateway process, empty where there is none; ``resumable``: it
    outlives its connection.
    """

    session_id: SessionId
    connection: str
    node: str = ""
    incarnation: str = ""
    user: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    resumable: bool = False

    @property
    def actor(self) -> str:
        return f"session:{self.session_id}"


Expect = Callable[[KnownSession], None]


class Attachment(msgspec.Struct, frozen=True):
    """A session that was taken over: as it was ``before``, and as it is from the ``attached`` on."""

    before: KnownSession
    known: KnownSession


class SessionRegistry(Protocol):
    """The sessions of one hub. What was registered exists for every node until it is unregistered.

    What touches shared state is async, and raises Unavailable (LogUnavailable and its kin, retryable) when the log does
    not answer, OutcomeUnknown when nobody could say in time whether something was written.
    """

    async def initialize(self) -> None:
        """Called once, before anything else."""
        ...

    async def shutdown(self) -> None:
        """Called once, last. Sessions outlive the process."""
        ...

    async def register(self, new: NewSession) -> bool:
        """Open a session; False if the id exists already, on whichever node. The log decides, so exactly one wins.

        Conflict is resolved inside. Raises: InvalidName (of the session or its user), ValueError (metadata that is
        not JSON: a defect of the caller).
        """
        ...

    async def unregister(
        self,
        session_id: SessionId,
        reason: session.Closing = "client",
        *,
        actor: str | None = None,
        connection: str | None = None,
        insist: bool = False,
    ) -> bool:
        """Close a session, which leaves all its groups; False if there was nothing to close.

        ``actor`` is who is recorded as doing it (default: the session itself). With ``connection``, only while that
        connection holds the session, else False. With ``insist`` it is repeated until the log answers; cancel it to
        give up.

        Raises: SessionNotFound, Conflict (others changed it for 2 s; not with ``insist``).
        """
        ...

    async def attach(
        self,
        session_id: SessionId,
        command: session.Attach,
        expect: Expect,
        *,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Attachment:
        """Take a session over with a resume token: the newest connection has it from the sequence that is answered.

        ``expect(known)`` is called before each attempt to write, with the state that it goes by: what the session must
        receive is to be heard beforehand. Repeated until the log answers, while it is ``wanted``.

        Raises: SessionNotFound, SessionClosed (also as it is found expired), NotResumable, TokenStale; Unavailable and
        OutcomeUnknown where it is not wanted any more: then it may be attached nevertheless.
        """
        ...

    async def detach(self, session_id: SessionId, command: session.Detach) -> bool:
        """The connection that the command names has ended; the session waits to be resumed.

        False if that connection did not hold it any more. Repeated until the log answers; cancel it to give up.

        Raises: SessionNotFound, NotResumable.
        """
        ...

    async def get(self, session_id: SessionId) -> KnownSession | None:
        """The session as the log knows it now, with the sequence of its last event; None if closed or unknown."""
        ...

    async def exists(self, session_id: SessionId) -> bool:
        """Whether it is registered now, attached or detached, on whichever node."""
        ...

    def local_sessions(self) -> tuple[SessionId, ...]:
        """The sessions attached to this process, from memory."""
        ...

    async def count(self) -> AsOf[int]:
        """How many sessions the hub has on all nodes, and the position of which that is true.

        Raises: ReadModelUnavailable.
        """
        ...

    async def ids(self) -> AsOf[tuple[SessionId, ...]]:
        """Their ids, ascending, and the position of which that is true. Raises: ReadModelUnavailable."""
        ...


class LogSessionRegistry:
    """The registry over an :class:`EventLog`."""

    def __init__(
        self,
        hub: HubName,
        log: EventLog,
        author: Author,
        runner: SessionRunner,
        local: LocalSessions,
        view: GlobalView,
    ) -> None:
        self._hub = hub
        self._subjects = HubSubjects(hub, log.partitions)
        self._author = author
        self._runner = runner
        self._local = local
        self._view = view
        # By connection: what to write once more, so that what it sent and was not answered is stored by then, or never.
        self._doubts: dict[str, session.Open | session.Carry] = {}

    async def initialize(self) -> None:
        """Nothing to prepare: the log is connected before there is a registry."""

    async def shutdown(self) -> None:
        """Sessions outlive the process; only what is known of them here goes."""
        for session_id in self._local.ids():
            self._local.forget(session_id)

    async def register(self, new: NewSession) -> bool:
        _check(new)
        command = session.Open(
            node=new.node,
            incarnation=new.incarnation,
            connection=new.connection,
            user=new.user,
            metadata=new.metadata,
            resumable=new.resumable,
        )
        # A fresh id is expected to be free: no read before the append, the log refuses if it is not.
        fresh = Known(session.INITIAL, 0)
        subject = self._subjects.session(new.session_id)
        try:
            executed = await self._runner.execute(subject, command, actor=new.actor, hint=lambda: fresh)
        except SessionExists:
            return False
        except (OutcomeUnknown, asyncio.CancelledError):
            self._doubt(new.connection, command)
            raise
        self._local.learn(new.session_id, executed.known)
        return True

    async def unregister(
        self,
        session_id: SessionId,
        reason: session.Closing = "client",
        *,
        actor: str | None = None,
        connection: str | None = None,
        insist: bool = False,
    ) -> bool:
        def close() -> Awaitable[Executed[session.State]]:
            return self._runner.execute(
                self._subjects.session(session_id),
                session.Close(reason, connection),
                actor=actor or f"session:{session_id}",
                hint=lambda: self._local.get(session_id),
                insist=insist,
            )

        executed = await (close() if connection is None else self._end(session_id, connection, close))
        if self._local.get(session_id) is not None:
            self._local.learn(session_id, executed.known)
        return bool(executed.events)

    async def attach(
        self,
        session_id: SessionId,
        command: session.Attach,
        expect: Expect,
        *,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Attachment:
        subject = self._subjects.session(session_id)
        try:
            executed = await self._runner.execute(
                subject, command, actor=f"session:{session_id}", insist=True, wanted=wanted, expect=expect
            )
        except (OutcomeUnknown, asyncio.CancelledError):
            self._doubt(command.connection, session.Carry())
            raise
        if executed.known.state.status == "closed":
            raise SessionClosed("the session has expired")
        self._local.learn(session_id, executed.known)
        return Attachment(executed.before, executed.known)

    async def detach(self, session_id: SessionId, command: session.Detach) -> bool:
        def detach() -> Awaitable[Executed[session.State]]:
            return self._runner.execute(
                self._subjects.session(session_id),
                command,
                actor="system:gateway",
                hint=lambda: self._local.get(session_id),
                insist=True,
            )

        return bool((await self._end(session_id, command.connection, detach)).events)

    async def get(self, session_id: SessionId) -> KnownSession | None:
        known = await self._runner.load(self._subjects.session(session_id))
        return known if known.state.status in {"active", "detached"} else None

    async def exists(self, session_id: SessionId) -> bool:
        return await self.get(session_id) is not None

    def local_sessions(self) -> tuple[SessionId, ...]:
        return self._local.ids()

    async def count(self) -> AsOf[int]:
        return await self._view.session_count(self._hub)

    async def ids(self) -> AsOf[tuple[SessionId, ...]]:
        return await self._view.session_ids(self._hub)

    def _doubt(self, connection: str, settles: session.Open | session.Carry) -> None:
        if len(self._doubts) >= DOUBTS_MAX:
            del self._doubts[next(iter(self._doubts))]
        self._doubts[connection] = settles

    async def _end(
        self, session_id: SessionId, connection: str, end: Callable[[], Awaitable[Executed[session.State]]]
    ) -> Executed[session.State]:
        """``end`` what a connection has of a session, also where what gave it that may still arrive at the log: nothing
        to end is believed only once something else stands where that was to be stored.
        """
        try:
            executed = await end()
        except SessionNotFound:
            doubt = self._doubts.pop(connection, None)  # only now: it may have been under way until then
            if doubt is None:
                raise
        else:
            doubt = self._doubts.pop(connection, None)
            if executed.events or doubt is None:
                return executed
        with suppress(SessionExists):
            subject = self._subjects.session(session_id)
            await self._runner.execute(subject, doubt, actor="system:gateway", insist=True)
        return await end()


def _check(new: NewSession) -> None:
    """What would make an event that no reader can read. Raises: InvalidName, ValueError."""
    parse_name(new.session_id, "session id")
    if new.user is not None:
        parse_name(new.user, "user")
    raw = bytes(new.metadata)
    try:
        raw.decode()
        if too_deep(raw):
            raise ValueError("it is nested too deeply")
        _metadata.decode(raw)
    except (msgspec.DecodeError, ValueError) as exc:
        raise ValueError(f"the metadata of a session is one JSON object in UTF-8, or null: {exc}") from exc
