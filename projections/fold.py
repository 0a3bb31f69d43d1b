"""A batch of the log, as rows: pure, and the same however the log is cut into batches.

Session events carry the whole state, so the last one of a batch is the row; memberships come from what each event adds
and ends, invocations and nodes from their own events. Nothing is looked up: the rows say what is known from here, and
``write`` merges them so that a batch written twice changes nothing. Knows no SQL.
"""

from collections.abc import Container, Iterable
from functools import lru_cache
from typing import TypeAlias

import msgspec

from events import codec, invocation, node, session
from events.envelope import Envelope, Recorded
from events.errors import HublogError, UnreadableEvent
from events.ids import NAME_BYTES_MAX, parse_hub
from events.subjects import Subject, parse

TYPE_CHARACTERS_MAX = 64
GENERATION_MAX = 2**31 - 1
SYSTEM_HUB = "_sys"
BEHIND = "subject_parked"  # the code of an event that waits for an earlier one of its subject

SessionKey: TypeAlias = tuple[str, str]
StayKey: TypeAlias = tuple[str, str, str, int]


class LogRow(msgspec.Struct, gc=False):
    """An event verbatim, with what could be read of it."""

    event: Recorded
    hub: str | None
    type: str | None


class SessionRow(msgspec.Struct):
    """``state`` is settled. A time that is None is not known from this batch.

    ``seen``: ``last_seen_us`` is known, also that there is none, because the session is or was attached since.
    """

    state: session.State
    seq: int
    opened_at_us: int | None = None
    last_seen_us: int | None = None
    closed_at_us: int | None = None
    seen: bool = False


class Stay(msgspec.Struct, gc=False):
    """What this batch knows of one stay in a group."""

    joined_at_us: int | None = None
    left_seq: int | None = None
    left_at_us: int | None = None


class InvocationRow(msgspec.Struct):
    hub: str
    invocation_id: str
    seq: int
    target: str
    arguments: bytes
    selector: bytes
    caller: str
    ttl_ms: int | None
    requested_at_us: int


class NodeRow(msgspec.Struct):
    state: str
    seq: int
    changed_at_us: int
    version: str | None = None
    url: str | None = None
    started_seq: int | None = None
    started_at_us: int | None = None


class ParkedRow(msgspec.Struct, gc=False):
    seq: int
    subject: str
    code: str
    reason: str


class Rows(msgspec.Struct):
    """Everything that a batch says. ``outcomes``: (hub, invocation) → (status, sequence)."""

    log: list[LogRow] = []
    sessions: dict[SessionKey, SessionRow] = {}
    stays: dict[StayKey, Stay] = {}
    invocations: list[InvocationRow] = []
    outcomes: dict[SessionKey, tuple[str, int]] = {}
    nodes: dict[tuple[str, str], NodeRow] = {}
    hubs: dict[str, int] = {}
    parked: list[ParkedRow] = []


def fold(events: Iterable[Recorded], parked: Container[str], poison: Container[int] = ()) -> Rows:
    """The rows of a batch. Hot path.

    ``parked``: subjects that already wait for a repair. ``poison``: sequences that Postgres refused; they are parked as
    if they could not be read.
    """
    rows = Rows()
    held: set[str] = set()
    for event in events:
        place, written, problem = _read(event)
        if place is not None and place.hub != SYSTEM_HUB:
            rows.hubs[place.hub] = event.sequence
        rows.log.append(
            LogRow(event, None if place is None else place.hub, None if written is None else _short(written.type))
        )
        if event.subject in parked or event.subject in held:
            _park(rows, event, BEHIND, "an earlier event of this subject is parked")
            continue
        if problem is None and event.sequence in poison:
            problem = UnreadableEvent("Postgres refuses what it says")
        if problem is None:
            assert place is not None
            assert written is not None
            try:
                _apply(rows, place, written, event)
                continue
            except HublogError as exc:
                problem = exc
        held.add(event.subject)
        _park(rows, event, problem.code, problem.message)
    return rows


def _read(event: Recorded) -> tuple[Subject | None, Envelope | None, HublogError | None]:
    """The subject and the envelope, as far as they can be read, and the first problem with either."""
    place: Subject | None = None
    written: Envelope | None = None
    problem: HublogError | None = None
    try:
        place = _place(event.subject)
    except (ValueError, HublogError) as exc:
        problem = UnreadableEvent(f"the subject is none of ours: {exc}")
    try:
        written = codec.envelope(event.payload)
        if not event.payload.isascii():
            event.payload.decode()  # raw parts may hold anything, and would break the answers they are put into
    except HublogError as exc:
        problem = problem or exc
    except UnicodeDecodeError as exc:
        problem = problem or UnreadableEvent(f"the payload is not UTF-8 at byte {exc.start}")
    return place, written, problem


@lru_cache(maxsize=16_384)
def _place(subject: str) -> Subject:
    place = parse(subject)
    if place.hub != SYSTEM_HUB:
        parse_hub(place.hub)
    return place


def _short(type_: str) -> str | None:
    return type_ if len(type_) <= TYPE_CHARACTERS_MAX and "\0" not in type_ else None


def _park(rows: Rows, event: Recorded, code: str, reason: str) -> None:
    rows.parked.append(ParkedRow(event.sequence, event.subject, code, reason))


def _apply(rows: Rows, place: Subject, written: Envelope, event: Recorded) -> None:
    """Raises: UpgradeRequired, UnreadableEvent; then ``rows`` is as before."""
    said = codec.event_of(written)
    match place.kind:
        case "session":
            if isinstance(said, session.Event):
                return _session(rows, place, said, event)
        case "inbox" | "group" | "user" | "all" | "many":
            if isinstance(said, invocation.Requested):
                return _requested(rows, place, written, said, event)
        case "call":
            if isinstance(said, invocation.Answered | invocation.Cancelled | invocation.Expired):
                return _outcome(rows, place, said, event)
        case "node":
            if isinstance(said, node.Event):
                return _node(rows, said, event)
        case "canary":
            if isinstance(said, node.Canary):
                return None  # to have come this far is all that it is for
    raise UnreadableEvent(f"{written.type[:TYPE_CHARACTERS_MAX]} does not belong on a subject of kind {place.kind}")


def _session(rows: Rows, place: Subject, said: session.Event, event: Recorded) -> None:
    assert place.name is not None
    seq, at_us = event.sequence, event.stored_at_us
    state = session.settle(said, seq, at_us)
    if state.status == "none":
        raise UnreadableEvent("the event carries no state")
    if not 0 <= state.generation <= GENERATION_MAX:
        raise UnreadableEvent(f"{state.generation} is no generation")
    _check_names(place.name, state.user, state.node, state.incarnation, state.connection, *state.groups)
    key = (place.hub, place.name)
    row = rows.sessions.get(key)
    if row is None:
        row = rows.sessions[key] = SessionRow(state, seq)
    row.state, row.seq = state, seq
    match said:
        case session.Opened():
            row.opened_at_us, row.seen = at_us, True
        case session.Attached():
            row.last_seen_us, row.seen = None, True
        case session.Joined():
            for group in said.groups:
                rows.stays[*key, group, seq] = Stay(joined_at_us=at_us)
        case session.Left():
            _leave(rows, key, said.groups, event)
        case session.Detached():
            row.last_seen_us, row.seen = said.last_seen_us, True
        case session.Closed():
            _leave(rows, key, said.groups, event)
            row.closed_at_us = at_us
        case session.Carried():
            # What the log has forgotten may be all that there is of a stay.
            for group, joined in state.groups.items():
                rows.stays.setdefault((*key, group, joined), Stay())


def _leave(rows: Rows, key: SessionKey, groups: dict[str, int], event: Recorded) -> None:
    for group, joined in groups.items():
        stay = rows.stays.setdefault((*key, group, joined), Stay())
        stay.left_seq, stay.left_at_us = event.sequence, event.stored_at_us


def _requested(rows: Rows, place: Subject, written: Envelope, said: invocation.Requested, event: Recorded) -> None:
    _check_names(written.id, said.target, said.caller, written.actor)
    rows.invocations.append(
        InvocationRow(
            hub=place.hub,
            invocation_id=written.id,
            seq=event.sequence,
            target=said.target,
            arguments=bytes(said.arguments),
            selector=msgspec.json.encode(said.selector),
            caller=said.caller or written.actor,
            ttl_ms=said.ttl_ms,
            requested_at_us=event.stored_at_us,
        )
    )


def _outcome(
    rows: Rows,
    place: Subject,
    said: invocation.Answered | invocation.Cancelled | invocation.Expired,
    event: Recorded,
) -> None:
    _check_names(said.invocation)
    status = {invocation.Answered: "answered", invocation.Cancelled: "cancelled", invocation.Expired: "expired"}
    rows.outcomes[place.hub, said.invocation] = (status[type(said)], event.sequence)


def _node(rows: Rows, said: node.Event, event: Recorded) -> None:
    if isinstance(said, node.Delivered | node.Canary):
        return  # how far a node has written is no fact about the node
    _check_names(said.node, said.incarnation)
    seq, at_us = event.sequence, event.stored_at_us
    key = (said.node, said.incarnation)
    match said:
        case node.Started():
            rows.nodes[key] = NodeRow("started", seq, at_us, said.version, said.url, seq, at_us)
        case node.Draining() | node.Lost():
            row = rows.nodes.setdefault(key, NodeRow("", seq, at_us))
            row.state = "draining" if isinstance(said, node.Draining) else "lost"
            row.seq, row.changed_at_us = seq, at_us


def _check_names(*names: str | None) -> None:
    """What Postgres would refuse must not depend on which batch it comes in. Raises: UnreadableEvent."""
    for name in names:
        if name is not None and (len(name) > NAME_BYTES_MAX or "\0" in name):
            raise UnreadableEvent(f"{name[:32]!r} of {len(name)} characters is no name")
