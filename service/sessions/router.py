"""Calls on sessions: from a selector to one event on one subject.

Owns what an invocation answers its caller (``accepted``, ``sent``, ``queued``, ``not_found``) and what an idempotency
key means. Refuses to know who is connected where: no node is asked, the outcome is read from the log.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
import structlog

from events import codec, invocation, selector, session
from events.envelope import NewEvent
from events.errors import HublogError, Internal, InvalidArguments, KeyReused, OutcomeUnknown, Unavailable
from events.ids import EventId, HubName, Position, keyed_id
from events.invocation import Requested
from events.selector import Route, Selector
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.commands import Known
from service.log.port import EventLog, Stored
from service.sessions.registry import KnownSession

Verdict = Literal["accepted", "sent", "queued", "not_found"]


class Call(msgspec.Struct, frozen=True):
    """One invocation as somebody asks for it.

    ``target`` is the method, 1 to 256 bytes of UTF-8; ``arguments`` one JSON array in UTF-8, kept byte for byte.
    ``caller`` is the calling session (None: not a session), ``actor`` who is recorded as doing it (``session:<id>``,
    ``user:<id>``, ``system:<role>``). ``key`` (1 to 128 characters) makes a repeat of the same call find its first
    outcome; it belongs to ``user``, on all of its sessions, or else to ``actor``. ``ttl_ms`` (1 to the log's max_age):
    a resume that comes later skips the call.
    """

    selector: Selector
    target: str
    arguments: bytes
    actor: str
    caller: str | None = None
    user: str | None = None
    key: str | None = None
    ttl_ms: int | None = None


class Outcome(msgspec.Struct, frozen=True, rename="camel"):
    """What a call answers.

    ``outcome`` of a call on one client is the session's state at the call's own position: ``sent`` (attached),
    ``queued`` (detached), or ``not_found`` (unknown or closed); of any other call it is ``accepted``: durable.
    ``position`` is None where the call reaches nobody: ``not_found``, or no target named.
    """

    invocation_id: EventId
    position: str | None
    outcome: Verdict


# How far before its end the inbox of a closed session is searched for the first use of a key.
REPEAT_SEQUENCES_MAX = 100_000

_log = structlog.get_logger(__name__)

Answer = Callable[[Outcome | HublogError], None]


class InvocationRouter(Protocol):
    """Sends calls to the sessions of one hub. One failing recipient never stops the others.

    A call is durable once it is answered; ids are made here, one for each call, whatever its path. The methods named
    like selectors are calls of the backend (``system:service``): arguments are anything that msgspec writes as JSON,
    and they raise what :meth:`invoke` raises.
    """

    async def initialize(self) -> None:
        """Called once, after sessions and groups were initialised."""
        ...

    async def shutdown(self) -> None:
        """Called once, before sessions and groups are shut down; returns when calls under way have their outcome."""
        ...

    def submit(self, call: Call, answer: Answer) -> Awaitable[None] | None:
        """Send a call; ``answer`` is called exactly once, on the loop, with its outcome or why it failed.

        Returns None when the call is on its way, or something to await before the next call of the same caller is
        submitted, so that calls keep their order. That must be awaited; it raises nothing, and only cancelling it
        leaves the call without an answer. Where this raises, ``answer`` is never called and nothing was written.

        ``answer`` is given, beside outcomes: KeyReused, PayloadTooLarge, Unavailable, OutcomeUnknown, LogDamaged,
        Internal.

        Raises: InvalidSelector, InvalidArguments, InvalidName, InvalidOption, TooManyTargets.
        """
        ...

    async def invoke(self, call: Call) -> Outcome:
        """:meth:`submit`, awaited. Raises: what that raises, and the errors that ``answer`` would be given."""
        ...

    async def all(self, target: str, *arguments: Any) -> Outcome:
        """Call every session of the hub."""
        ...

    async def all_except(self, sessions: Sequence[str], target: str, *arguments: Any) -> Outcome:
        """Call every session but these."""
        ...

    async def client(self, session: str, target: str, *arguments: Any) -> Outcome:
        """Call one session: ``sent`` (attached), ``queued`` (detached) or ``not_found``, as of the call's position."""
        ...

    async def clients(self, sessions: Sequence[str], target: str, *arguments: Any) -> Outcome:
        """Call several sessions, each once; unknown ones are skipped."""
        ...

    async def group(self, group: str, target: str, *arguments: Any, without: Sequence[str] = ()) -> Outcome:
        """Call the members of a group, but not the sessions in ``without``."""
        ...

    async def groups(self, groups: Sequence[str], target: str, *arguments: Any, without: Sequence[str] = ()) -> Outcome:
        """Call the members of several groups, each session once."""
        ...

    async def user(self, user: str, target: str, *arguments: Any) -> Outcome:
        """Call every session of a user."""
        ...


class LogInvocationRouter:
    """The router over an :class:`EventLog`."""

    def __init__(self, hub: HubName, log: EventLog, author: Author, *, ttl_ms_max: int | None = None) -> None:
        self._hub = hub
        self._log = log
        self._author = author
        self._ttl_ms_max = ttl_ms_max
        self._subjects = HubSubjects(hub, log.partitions)
        self._all = self._subjects.all()
        self._many = self._subjects.many()
        self._position_prefix = str(Position(log.epoch, self._subjects.partition, 0))[:-1]
        # Look-ups that go on after submit returned; held, or the loop would forget them.
        self._judging: set[asyncio.Task[None]] = set()

    async def initialize(self) -> None:
        """Nothing to prepare: the log is connected before there is a router."""

    async def shutdown(self) -> None:
        """Wait for the outcomes of calls that are already written."""
        if self._judging:
            await asyncio.gather(*self._judging, return_exceptions=True)

    def submit(self, call: Call, answer: Answer) -> Awaitable[None] | None:
        route = selector.resolve(call.selector, call.caller)
        event_id = self._identify(call)
        event = invocation.requested(
            route,
            call.selector,
            call.target,
            call.arguments,
            caller=call.caller,
            ttl_ms=call.ttl_ms,
            ttl_ms_max=self._ttl_ms_max,
        )
        written = self._author.write(event, actor=call.actor, event_id=event_id)
        if isinstance(call.selector, selector.Client):
            return self._submit_to_client(route, event, written, answer, keyed=call.key is not None)
        if route.kind == "none":
            answer(Outcome(event_id, None, "accepted"))
            return None
        keyed = call.key is not None

        def done(stored: Stored | HublogError) -> None:
            if isinstance(stored, HublogError):
                answer(stored)
            elif keyed and stored.duplicate:
                self._go_on(self._accepted_before(event_id, event, stored), answer)
            else:
                answer(Outcome(event_id, self._position(stored), "accepted"))

        self._log.submit(self._subject(route), written, done)
        return None

    async def invoke(self, call: Call) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def answer(outcome: Outcome | HublogError) -> None:
            if future.done():
                return
            if isinstance(outcome, HublogError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        first = self.submit(call, answer)
        if first is not None:
            await first
        return await future

    async def all(self, target: str, *arguments: Any) -> Outcome:
        return await self._as_system(selector.All(), target, arguments)

    async def all_except(self, sessions: Sequence[str], target: str, *arguments: Any) -> Outcome:
        return await self._as_system(selector.AllExcept(tuple(sessions)), target, arguments)

    async def client(self, session: str, target: str, *arguments: Any) -> Outcome:
        return await self._as_system(selector.Client(session), target, arguments)

    async def clients(self, sessions: Sequence[str], target: str, *arguments: Any) -> Outcome:
        return await self._as_system(selector.Clients(tuple(sessions)), target, arguments)

    async def group(self, group: str, target: str, *arguments: Any, without: Sequence[str] = ()) -> Outcome:
        return await self._as_system(selector.Group(group, tuple(without)), target, arguments)

    async def groups(self, groups: Sequence[str], target: str, *arguments: Any, without: Sequence[str] = ()) -> Outcome:
        return await self._as_system(selector.Groups(tuple(groups), tuple(without)), target, arguments)

    async def user(self, user: str, target: str, *arguments: Any) -> Outcome:
        return await self._as_system(selector.User(user), target, arguments)

    async def _as_system(self, to: Selector, target: str, arguments: tuple[Any, ...]) -> Outcome:
        return await self.invoke(Call(to, target, arguments_of(arguments), actor="system:service"))

    def _identify(self, call: Call) -> EventId:
        if call.key is None:
            return self._author.new_id()
        # A user's key is one key on all of its sessions, so that a call repeated after a reconnect is still a repeat.
        owner = f"user:{call.user}" if call.user is not None else call.actor
        return keyed_id(self._hub, owner, invocation.check_key(call.key))

    def _subject(self, route: Route) -> str:
        match route.kind:
            case "all":
                return self._all
            case "group":
                return self._subjects.group(route.name)
            case "inbox":
                return self._subjects.inbox(route.name)
            case "user":
                return self._subjects.user(route.name)
            case _:
                return self._many

    def _position(self, stored: Stored) -> str:
        return f"{self._position_prefix}{stored.sequence}"

    async def _submit_to_client(
        self, route: Route, event: Requested, written: NewEvent, answer: Answer, *, keyed: bool
    ) -> None:
        """Append only for a session that is there; then judge by its state at the call's own position."""
        try:
            there = await self._session(route, None)
            gone = there.state.status in {"none", "closed"}
            before = await self._first_use(route, written.id, there) if gone and keyed else None
        except HublogError as error:
            answer(error)
            return
        except Exception as exc:  # noqa: BLE001  a defect; without an answer the caller would wait for ever
            answer(_defect(exc))
            return
        if before is not None:
            self._go_on(self._judge(route, event, written.id, before, keyed=True), answer)
            return
        if gone:
            answer(Outcome(written.id, None, "not_found"))
            return

        def done(stored: Stored | HublogError) -> None:
            if isinstance(stored, HublogError):
                answer(stored)
            else:
                self._go_on(self._judge(route, event, written.id, stored, keyed=keyed), answer)

        self._log.submit(self._subject(route), written, done)

    async def _judge(
        self, route: Route, event: Requested, event_id: EventId, stored: Stored, *, keyed: bool
    ) -> Outcome:
        if keyed and stored.duplicate:
            await self._refuse_other_call(event, stored)
        there = await self._session(route, stored.sequence)
        match there.state.status:
            case "active":
                return Outcome(event_id, self._position(stored), "sent")
            case "detached":
                return Outcome(event_id, self._position(stored), "queued")
            case _:
                # Closed between the look and the write: the event is in the log and reaches nobody.
                return Outcome(event_id, None, "not_found")

    async def _session(self, route: Route, at: int | None) -> KnownSession:
        """The session that a route names: as it is now, or as it was when sequence ``at`` was written."""
        if route.kind == "none":
            return Known(session.INITIAL, 0)
        subject = self._subjects.session(route.name)
        last = await self._log.last(subject)
        if last is not None and at is not None and last.sequence > at:
            last = (await self._log.last_many([subject], up_to=at)).get(subject)
        return Known(codec.session_state(last), last.sequence if last is not None else 0)

    async def _first_use(self, route: Route, event_id: EventId, closed: KnownSession) -> Stored | None:
        """Where a call with this id was written while the session was open: a key's repeat answers as it did."""
        first = max(closed.state.opened, closed.sequence - REPEAT_SEQUENCES_MAX)
        if route.kind == "none" or closed.state.status == "none":
            return None
        async for found in self._log.read(self._subject(route), first, closed.sequence):
            if codec.envelope(found.payload).id == event_id:
                return Stored(found.sequence, duplicate=True)
        return None

    async def _accepted_before(self, event_id: EventId, event: Requested, stored: Stored) -> Outcome:
        await self._refuse_other_call(event, stored)
        return Outcome(event_id, self._position(stored), "accepted")

    async def _refuse_other_call(self, event: Requested, stored: Stored) -> None:
        """A key's second use must be the same call. Raises: KeyReused."""
        async for found in self._log.read(f"ev.{self._subjects.partition}.>", stored.sequence, stored.sequence):
            _, first = codec.decode(found.payload)
            if not isinstance(first, Requested) or not invocation.same_call(first, event):
                raise KeyReused("the key already names another call")

    def _go_on(self, judging: Awaitable[Outcome], answer: Answer) -> None:
        """Answer with what ``judging`` finds, later: an acknowledgement cannot wait for it."""

        async def run() -> None:
            outcome: Outcome | HublogError
            try:
                outcome = await judging
            except Unavailable as error:
                # It is written, so this must not read as if it were not.
                outcome = OutcomeUnknown(f"the call is written, what became of it could not be told: {error.message}")
            except HublogError as error:
                outcome = error
            except Exception as exc:  # noqa: BLE001  as above
                outcome = _defect(exc)
            answer(outcome)

        task = asyncio.ensure_future(run())
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)


def arguments_of(values: Sequence[Any]) -> bytes:
    """Python values as the arguments of a call: one JSON array. Raises: InvalidArguments."""
    try:
        return msgspec.json.encode(values)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidArguments(f"the arguments cannot be written as JSON: {exc}") from exc


def _defect(exc: Exception) -> Internal:
    _log.error("router.failed", exc_info=exc)
    return Internal(f"the outcome could not be told: {type(exc).__name__}")
