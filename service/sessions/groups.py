"""Who is in which group. A group exists while it has a member; nothing else makes or ends one."""

from typing import Protocol

from events import session
from events.ids import HubName, SessionId, parse_name
from events.subjects import HubSubjects
from service.log.port import EventLog
from service.sessions.local import LocalSessions
from service.sessions.registry import KnownSession, SessionRunner
from service.sessions.view import AsOf, GlobalView


class GroupRegistry(Protocol):
    """The groups of one hub. Every change answers the session's state after it, with the sequence of its last event.

    ``actor`` is who is recorded as doing it (default: the session itself). What touches shared state is async, and
    raises Unavailable (retryable), Conflict when others changed the session for 2 s, OutcomeUnknown when nobody could
    say in time whether something was written.
    """

    async def initialize(self) -> None:
        """Called once, after the sessions were initialised."""
        ...

    async def shutdown(self) -> None:
        """Called once. Memberships outlive the process."""
        ...

    async def add(self, session_id: SessionId, *groups: str, actor: str | None = None) -> KnownSession:
        """Add a session to one or several groups: all of them or none, by one event. Those it is in are passed over.

        Raises: InvalidName, TooManyGroups, SessionNotFound, SessionClosed.
        """
        ...

    async def remove(self, session_id: SessionId, *groups: str, actor: str | None = None) -> KnownSession:
        """Remove a session from these groups, by one event; those it is not in are passed over.

        A closed session is in none, so nothing is left to do. Raises: SessionNotFound.
        """
        ...

    async def remove_from_all(self, session_id: SessionId, actor: str | None = None) -> KnownSession:
        """Remove a session from every group that it is in, by one event. Raises: SessionNotFound."""
        ...

    async def names(self) -> AsOf[tuple[str, ...]]:
        """The names of the groups that have a member on any node, ascending, and the position of which that is true.

        Raises: ReadModelUnavailable.
        """
        ...

    async def size(self, group: str) -> AsOf[int]:
        """How many members a group has on all nodes, attached or detached, and the position of which that is true.

        0 for a group that does not exist. Raises: ReadModelUnavailable.
        """
        ...

    def local_members(self, group: str) -> tuple[SessionId, ...]:
        """The members that are attached to this process, from memory, in no particular order."""
        ...


class LogGroupRegistry:
    """The registry over an :class:`EventLog`: a membership is part of its session, so one event changes it."""

    def __init__(
        self, hub: HubName, log: EventLog, runner: SessionRunner, local: LocalSessions, view: GlobalView
    ) -> None:
        self._hub = hub
        self._subjects = HubSubjects(hub, log.partitions)
        self._runner = runner
        self._local = local
        self._view = view

    async def initialize(self) -> None:
        """Nothing to prepare: the log is connected before there is a registry."""

    async def shutdown(self) -> None:
        """Memberships outlive the process."""

    async def add(self, session_id: SessionId, *groups: str, actor: str | None = None) -> KnownSession:
        names = tuple(parse_name(group, "group") for group in groups)
        return await self._execute(session_id, session.Join(names), actor)

    async def remove(self, session_id: SessionId, *groups: str, actor: str | None = None) -> KnownSession:
        return await self._execute(session_id, session.Leave(groups), actor)

    async def remove_from_all(self, session_id: SessionId, actor: str | None = None) -> KnownSession:
        return await self._execute(session_id, session.LeaveAll(), actor)

    async def names(self) -> AsOf[tuple[str, ...]]:
        return await self._view.group_names(self._hub)

    async def size(self, group: str) -> AsOf[int]:
        return await self._view.group_size(self._hub, group)

    def local_members(self, group: str) -> tuple[SessionId, ...]:
        return self._local.members(group)

    async def _execute(self, session_id: SessionId, command: session.Command, actor: str | None) -> KnownSession:
        executed = await self._runner.execute(
            self._subjects.session(session_id),
            command,
            actor=actor or f"session:{session_id}",
            hint=lambda: self._local.get(session_id),
        )
        if self._local.get(session_id) is not None:
            self._local.learn(session_id, executed.known)
        return executed.known
