"""True histories for the checker of ``lab.chaos``, and the ways to make them false.

``truth()`` plays a small hub whose service makes no mistake: sessions, a resume, a take-over, a user with several
sessions. Each mutation takes evidence (of this, or of a real run) and plants one fault of the service in it.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from lab.chaos.history import (
    Began,
    Command,
    Delivered,
    Dialled,
    Ended,
    Evidence,
    Goodbye,
    Greeted,
    Invoke,
    LogEvent,
    Marker,
    Ok,
    ReadPage,
    Record,
    Resume,
    Settled,
)

EPOCH = "k7qd.0"


def at(sequence: int) -> str:
    return f"{EPOCH}-{sequence}"


class Truth:
    """The hub: what happens is written to the log, delivered, and told, all at once and without a mistake."""

    def __init__(self) -> None:
        self.history: list[Record] = [Began(seed=0, hub="h", command="", at="")]
        self.log: list[LogEvent] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.conn_of: dict[str, int] = {}
        self.cursors: dict[str, int] = {}
        self.kept: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.sequence = 0
        self.conns = self.calls = self.messages = 0

    def append(self, subject: str, kind: str, data: dict[str, Any]) -> str:
        self.sequence += 1
        raw = msgspec.Raw(json.dumps(data).encode())
        self.log.append(
            LogEvent(f"e{self.sequence}", f"{kind}.v1", "", "", at(self.sequence), f"ev.0.h.{subject}", raw)
        )
        return at(self.sequence)

    def change(self, session: str, kind: str, data: dict[str, Any], **after: Any) -> str:
        state = self.states[session] = {**self.states.get(session, {}), **after}
        position = self.append(f"s.{session}.log", f"session.{kind}", {**data, "after": state})
        state["opened"] = state.get("opened") or self.sequence
        state["groups"] = {group: joined or self.sequence for group, joined in state["groups"].items()}
        return position

    def open(self, session: str, user: str | None = None, *, resumable: bool = True, gateway: int = 0) -> None:
        conn = self.dial(session, user, resumable, gateway, None)
        where = {"node": f"n{gateway}", "incarnation": f"n{gateway}.1", "connection": f"c{conn}"}
        after = {"status": "active", "resumable": resumable, "user": user, "generation": 1, "groups": {}, **where}
        self.change(session, "opened", {"user": user, "resumable": resumable, **where}, **after)
        self.cursors[session] = self.sequence
        self.history.append(Greeted(conn=conn, session=session, cursor=at(self.sequence)))

    def dial(self, session: str, user: str | None, resumable: bool, gateway: int, cursor: str | None) -> int:
        self.conns += 1
        self.conn_of[session] = self.conns
        self.history.append(
            Dialled(
                conn=self.conns,
                connection=f"c{self.conns}",
                client=0,
                gateway=gateway,
                resumable=resumable,
                user=user,
                session=session if cursor else None,
                cursor=cursor,
            )
        )
        return self.conns

    def join(self, session: str, group: str) -> None:
        groups = {**self.states[session]["groups"], group: 0}
        position = self.change(session, "joined", {"groups": [group]}, groups=groups)
        self.calls += 1
        self.history.append(Command(call=self.calls, conn=self.conn_of[session], do="join", groups=[group]))
        self.history.append(Ok(call=self.calls, position=position, groups=sorted(groups)))

    def leave(self, session: str, group: str) -> None:
        left = {group: self.states[session]["groups"][group]}
        groups = {name: joined for name, joined in self.states[session]["groups"].items() if name != group}
        self.change(session, "left", {"groups": left}, groups=groups)

    def invoke(self, caller: str, selector: dict[str, Any], to: set[str], *, stored: bool = True) -> int:
        """``to``: whom the test's author means by it."""
        self.calls += 1
        self.messages += 1
        call, message = self.calls, self.messages
        raw = msgspec.Raw(json.dumps(selector).encode())
        self.history.append(Invoke(call=call, conn=self.conn_of[caller], message=message, selector=raw))
        if stored:
            self.store(caller, selector, message, to)
            state = self.states.get(selector.get("session", ""), {}).get("status")
            outcome = "accepted" if selector["to"] != "client" else {"active": "sent", "detached": "queued"}[str(state)]
            self.history.append(Ok(call=call, position=at(self.sequence), outcome=outcome))
        return message

    def store(self, caller: str, selector: dict[str, Any], message: int, to: set[str]) -> None:
        data = {"target": "chaos", "arguments": [message], "selector": selector, "caller": caller}
        self.append("all", "invocation.requested", data)
        for session in sorted(to):
            self.kept[session].append((self.sequence, message))
            if self.states[session]["status"] == "active":
                self.deliver(session)

    def deliver(self, session: str) -> None:
        for sequence, message in self.kept.pop(session, []):
            position = at(sequence) if self.states[session]["resumable"] else None
            self.history.append(Delivered(conn=self.conn_of[session], message=message, position=position))
            self.cursors[session] = sequence

    def detach(self, session: str, reason: str = "transport_error") -> None:
        connection = self.states[session]["connection"]
        self.history.append(Ended(conn=self.conn_of[session], why=reason))
        self.change(session, "detached", {"connection": connection, "reason": reason}, status="detached")

    def close(self, session: str) -> None:
        """As the client that leaves for good."""
        state, conn = self.states[session], self.conn_of[session]
        self.history += [Goodbye(conn=conn), Ended(conn=conn, why="closed")]
        data = {"connection": state["connection"], "reason": "client", "groups": state["groups"]}
        self.change(session, "closed", data, status="closed", groups={})

    def resume(self, session: str, gateway: int = 1) -> None:
        """Also while it is active: the old connection ends as replaced."""
        state = self.states[session]
        old, cursor = self.conn_of[session], at(self.cursors[session])
        conn = self.dial(session, state["user"], True, gateway, cursor)
        where = {"node": f"n{gateway}", "incarnation": f"n{gateway}.1", "connection": f"c{conn}"}
        generation = state["generation"] + 1
        attached = {"generation": generation, **where}
        if state["status"] == "active":
            self.history.append(Ended(conn=old, why="replaced"))
        self.change(session, "attached", attached, status="active", **attached)
        self.history.append(Greeted(conn=conn, session=session, cursor=cursor, resumed=True))
        self.deliver(session)

    def resume_by_method(self, session: str, *, early: bool = False) -> None:
        """``hub.resume`` on a fresh connection, whose own session is superseded; ``early``: its answer comes late."""
        state, cursor, fresh = self.states[session], at(self.cursors[session]), f"fresh-{self.conns}"
        self.open(fresh, state["user"], gateway=1)
        conn = self.conn_of[session] = self.conn_of[fresh]
        self.history.append(Resume(conn=conn, session=session, cursor=cursor))
        where = {name: self.states[fresh][name] for name in ("node", "incarnation", "connection")}
        attached = {"generation": state["generation"] + 1, **where}
        self.change(session, "attached", attached, status="active", **attached)
        closed = {"connection": where["connection"], "reason": "superseded"}
        self.change(fresh, "closed", closed, status="closed")
        greeted = Greeted(conn=conn, session=session, cursor=cursor, resumed=True)
        if early:
            self.deliver(session)
        self.history.append(greeted)
        self.deliver(session)

    def evidence(self) -> Evidence:
        """With a last message, and everybody who is attached alive at the end."""
        alive = {session for session, state in self.states.items() if state["status"] == "active"}
        open_ = {session for session, state in self.states.items() if state["status"] != "closed"}
        last = self.invoke(min(alive), {"to": "all"}, open_)
        self.history.append(Marker(message=last))
        for session in sorted(alive):
            self.history.append(Settled(conn=self.conn_of[session], session=session))
        return Evidence(list(self.history), list(self.log), self.pages())

    def pages(self) -> list[ReadPage]:
        position, last = at(self.sequence), {}
        for event in self.log:
            if event.type.startswith("session."):
                last[event.subject.split(".")[-2]] = event.position
        sessions: list[dict[str, object]] = [
            {
                "sessionId": session,
                "userId": state["user"],
                "state": state["status"],
                "node": state["node"],
                "groups": sorted(state["groups"]),
                "position": last[session],
            }
            for session, state in sorted(self.states.items())
        ]
        names = sorted({group for state in self.states.values() for group in state["groups"]})
        held = {name: [one for one in sorted(self.states) if name in self.states[one]["groups"]] for name in names}
        active = {session for session, state in self.states.items() if state["status"] == "active"}
        groups: list[dict[str, object]] = [
            {"group": name, "size": len(members), "attached": len(active & set(members))}
            for name, members in held.items()
        ]
        calls: list[dict[str, object]] = [
            {
                "invocationId": event.id,
                "position": event.position,
                "selector": json.loads(bytes(event.data))["selector"],
            }
            for event in reversed(self.log)
            if event.type.startswith("invocation.")
        ]
        return [
            ReadPage("sessions", position, sessions),
            ReadPage("groups", position, groups),
            ReadPage("invocations", position, calls),
            *(
                ReadPage("members", position, self._members(name, members), group=name)
                for name, members in held.items()
            ),
        ]

    def _members(self, group: str, members: list[str]) -> list[dict[str, object]]:
        return [
            {
                "sessionId": session,
                "state": self.states[session]["status"],
                "joinedPosition": at(self.states[session]["groups"][group]),
            }
            for session in members
        ]


def truth() -> Truth:
    """A hub in which everything happens that a mutation needs."""
    hub = Truth()
    for session, user in (("a", "ann"), ("b", "bob"), ("c", "ann")):
        hub.open(session, user)
    hub.open("p", "ann", resumable=False)
    for session in "abc":
        hub.join(session, "g")
    hub.invoke("a", {"to": "group", "group": "g"}, {"a", "b", "c"})
    hub.invoke("b", {"to": "user", "user": "ann"}, {"a", "c", "p"})
    hub.invoke("a", {"to": "others"}, {"b", "c", "p"})
    hub.detach("b")
    for _ in range(3):
        hub.invoke("a", {"to": "client", "session": "b"}, {"b"})
    hub.invoke("c", {"to": "groupExceptCaller", "group": "g"}, {"a", "b"})
    hub.resume("b")
    hub.invoke("b", {"to": "clients", "sessions": ["b", "c"]}, {"b", "c"})
    hub.resume("c")
    hub.leave("c", "g")
    hub.invoke("c", {"to": "groups", "groups": ["g", "none"], "except": ["a"]}, {"b"})
    hub.invoke("a", {"to": "allExcept", "sessions": ["p"]}, {"a", "b", "c"})
    return hub


# ---------------------------------------------------------------------------------------------------- mutations

Mutation = Callable[[Evidence], Evidence]


def _with(evidence: Evidence, **changed: Any) -> Evidence:
    return msgspec.structs.replace(evidence, **changed)


def _without(evidence: Evidence, *indices: int) -> Evidence:
    gone = set(indices)
    return _with(evidence, history=[one for index, one in enumerate(evidence.history) if index not in gone])


def _by_conn(evidence: Evidence) -> dict[int, list[int]]:
    """Connection → the indices of its deliveries."""
    found: dict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(evidence.history):
        if isinstance(record, Delivered):
            found[record.conn].append(index)
    return found


def _settled(evidence: Evidence) -> set[int]:
    return {record.conn for record in evidence.history if isinstance(record, Settled)}


def drop_one(evidence: Evidence) -> Evidence:
    """The first message of a connection that is alive at the end."""
    found = _by_conn(evidence)
    return _without(evidence, found[min(_settled(evidence) & found.keys())][0])


def drop_in_the_middle_after_a_reconnect(evidence: Evidence) -> Evidence:
    resumed = {one.conn for one in evidence.history if isinstance(one, Dialled) and one.cursor is not None}
    long = next(at for conn, at in _by_conn(evidence).items() if conn in resumed and len(at) >= 3)
    return _without(evidence, long[len(long) // 2])


def deliver_twice(evidence: Evidence) -> Evidence:
    index = next(iter(_by_conn(evidence).values()))[0]
    history = [*evidence.history[: index + 1], evidence.history[index], *evidence.history[index + 1 :]]
    return _with(evidence, history=history)


def swap_two(evidence: Evidence) -> Evidence:
    first, second = next(at for at in _by_conn(evidence).values() if len(at) >= 2)[:2]
    history = list(evidence.history)
    history[first], history[second] = history[second], history[first]
    return _with(evidence, history=history)


def skip_a_membership_event(evidence: Evidence) -> Evidence:
    """The log lacks it, as if it was never written, or lost."""
    index = next(index for index, event in enumerate(evidence.log) if event.type == "session.joined.v1")
    return _with(evidence, log=[*evidence.log[:index], *evidence.log[index + 1 :]])


def miss_a_membership(evidence: Evidence) -> Evidence:
    """Delivery did not see a `joined`: the session gets nothing of the group while it is in it."""
    conn, call = next(
        (delivered.conn, delivered.message)
        for delivered in evidence.history
        if isinstance(delivered, Delivered)
        and delivered.conn in _settled(evidence)
        and "group" in _selector(evidence, delivered.message)["to"]
    )
    return _without(
        evidence,
        *(
            index
            for index, one in enumerate(evidence.history)
            if isinstance(one, Delivered) and (one.conn, one.message) == (conn, call)
        ),
    )


def lose_a_user_event(evidence: Evidence) -> Evidence:
    """In the log, and delivered to nobody."""
    meant = [one.message for one in evidence.history if isinstance(one, Invoke) and b'"user"' in bytes(one.selector)]
    for message in meant:
        found = [i for i, one in enumerate(evidence.history) if isinstance(one, Delivered) and one.message == message]
        conns = {evidence.history[index].conn for index in found}  # type: ignore[union-attr]
        if conns & _settled(evidence):
            return _without(evidence, *found)
    raise LookupError("no user event reached anybody who stayed")


def lose_an_acknowledged_event(evidence: Evidence) -> Evidence:
    acknowledged = {one.position for one in evidence.history if isinstance(one, Ok)}
    index = next(
        index
        for index, event in enumerate(evidence.log)
        if event.type.startswith("invocation.") and event.position in acknowledged
    )
    return _with(evidence, log=[*evidence.log[:index], *evidence.log[index + 1 :]])


def let_a_fenced_node_append(evidence: Evidence) -> Evidence:
    """A node writes that its connection ended, although another has taken the session over: not conditional on it."""
    index, event = next((i, one) for i, one in enumerate(evidence.log) if one.type == "session.attached.v1")
    before = next(one for one in evidence.log if one.subject == event.subject)
    data, attached = json.loads(bytes(before.data)), json.loads(bytes(event.data))
    late = {"connection": data["connection"], "reason": "transport_error", "after": attached["after"]}
    log, _, sequence = event.position.rpartition("-")
    fenced = LogEvent(
        "fenced",
        "session.detached.v1",
        "",
        "",
        f"{log}-{sequence}",
        event.subject,
        msgspec.Raw(json.dumps(late).encode()),
    )
    return _with(evidence, log=[*evidence.log[: index + 1], fenced, *evidence.log[index + 1 :]])


def lose_a_checkpoint(evidence: Evidence) -> Evidence:
    """The read model says that it reflects the whole log, and lacks the last event that changed it."""
    pages = [
        msgspec.structs.replace(page, items=page.items[1:])
        if page.kind == "invocations" and page.after is None
        else page
        for page in evidence.pages
    ]
    return _with(evidence, pages=pages)


def keep_a_ghost(evidence: Evidence) -> Evidence:
    """Somebody who left is still a member."""
    pages = list(evidence.pages)
    index, page = next((i, one) for i, one in enumerate(pages) if one.kind == "members" and one.items)
    ghost = {**page.items[0], "sessionId": "0" * 22}
    pages[index] = msgspec.structs.replace(page, items=[ghost, *page.items])
    return _with(evidence, pages=pages)


def store_twice(evidence: Evidence) -> Evidence:
    """A retry was taken for a new call."""
    last = next(one for one in reversed(evidence.log) if one.type.startswith("invocation."))
    log, _, sequence = evidence.log[-1].position.rpartition("-")
    again = msgspec.structs.replace(last, id="again", position=f"{log}-{int(sequence) + 1}")
    return _with(evidence, log=[*evidence.log, again])


def end_the_living(evidence: Evidence) -> Evidence:
    """The log says of somebody who is alive that the node was lost."""
    settled = next(one for one in evidence.history if isinstance(one, Settled))
    last = next(one for one in reversed(evidence.log) if one.subject.endswith(f".{settled.session}.log"))
    after = json.loads(bytes(last.data))["after"]
    log, _, sequence = evidence.log[-1].position.rpartition("-")
    data = {"connection": after["connection"], "reason": "node_lost", "after": {**after, "status": "detached"}}
    raw = msgspec.Raw(json.dumps(data).encode())
    ended = LogEvent("ended", "session.detached.v1", "", "", f"{log}-{int(sequence) + 1}", last.subject, raw)
    return _with(evidence, log=[*evidence.log, ended])


def _selector(evidence: Evidence, message: int) -> dict[str, Any]:
    asked = next(one for one in evidence.history if isinstance(one, Invoke) and one.message == message)
    return dict(json.loads(bytes(asked.selector)))


MUTATIONS: dict[Mutation, str] = {
    drop_one: "lost",
    drop_in_the_middle_after_a_reconnect: "lost",
    deliver_twice: "duplicated",
    swap_two: "out_of_order",
    skip_a_membership_event: "not_meant",
    miss_a_membership: "lost",
    lose_a_user_event: "lost",
    lose_an_acknowledged_event: "acknowledged_missing",
    let_a_fenced_node_append: "fenced_append",
    lose_a_checkpoint: "read_model",
    keep_a_ghost: "ghost_member",
    store_twice: "stored_twice",
    end_the_living: "false_end",
}
"""Each with the kind of violation that must be reported, whatever else is."""
