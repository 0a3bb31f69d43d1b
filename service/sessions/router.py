"""Calls on sessions: from a selector to one event on one subject.

Owns what an invocation answers its caller (``accepted``, ``sent``, ``queued``, ``not_found``) and what an idempotency
key means. Refuses to know who is connected where: no node is asked, the outcome is read from the log.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec

from events import codec, invocation, selector
from events.envelope import NewEvent
from events.errors import HublogError, Internal, KeyReused
from events.ids import EventId, HubName, Position, keyed_id
from events.invocation import Requested
from events.selector import Route, Selector
from events.subjects import HubSubjects
from service.log.author import Author
from service.log.port import EventLog, Stored

Verdict = Literal["accepted", "sent", "queued", "not_found"]


class Call(msgspec.Struct, frozen=True):
    """One invocation as somebody asks for it.

    ``arguments`` is one JSON array in UTF-8. ``caller`` is the calling session (None: not a session), ``actor`` who is
    recorded as doing it, ``user`` whose idempotency key it is. ``ttl_ms``: skipped by a resume that comes later.
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
    """What a call answers. ``position`` is None where nothing was written."""

    invocation_id: EventId
    position: str | None
    outcome: Verdict


Answer = Callable[[Outcome | HublogError], None]


class InvocationRouter(Protocol):
    """Sends calls to the sessions of one hub. One failing recipient never stops the others."""

    async def initialize(self) -> None: ...

    async def shutdown(self) -> None: ...

    def submit(self, call: Call, answer: Answer) -> Awaitable[None] | None:
        """Send a call; ``answer`` is called exactly once, on the loop, with its outcome or why it failed.

        Returns None when the call is on its way, or something to await before the next call of the same caller is
        submitted, so that calls keep their order.

        Raises: InvalidSelector, InvalidArguments, InvalidName, InvalidOption, TooManyTargets (nothing was written).
        """
        ...

    async def invoke(self, call: Call) -> Outcome:
        """:meth:`submit`, awaited. Raises what ``answer`` would be given, too."""
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
                self._go_on(self._answer_repeat(event_id, event, stored, answer), answer)
            else:
                answer(Outcome(event_id, f"{self._position_prefix}{stored.sequence}", "accepted"))

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
        return await self.invoke(Call(to, target, msgspec.json.encode(arguments), actor="system:service"))

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

    async def _submit_to_client(
        self, route: Route, event: Requested, written: NewEvent, answer: Answer, *, keyed: bool
    ) -> None:
        """Append only for a session that is there; then judge by its state at the call's own position."""
        try:
            status = await self._status(route, None)
        except HublogError as error:
            answer(error)
            return
        if status in {"none", "closed"}:
            answer(Outcome(written.id, None, "not_found"))
            return

        def done(stored: Stored | HublogError) -> None:
            if isinstance(stored, HublogError):
                answer(stored)
            else:
                self._go_on(self._judge(route, event, written.id, stored, answer, keyed=keyed), answer)

        self._log.submit(self._subject(route), written, done)

    async def _judge(
        self, route: Route, event: Requested, event_id: EventId, stored: Stored, answer: Answer, *, keyed: bool
    ) -> None:
        if keyed and stored.duplicate:
            await self._refuse_other_call(event, stored)
        match await self._status(route, stored.sequence):
            case "active":
                answer(Outcome(event_id, f"{self._position_prefix}{stored.sequence}", "sent"))
            case "detached":
                answer(Outcome(event_id, f"{self._position_prefix}{stored.sequence}", "queued"))
            case _:
                # Closed between the look and the write: the event is in the log and reaches nobody.
                answer(Outcome(event_id, None, "not_found"))

    async def _status(self, route: Route, at: int | None) -> str:
        """The status of the session that a route names: now, or as it was when sequence ``at`` was written."""
        if route.kind == "none":
            return "none"
        subject = self._subjects.session(route.name)
        last = await self._log.last(subject)
        if last is not None and at is not None and last.sequence > at:
            last = (await self._log.last_many([subject], up_to=at)).get(subject)
        return codec.session_state(last).status

    async def _answer_repeat(self, event_id: EventId, event: Requested, stored: Stored, answer: Answer) -> None:
        await self._refuse_other_call(event, stored)
        answer(Outcome(event_id, f"{self._position_prefix}{stored.sequence}", "accepted"))

    async def _refuse_other_call(self, event: Requested, stored: Stored) -> None:
        """A key's second use must be the same call. Raises: KeyReused."""
        async for found in self._log.read(f"ev.{self._subjects.partition}.>", stored.sequence, stored.sequence):
            _, first = codec.decode(found.payload)
            if not isinstance(first, Requested) or not invocation.same_call(first, event):
                raise KeyReused("the key already names another call")

    def _go_on(self, judging: Awaitable[None], answer: Answer) -> None:
        async def run() -> None:
            try:
                await judging
            except HublogError as error:
                answer(error)
            except Exception as exc:
                answer(Internal(f"the outcome could not be told: {exc!r}"))
                raise

        task = asyncio.ensure_future(run())
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)
