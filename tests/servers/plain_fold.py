"""What the read models must say, worked out the plain way: one event after another, from what each says happened.

Deliberately independent of the product: it imports neither ``projections`` nor ``events``, decodes the payloads itself,
never looks at the state that session events carry, and keeps everything in dictionaries.
"""

import base64
import re
from typing import Any, Protocol

import msgspec

SESSION = re.compile(r"ev\.\d+\.([a-z0-9-]+)\.s\.([^.]+)\.log")
CALLED = re.compile(r"ev\.\d+\.([a-z0-9-]+)\.(?:all|many|[gu]\.[^.]+|s\.[^.]+\.inbox)")
ANSWERED = re.compile(r"ev\.\d+\.([a-z0-9-]+)\.call\.\d+")
NODE = re.compile(r"ev\.0\._sys\.node\.[^.]+")
HUB = re.compile(r"ev\.\d+\.([a-z0-9-]+)\.")
KNOWN = {
    SESSION: {"opened", "attached", "detached", "joined", "left", "carried", "closed"},
    CALLED: {"requested"},
    ANSWERED: {"answered", "cancelled", "expired"},
    NODE: {"started", "draining", "lost", "delivered"},
}


class Event(Protocol):
    @property
    def subject(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def stored_at_us(self) -> int: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def headers(self) -> bytes: ...


class PlainFold:
    """Dictionaries by primary key, to be compared with ``tests.servers.read_models.dump``."""

    def __init__(self) -> None:
        self.event_log: dict[int, tuple[str, bytes, bytes, int]] = {}
        self.sessions: dict[tuple[str, str], dict[str, Any]] = {}
        self.memberships: dict[tuple[str, str, str, int], tuple[int | None, int | None, int | None]] = {}
        self.invocations: dict[tuple[str, str], dict[str, Any]] = {}
        self.nodes: dict[tuple[str, str], dict[str, Any]] = {}
        self.hub_last: dict[str, int] = {}
        self.parked: dict[int, str] = {}
        self._parked_subjects: set[str] = set()

    def take(self, event: Event) -> None:
        self.event_log[event.sequence] = (event.subject, event.headers, event.payload, event.stored_at_us)
        if found := HUB.match(event.subject):
            self.hub_last[found[1]] = event.sequence
        if event.subject not in self._parked_subjects and not self._apply(event):
            self._parked_subjects.add(event.subject)
        if event.subject in self._parked_subjects:
            self.parked[event.sequence] = event.subject

    @property
    def groups(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Members, and those of them that are attached."""
        counts: dict[tuple[str, str], tuple[int, int]] = {}
        for (hub, session, group, _), (_, left, _) in self.memberships.items():
            if left is None:
                size, attached = counts.get((hub, group), (0, 0))
                counts[hub, group] = (size + 1, attached + (self.sessions[hub, session]["state"] == "active"))
        return counts

    @property
    def hubs(self) -> dict[str, tuple[int, int, int, int]]:
        states = [(hub, row["state"]) for (hub, _), row in self.sessions.items()]
        return {
            hub: (last, *(states.count((hub, state)) for state in ("active", "detached", "closed")))
            for hub, last in self.hub_last.items()
        }

    def tables(self) -> dict[str, object]:
        names = "event_log sessions memberships groups hubs invocations nodes parked"
        return {name: getattr(self, name) for name in names.split()}

    def _apply(self, event: Event) -> bool:
        """False for what cannot be read."""
        matched = next(((kind, found) for kind in KNOWN if (found := kind.fullmatch(event.subject))), None)
        try:
            event.payload.decode()
            envelope = msgspec.json.decode(event.payload, type=dict[str, msgspec.Raw])
            data = msgspec.json.decode(envelope["data"], type=dict[str, msgspec.Raw])
            actor, ident = text(envelope["actor"]), text(envelope["id"])
            tag = re.fullmatch(r"[a-z]+\.([a-z]+)\.v1", text(envelope["type"]))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            return False
        if matched is None or tag is None or tag[1] not in KNOWN[matched[0]]:
            return False
        kind, found = matched
        if kind is SESSION:
            self._session((found[1], name(found[2])), tag[1], data, event)
        elif kind is CALLED:
            self._called(found[1], ident, actor, data, event)
        elif kind is ANSWERED:
            call = self.invocations[found[1], text(data["invocation"])]
            call.update(status=tag[1], status_seq=event.sequence)
        elif tag[1] != "delivered":
            self._node(tag[1], data, event)
        return True

    def _session(self, key: tuple[str, str], what: str, data: dict[str, msgspec.Raw], event: Event) -> None:
        row = self.sessions.setdefault(key, dict.fromkeys(("reason", "detached_at", "last_seen_at", "closed_at")))
        row["seq"] = event.sequence
        at = event.stored_at_us
        if what in {"opened", "attached"}:
            row.update(state="active", detached_at=None, last_seen_at=None, generation=value(data, "generation", 1))
            row.update({field: value(data, field) for field in ("node", "incarnation", "connection")})
        if what == "opened":
            row.update(opened_seq=event.sequence, opened_at=at, groups=[])
            row.update(user_id=value(data, "user"), resumable=value(data, "resumable", False))
            row["metadata"] = bytes(data.get("metadata", msgspec.Raw(b"null")))
        elif what == "detached":
            row.update(state="detached", detached_at=at, last_seen_at=value(data, "lastSeenUs"))
        elif what == "joined":
            for group in value(data, "groups"):
                self.memberships[*key, group, event.sequence] = (at, None, None)
        elif what in {"left", "closed"}:
            for group, joined in value(data, "groups", {}).items():
                self.memberships[*key, group, joined] = (self.memberships[*key, group, joined][0], event.sequence, at)
        if what == "closed":
            row.update(state="closed", reason=value(data, "reason"), detached_at=None, closed_at=at)
        row["groups"] = sorted(
            {group for (*who, group, _), (_, left, _) in self.memberships.items() if tuple(who) == key and left is None}
        )

    def _called(self, hub: str, ident: str, actor: str, data: dict[str, msgspec.Raw], event: Event) -> None:
        self.invocations.setdefault(
            (hub, ident),
            {
                "seq": event.sequence,
                "target": value(data, "target"),
                "arguments": bytes(data.get("arguments", msgspec.Raw(b"[]"))),
                "selector": value(data, "selector"),
                "caller": value(data, "caller") or actor,
                "ttl_ms": value(data, "ttlMs"),
                "requested_at": event.stored_at_us,
                "status": "requested",
                "status_seq": event.sequence,
            },
        )

    def _node(self, what: str, data: dict[str, msgspec.Raw], event: Event) -> None:
        key = (value(data, "node"), value(data, "incarnation"))
        row = self.nodes.setdefault(key, dict.fromkeys(("version", "url", "started_seq", "started_at")))
        row.update(state=what, seq=event.sequence, changed_at=event.stored_at_us)
        if what == "started":
            row.update(version=value(data, "version"), url=value(data, "url"))
            row.update(started_seq=event.sequence, started_at=event.stored_at_us)


def value(data: dict[str, msgspec.Raw], field: str, default: Any = None) -> Any:
    return msgspec.json.decode(data[field]) if field in data else default


def text(raw: msgspec.Raw) -> str:
    return msgspec.json.decode(raw, type=str)


def name(token: str) -> str:
    """The name in a token of a subject."""
    if not token.startswith("~"):
        return token
    return base64.urlsafe_b64decode(token[1:] + "=" * (-len(token[1:]) % 4)).decode()
