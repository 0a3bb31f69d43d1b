"""The session: one logical peer of a hub, as a pure state machine (DESIGN: sessions).

    none ─open─► active ─detach─► detached ─attach─► active …
                   └───────close────┴──► closed(reason)

Owns what may happen to a session and what results. It knows no clock, id source, connection or log: time and ids come
in with the command. Every event carries, in ``after``, the whole state that results, so that the last event *is* the
state; what only the log can say (its own sequence, the broker's time) is left ``OPEN`` there and filled by
:func:`settle` when the event is read. The audit checks that folding :func:`evolve` gives the same.
"""

from typing import Literal, TypeAlias

import msgspec

from events.errors import NotResumable, SessionClosed, SessionExists, SessionNotFound, TokenStale, TooManyGroups

GROUPS_MAX = 128
GROUP_NAMES_BYTES_MAX = 8 * 1024
OPEN = 0  # "my own sequence", or "my own time stamp": known only to who reads the event back

Status = Literal["none", "active", "detached", "closed"]
Closing = Literal[
    "client",
    "kicked",
    "superseded",
    "expired",
    "unauthorised",
    "transport_error",
    "timeout",
    "node_lost",
    "slow_consumer",
    "hole",
    "shutdown",
]
Detaching = Literal["transport_error", "timeout", "node_lost", "slow_consumer", "hole", "draining"]


class Rewind(msgspec.Struct, frozen=True):
    """Messages beyond ``sequence`` may be missing for whoever resumes with a token up to ``generation``."""

    sequence: int
    generation: int


class State(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Everything that is true of a session after one of its events.

    ``opened`` and the values of ``groups`` are sequences; ``detached_since_us`` is the broker's time. ``metadata``
    is the JSON object that the client gave, or ``null``.
    """

    status: Status = "none"
    resumable: bool = False
    user: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    node: str = ""
    incarnation: str = ""
    connection: str = ""
    generation: int = 0
    opened: int = OPEN
    detached_since_us: int | None = None
    groups: dict[str, int] = {}
    reason: str | None = None
    rewind: Rewind | None = None


INITIAL = State()


class _Fact(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    after: State = INITIAL


class Opened(_Fact, frozen=True, kw_only=True):
    """The session exists, and its first connection is attached."""

    user: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    node: str
    incarnation: str
    connection: str
    resumable: bool = False


class Attached(_Fact, frozen=True, kw_only=True):
    """A resume: another connection took the session over. ``generation`` is that of the token it hands out."""

    node: str
    incarnation: str
    connection: str
    generation: int


class Detached(_Fact, frozen=True, kw_only=True):
    """The connection ended; the session waits. ``rewind``: resume at or before this sequence, messages were missed."""

    connection: str
    reason: Detaching
    last_seen_us: int
    rewind: int | None = None


class Joined(_Fact, frozen=True, kw_only=True):
    groups: tuple[str, ...]


class Left(_Fact, frozen=True, kw_only=True):
    """``groups`` maps each group left to the join sequence that ends here."""

    groups: dict[str, int]


class Carried(_Fact, frozen=True, kw_only=True):
    """Nothing changed; the state was written again before the log forgets it."""


class Closed(_Fact, frozen=True, kw_only=True):
    """The end. ``groups`` as in :class:`Left`: closing leaves every group."""

    reason: Closing
    connection: str
    groups: dict[str, int] = {}


Event: TypeAlias = Opened | Attached | Detached | Joined | Left | Carried | Closed


class Open(msgspec.Struct, frozen=True):
    node: str
    incarnation: str
    connection: str
    user: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    resumable: bool = False


class Attach(msgspec.Struct, frozen=True):
    """Resume with a token of ``generation``; ``now_us`` and ``ttl_us`` tell an overdue session from a living one."""

    node: str
    incarnation: str
    connection: str
    generation: int
    now_us: int
    ttl_us: int


class Detach(msgspec.Struct, frozen=True):
    connection: str
    reason: Detaching
    last_seen_us: int
    rewind: int | None = None


class Join(msgspec.Struct, frozen=True):
    groups: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True):
    groups: tuple[str, ...]


class LeaveAll(msgspec.Struct, frozen=True):
    pass


class Carry(msgspec.Struct, frozen=True):
    pass


class Close(msgspec.Struct, frozen=True):
    """End the session; with ``connection``, only while that connection holds it."""

    reason: Closing
    connection: str | None = None


Command: TypeAlias = Open | Attach | Detach | Join | Leave | LeaveAll | Carry | Close


def decide(state: State, command: Command) -> tuple[Event, ...]:
    """What happens if ``command`` meets ``state``: events with their ``after``, or ``()`` when it is already so.

    An overdue session answers :class:`Attach` with ``Closed(expired)``: the caller appends it and refuses.

    Raises: SessionExists, SessionNotFound, SessionClosed, NotResumable, TokenStale, TooManyGroups.
    """
    event = _decide(state, command)
    if event is None:
        return ()
    return (msgspec.structs.replace(event, after=evolve(state, event, OPEN, OPEN)),)


def evolve(state: State, event: Event, sequence: int, stored_at_us: int) -> State:
    """The state after ``event``, stored at ``sequence`` and ``stored_at_us``. Total: the log is never argued with."""
    replace = msgspec.structs.replace
    match event:
        case Opened():
            return State(
                status="active",
                resumable=event.resumable,
                user=event.user,
                metadata=event.metadata,
                node=event.node,
                incarnation=event.incarnation,
                connection=event.connection,
                generation=1,
                opened=sequence,
            )
        case Attached():
            return replace(
                state,
                status="active",
                node=event.node,
                incarnation=event.incarnation,
                connection=event.connection,
                generation=event.generation,
                detached_since_us=None,
            )
        case Detached():
            rewind = state.rewind
            if event.rewind is not None:
                rewind = Rewind(event.rewind, state.generation)
            return replace(state, status="detached", detached_since_us=stored_at_us, rewind=rewind)
        case Joined():
            return replace(state, groups={**state.groups, **dict.fromkeys(event.groups, sequence)})
        case Left():
            return replace(state, groups={name: at for name, at in state.groups.items() if name not in event.groups})
        case Closed():
            return replace(state, status="closed", groups={}, reason=event.reason, detached_since_us=None)
        case Carried():
            return state


def resume_from(state: State, generation: int, cursor: int) -> int:
    """Where a resume with a token of ``generation`` begins: at its cursor, or where messages may be missing.

    A newer token shows that the client had the answer of a resume that began there already.
    """
    if state.rewind is not None and generation <= state.rewind.generation:
        return min(cursor, state.rewind.sequence)
    return cursor


def settle(event: Event, sequence: int, stored_at_us: int) -> State:
    """The state that a stored event carries, with what only the log knew filled in."""
    after = event.after
    own_time = isinstance(event, Detached)
    if after.opened != OPEN and OPEN not in after.groups.values() and not own_time:
        return after
    return msgspec.structs.replace(
        after,
        opened=after.opened if after.opened != OPEN else sequence,
        groups={name: at if at != OPEN else sequence for name, at in after.groups.items()},
        detached_since_us=stored_at_us if own_time else after.detached_since_us,
    )


def _decide(state: State, command: Command) -> Event | None:
    if isinstance(command, Open):
        if state.status != "none":
            raise SessionExists("this session id is taken")
        return Opened(
            user=command.user,
            metadata=command.metadata,
            node=command.node,
            incarnation=command.incarnation,
            connection=command.connection,
            resumable=command.resumable,
        )
    if state.status == "none":
        raise SessionNotFound("there is no such session")
    if state.status == "closed":
        _refuse_closed(state, command)
        return None
    match command:
        case Attach():
            return _attach(state, command)
        case Detach():
            if state.status == "detached" or state.connection != command.connection:
                return None
            if not state.resumable:
                raise NotResumable("a session that is not resumable is closed, not detached")
            return Detached(
                connection=command.connection,
                reason=command.reason,
                last_seen_us=command.last_seen_us,
                rewind=command.rewind,
            )
        case Join():
            return _join(state, command)
        case Leave():
            return _leave(state, command.groups)
        case LeaveAll():
            return _leave(state, tuple(state.groups))
        case Carry():
            return Carried()
        case Close():
            if command.connection is not None and state.connection != command.connection:
                return None
            return Closed(reason=command.reason, connection=state.connection, groups=state.groups)


def _refuse_closed(state: State, command: Command) -> None:
    """Closing, detaching and leaving what is closed is already done; anything else comes too late."""
    if not isinstance(command, Close | Detach | Leave | LeaveAll | Carry):
        raise SessionClosed(f"the session was closed: {state.reason}")


def _attach(state: State, command: Attach) -> Event | None:
    if not state.resumable:
        raise NotResumable("the session was opened without ?resumable")
    since = state.detached_since_us
    if since is not None and command.now_us - since > command.ttl_us:
        return Closed(reason="expired", connection=state.connection, groups=state.groups)
    if command.generation == state.generation:
        generation = state.generation + 1
    elif command.generation == state.generation - 1 and command.generation >= 1:
        # The answer that carried the newer token was evidently lost: hand out the same one again.
        generation = state.generation
    else:
        raise TokenStale(f"the token is of generation {command.generation}, the session of {state.generation}")
    if state.status == "active" and state.connection == command.connection:
        return None
    return Attached(
        node=command.node, incarnation=command.incarnation, connection=command.connection, generation=generation
    )


def _join(state: State, command: Join) -> Event | None:
    new = tuple(name for name in dict.fromkeys(command.groups) if name not in state.groups)
    if not new:
        return None
    names = (*state.groups, *new)
    size = sum(len(name.encode()) for name in names)
    if len(names) > GROUPS_MAX or size > GROUP_NAMES_BYTES_MAX:
        raise TooManyGroups(f"the session would hold {len(names)} groups and {size} bytes of names")
    return Joined(groups=new)


def _leave(state: State, names: tuple[str, ...]) -> Event | None:
    held = {name: state.groups[name] for name in dict.fromkeys(names) if name in state.groups}
    return Left(groups=held) if held else None
