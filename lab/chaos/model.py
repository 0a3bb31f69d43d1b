"""What the log means, told a second time: sessions, groups and audiences as a plain fold, from JSON alone.

Owns the fold and the law of what may follow what. It imports nothing of the service, on purpose: two readings of the
same log that agree are worth more than one. It knows no history of clients: ``checker`` compares the two.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from lab.chaos.history import LogEvent

Complain = Callable[[str, str, str | None, list[str]], None]
"""kind, what, session, positions."""


def place(position: str) -> tuple[str, int]:
    """(epoch and partition, sequence) of ``k7qd.0-1523``."""
    log, _, sequence = position.rpartition("-")
    return log, int(sequence)


class Holding(msgspec.Struct):
    """A connection held the session for the sequences ``since`` < … < ``until`` (None: still); ``why`` it ended."""

    connection: str
    since: int
    incarnation: str
    until: int | None = None
    why: str | None = None


class Life(msgspec.Struct):
    """One session."""

    session: str
    user: str | None
    resumable: bool
    opened: int
    status: str = "active"
    node: str = ""
    generation: int = 1
    groups: dict[str, int] = {}
    closed: int | None = None
    reason: str | None = None
    last: int = 0
    holdings: list[Holding] = []
    rewinds: list[int] = []
    groups_at: list[tuple[int, tuple[str, ...]]] = []
    """After each of its events, the groups."""
    expected: list[int] = []
    """Sequences of what it must be sent, ascending."""


class Call(msgspec.Struct):
    """An invocation in the log."""

    sequence: int
    position: str
    id: str
    message: int | None
    selector: dict[str, Any]
    caller: str | None
    audience: frozenset[str]
    states: dict[str, str] = {}
    """Of the sessions that the selector names, their state then."""


class Model:
    """The fold of a hub's log up to ``sequence``. ``complain`` is told of what cannot be true."""

    def __init__(self, complain: Complain) -> None:
        self.sequence = 0
        self.log: str | None = None
        self.lives: dict[str, Life] = {}
        self.members: dict[str, dict[str, int]] = {}
        self.calls: list[Call] = []
        self.node_lost: dict[str, int] = {}
        """Incarnation: the first sequence at which somebody was told that it is lost."""
        self.closings: list[tuple[LogEvent, str, str, str]] = []
        """(event, session, connection, reason) of everything that ended or suspended a connection's hold."""
        self._complain = complain

    def apply(self, event: LogEvent) -> None:
        """The next event of the hub, ascending by position."""
        log, sequence = place(event.position)
        if self.log is not None and (log != self.log or sequence <= self.sequence):
            self._wrong("log_illegal", f"{event.position} comes after {self.log}-{self.sequence}", None, event)
        self.log, self.sequence = log, sequence
        data: dict[str, Any] = json.loads(bytes(event.data))
        kind = event.type.rpartition(".v")[0]
        if kind == "invocation.requested":
            self._called(event, sequence, data)
        elif kind.startswith("session."):
            self._session(event, sequence, kind, data)

    def fold(self, log: list[LogEvent]) -> Iterator[None]:
        for event in log:
            self.apply(event)
            yield

    # -------------------------------------------------------------------------------------------- sessions

    def _session(self, event: LogEvent, sequence: int, kind: str, data: dict[str, Any]) -> None:
        session = event.subject.split(".")[-2]
        life = self.lives.get(session)
        if kind == "session.opened":
            if life is not None:
                self._wrong("log_illegal", "opened twice", session, event)
                return
            life = self.lives[session] = Life(
                session,
                data.get("user"),
                bool(data.get("resumable")),
                sequence,
                node=data["node"],
                holdings=[Holding(data["connection"], sequence, data["incarnation"])],
            )
        elif life is None:
            self._wrong("log_illegal", f"{kind} before it was opened", session, event)
            return
        elif life.status == "closed":
            self._wrong("log_illegal", f"{kind} after it was closed", session, event)
            return
        else:
            getattr(self, "_" + kind.partition(".")[2])(life, event, sequence, data)
        life.last = sequence
        life.groups_at.append((sequence, tuple(sorted(life.groups))))
        self._carried_state(life, event, sequence, data.get("after", {}))

    def _attached(self, life: Life, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        if not life.resumable:
            self._wrong("log_illegal", "resumed, and was not opened as resumable", life.session, event)
        if data["generation"] not in {life.generation, life.generation + 1}:
            self._wrong(
                "log_illegal", f"generation {data['generation']} follows {life.generation}", life.session, event
            )
        self._let_go(life, sequence, "replaced")
        life.status, life.node, life.generation = "active", data["node"], data["generation"]
        life.holdings.append(Holding(data["connection"], sequence, data["incarnation"]))

    def _detached(self, life: Life, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        if life.status != "active" or life.holdings[-1].connection != data["connection"]:
            self._wrong("fenced_append", "detached by a connection that did not hold it", life.session, event)
            return
        self._ending(life, event, sequence, data["reason"])
        self._let_go(life, sequence, data["reason"])
        if data.get("rewind") is not None:
            life.rewinds.append(data["rewind"])
        life.status = "detached"

    def _closed(self, life: Life, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        if life.holdings[-1].connection != data.get("connection"):
            self._wrong("fenced_append", "closed by a connection that did not hold it", life.session, event)
        if data.get("groups", {}) != life.groups:
            self._wrong("log_illegal", "closing did not leave the groups it was in", life.session, event)
        if life.status == "active":
            self._ending(life, event, sequence, data["reason"])
            self._let_go(life, sequence, data["reason"])
        else:
            self.closings.append((event, life.session, "", data["reason"]))
        for group in life.groups:
            self._leave(life, group)
        life.groups = {}
        life.status, life.closed, life.reason = "closed", sequence, data["reason"]

    def _joined(self, life: Life, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        for group in data["groups"]:
            if group in life.groups:
                self._wrong("log_illegal", f"joined {group} twice", life.session, event)
            life.groups = {**life.groups, group: sequence}
            self.members.setdefault(group, {})[life.session] = sequence

    def _left(self, life: Life, event: LogEvent, _sequence: int, data: dict[str, Any]) -> None:
        for group, joined in data["groups"].items():
            if life.groups.get(group) != joined:
                self._wrong("log_illegal", f"left {group}, joined at {joined}, and was not in it", life.session, event)
            life.groups = {name: at for name, at in life.groups.items() if name != group}
            self._leave(life, group)

    def _carried(self, life: Life, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        """Nothing changes; what it carries is compared with the rest."""

    def _leave(self, life: Life, group: str) -> None:
        held = self.members.get(group, {})
        held.pop(life.session, None)
        if not held:
            self.members.pop(group, None)

    def _ending(self, life: Life, event: LogEvent, sequence: int, reason: str) -> None:
        holding = life.holdings[-1]
        self.closings.append((event, life.session, holding.connection, reason))
        if reason == "node_lost":
            self.node_lost.setdefault(holding.incarnation, sequence)

    def _let_go(self, life: Life, sequence: int, why: str) -> None:
        holding = life.holdings[-1]
        if holding.until is None:
            holding.until, holding.why = sequence, why

    def _carried_state(self, life: Life, event: LogEvent, sequence: int, after: dict[str, Any]) -> None:
        """The state that the event carries; 0 stands for the event's own sequence."""
        carried = {group: at or sequence for group, at in after.get("groups", {}).items()}
        mine = (life.status, life.generation, life.node, life.user, life.opened, life.groups)
        said = (
            after.get("status", "none"),
            after.get("generation", 0),
            after.get("node", ""),
            after.get("user"),
            after.get("opened", 0) or sequence,
            carried,
        )
        if mine != said:
            self._wrong("carried_state", f"carries {said}, and the log up to it says {mine}", life.session, event)

    # -------------------------------------------------------------------------------------------- invocations

    def _called(self, event: LogEvent, sequence: int, data: dict[str, Any]) -> None:
        selector: dict[str, Any] = data["selector"]
        caller = data.get("caller")
        audience = frozenset(self._audience(selector, caller))
        for session in audience:
            self.lives[session].expected.append(sequence)
        arguments = data.get("arguments") or []
        message = arguments[0] if arguments and isinstance(arguments[0], int) else None
        named = [selector["session"]] if selector["to"] == "client" else []
        states = {name: self.lives[name].status for name in named if name in self.lives}
        self.calls.append(Call(sequence, event.position, event.id, message, selector, caller, audience, states))

    def _audience(self, selector: dict[str, Any], caller: str | None) -> set[str]:
        """Whom the selector means among those that are open now, attached or not."""
        living = {name for name, life in self.lives.items() if life.status != "closed"}
        mine = {caller} if caller is not None else set()
        match selector["to"]:
            case "all":
                return living
            case "others":
                return living - mine
            case "allExcept":
                return living - set(selector["sessions"])
            case "caller":
                return living & mine
            case "client":
                return living & {selector["session"]}
            case "clients":
                return living & set(selector["sessions"])
            case "user":
                return {name for name in living if self.lives[name].user == selector["user"]}
            case "group":
                return set(self.members.get(selector["group"], ())) - set(selector.get("except", ()))
            case "groups":
                return self._of_any(selector["groups"]) - set(selector.get("except", ()))
            case "groupExceptCaller":
                return set(self.members.get(selector["group"], ())) - mine
            case "groupsExceptCaller":
                return self._of_any(selector["groups"]) - mine
            case unknown:
                raise ValueError(f"a selector of kind {unknown!r}")

    def _of_any(self, groups: list[str]) -> set[str]:
        return {session for group in groups for session in self.members.get(group, ())}

    def _wrong(self, kind: str, what: str, session: str | None, event: LogEvent) -> None:
        self._complain(kind, what, session, [event.position])
