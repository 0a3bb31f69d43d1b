"""Facades for the code that implements a hub: groups as one session sees them, calls as one caller makes them."""

from collections.abc import Sequence
from typing import Any

from events import selector
from events.errors import SessionNotFound
from events.ids import SessionId
from events.selector import Selector
from service.sessions.groups import GroupRegistry
from service.sessions.registry import SessionRegistry
from service.sessions.router import Call, InvocationRouter, Outcome, arguments_of


class SessionGroups:
    """The groups of one session."""

    def __init__(self, session_id: SessionId, sessions: SessionRegistry, groups: GroupRegistry) -> None:
        self._session = session_id
        self._sessions = sessions
        self._groups = groups

    async def add(self, *groups: str) -> tuple[str, ...]:
        """Join groups, all or none, by one event; returns the names of all groups afterwards, sorted.

        Raises: InvalidName, TooManyGroups, SessionNotFound, SessionClosed.
        """
        return tuple(sorted((await self._groups.add(self._session, *groups)).state.groups))

    async def remove(self, *groups: str) -> tuple[str, ...]:
        """Leave groups; returns the names of all groups afterwards, sorted. Raises: SessionNotFound."""
        return tuple(sorted((await self._groups.remove(self._session, *groups)).state.groups))

    async def names(self) -> tuple[str, ...]:
        """The names of all groups of the session as the log knows it now, sorted.

        Raises: SessionNotFound (also when it is closed).
        """
        known = await self._sessions.get(self._session)
        if known is None:
            raise SessionNotFound(f"there is no session {self._session}")
        return tuple(sorted(known.state.groups))


class Recipients:
    """Whoever a selector picks, at the position of each call. :meth:`send` calls them."""

    def __init__(self, router: InvocationRouter, caller: "CallerProxy", to: Selector) -> None:
        self._router = router
        self._caller = caller
        self._to = to

    async def send(self, target: str, *arguments: Any, key: str | None = None, ttl_ms: int | None = None) -> Outcome:
        """Call ``target(*arguments)``: durable once this returns. Arguments are anything msgspec writes as JSON.

        ``key`` (1 to 128 characters) makes a repeat of the same call find its first outcome, ``ttl_ms`` (1 to the log's
        max_age) lets a later resume skip it.

        Raises: InvalidName, InvalidArguments, InvalidOption, InvalidSelector, TooManyTargets, KeyReused,
        PayloadTooLarge, Unavailable (retryable), OutcomeUnknown.
        """
        return await self._router.invoke(
            Call(
                self._to,
                target,
                arguments_of(arguments),
                actor=self._caller.actor,
                caller=self._caller.session,
                user=self._caller.user,
                key=key,
                ttl_ms=ttl_ms,
            )
        )


class CallerProxy:
    """Calls in the name of one caller: a session, or (``session`` None) a backend. One attribute per mode.

    The caller-relative modes (``caller``, ``others``, ``group_except_caller`` …) need a session and raise
    InvalidSelector at ``send`` without one.
    """

    def __init__(
        self, router: InvocationRouter, *, session: SessionId | None, user: str | None = None, actor: str | None = None
    ) -> None:
        self._router = router
        self.session = session
        self.user = user
        self.actor = actor or (f"session:{session}" if session is not None else "system:service")

    @property
    def caller(self) -> Recipients:
        """The calling session."""
        return self._to(selector.Caller())

    @property
    def all(self) -> Recipients:
        """Every session of the hub."""
        return self._to(selector.All())

    @property
    def others(self) -> Recipients:
        """Every session but the calling one."""
        return self._to(selector.Others())

    def all_except(self, sessions: Sequence[str]) -> Recipients:
        """Every session but these."""
        return self._to(selector.AllExcept(tuple(sessions)))

    def client(self, session: str) -> Recipients:
        """One session; ``send`` answers sent, queued or not_found."""
        return self._to(selector.Client(session))

    def clients(self, sessions: Sequence[str]) -> Recipients:
        """Several sessions, each once."""
        return self._to(selector.Clients(tuple(sessions)))

    def group(self, group: str, without: Sequence[str] = ()) -> Recipients:
        """The members of a group, but not the sessions in ``without``."""
        return self._to(selector.Group(group, tuple(without)))

    def groups(self, groups: Sequence[str], without: Sequence[str] = ()) -> Recipients:
        """The members of several groups, each session once, but not the sessions in ``without``."""
        return self._to(selector.Groups(tuple(groups), tuple(without)))

    def group_except_caller(self, group: str) -> Recipients:
        """The members of a group but the calling session."""
        return self._to(selector.GroupExceptCaller(group))

    def groups_except_caller(self, groups: Sequence[str]) -> Recipients:
        """The members of several groups, each session once, but the calling one."""
        return self._to(selector.GroupsExceptCaller(tuple(groups)))

    def user_sessions(self, user: str) -> Recipients:
        """Every session of a user."""
        return self._to(selector.User(user))

    def _to(self, to: Selector) -> Recipients:
        return Recipients(self._router, self, to)
