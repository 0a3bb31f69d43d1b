"""One hub's sessions, groups and calls, composed."""

from collections.abc import Sequence
from typing import Generic, TypeAlias, TypeVar

from events import session
from events.ids import HubName, SessionId, parse_hub
from service.log.author import Author
from service.log.commands import CommandRunner, SessionAggregate
from service.log.memory import MemoryEventLog
from service.log.port import EventLog
from service.sessions.groups import GroupRegistry, LogGroupRegistry
from service.sessions.local import LocalSessions
from service.sessions.proxy import CallerProxy, SessionGroups
from service.sessions.registry import LogSessionRegistry, SessionRegistry
from service.sessions.router import InvocationRouter, LogInvocationRouter
from service.sessions.view import GlobalView, LogView

S = TypeVar("S", bound=SessionRegistry)
G = TypeVar("G", bound=GroupRegistry)
R = TypeVar("R", bound=InvocationRouter)


class SessionManager(Generic[S, G, R]):
    """Composes a session registry, a group registry and an invocation router of one hub.

    ``sessions``, ``groups`` and ``router`` are those; ``local`` is what is known of the sessions attached to this
    process, shared by them and fed by whoever hears the log.

    Initialised in the order sessions → groups → router, and shut down in reverse; each part is shut down even when
    another fails, and what failed is raised afterwards, as a group.
    """

    def __init__(self, hub: HubName, sessions: S, groups: G, router: R, local: LocalSessions | None = None) -> None:
        self.hub = hub
        self.sessions = sessions
        self.groups = groups
        self.router = router
        self.local = local if local is not None else LocalSessions()

    async def initialize(self) -> None:
        """Prepare all parts. What was prepared is shut down again if a later part fails.

        Raises: what that part raised; failures to shut the others down are notes on it.
        """
        parts: tuple[Part, ...] = (self.sessions, self.groups, self.router)
        for count, part in enumerate(parts):
            try:
                await part.initialize()
            except BaseException as exc:
                for failure in await _shut_down(parts[:count]):
                    exc.add_note(f"and shutting down what was ready: {failure!r}")
                raise

    async def shutdown(self) -> None:
        """Shut all parts down. Raises: ExceptionGroup of what they raised, when each has had its turn."""
        if failures := await _shut_down((self.sessions, self.groups, self.router)):
            raise ExceptionGroup(f"hub {self.hub} did not shut down cleanly", failures)

    def groups_of(self, session_id: SessionId) -> SessionGroups:
        """The groups of one session, as a facade bound to it."""
        return SessionGroups(session_id, self.sessions, self.groups)

    def as_session(self, session_id: SessionId, user: str | None = None) -> CallerProxy:
        """Calls in the name of a session; ``user`` is its user, whose idempotency keys it shares."""
        return CallerProxy(self.router, session=session_id, user=user)

    def as_backend(self, actor: str = "system:service") -> CallerProxy:
        """Calls in the name of something that is no session: ``actor`` is ``system:<role>`` or ``user:<id>``."""
        return CallerProxy(self.router, session=None, actor=actor)


Manager = SessionManager[SessionRegistry, GroupRegistry, InvocationRouter]
Part: TypeAlias = SessionRegistry | GroupRegistry | InvocationRouter


async def _shut_down(parts: Sequence[Part]) -> list[Exception]:
    """Each in its turn, the last first; what they raise stops none."""
    failures: list[Exception] = []
    for part in reversed(parts):
        try:
            await part.shutdown()
        except Exception as exc:  # noqa: BLE001  the caller raises it
            failures.append(exc)
    return failures


def session_manager(
    hub: str,
    log: EventLog | None = None,
    *,
    author: Author | None = None,
    view: GlobalView | None = None,
    ttl_ms_max: int | None = None,
) -> Manager:
    """The manager that ships, over an event log; without one, local and in memory.

    ``view`` answers global questions (default: by reading the log), ``ttl_ms_max`` is the age at which the log forgets.
    Nothing is opened or read before :meth:`SessionManager.initialize`.

    Raises: InvalidName.
    """
    name = parse_hub(hub)
    log = log if log is not None else MemoryEventLog()
    author = author or Author()
    view = view or LogView(log)
    local = LocalSessions()
    runner: CommandRunner[session.State, session.Command] = CommandRunner(log, author, SessionAggregate())
    return SessionManager(
        name,
        LogSessionRegistry(name, log, author, runner, local, view),
        LogGroupRegistry(name, log, runner, local, view),
        LogInvocationRouter(name, log, author, ttl_ms_max=ttl_ms_max),
        local,
    )
