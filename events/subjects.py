"""Every subject of the log, built and parsed here and nowhere else (DESIGN: subjects).

The encoding of names is injective: a plain token spells itself, any other name is ``~`` and base64url of its UTF-8, and
``~`` is no plain character. ``ev.`` is where events are stored, ``lv.`` where the server republishes them.
"""

import re
import zlib
from typing import Literal

import msgspec

from events.errors import InvalidName
from events.ids import HubName, b64url, from_b64url, parse_hub, partition_of

CALL_BUCKETS = 256
SYSTEM_HUB = "_sys"  # no name of a hub: the log's own subjects
Kind = Literal["session", "inbox", "group", "user", "all", "many", "call", "room", "node", "canary"]
CONDITIONAL: frozenset[Kind] = frozenset({"session", "room"})

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,3})\Z")


def token(name: str) -> str:
    """One subject token for any non-empty name."""
    if _PLAIN.match(name):
        return name
    return "~" + b64url(name.encode())


def name_of(text: str) -> str:
    """The name that :func:`token` wrote. Raises: ValueError for any other spelling."""
    if not text.startswith("~"):
        if _PLAIN.match(text):
            return text
        raise ValueError(f"{text!r} is not a token")
    name = from_b64url(text[1:]).decode()
    if not name or _PLAIN.match(name):
        raise ValueError(f"{text!r} is not the canonical token")
    return name


class Subject(msgspec.Struct, frozen=True):
    """A parsed subject: partition, hub (``_sys`` for nodes), kind and the decoded name (None where there is none).

    The name of a ``call`` is its bucket, in decimal.
    """

    partition: int
    hub: str
    kind: Kind
    name: str | None = None


class HubSubjects:
    """The subjects of one hub. Cheap to make; keeps only the common prefix."""

    __slots__ = ("hub", "partition", "prefix")

    def __init__(self, hub: HubName, partitions: int) -> None:
        self.hub = hub
        self.partition = partition_of(hub, partitions)
        self.prefix = f"ev.{self.partition}.{hub}"

    def session(self, session: str) -> str:
        return f"{self.prefix}.s.{token(session)}.log"

    def inbox(self, session: str) -> str:
        return f"{self.prefix}.s.{token(session)}.inbox"

    def group(self, group: str) -> str:
        return f"{self.prefix}.g.{token(group)}"

    def user(self, user: str) -> str:
        return f"{self.prefix}.u.{token(user)}"

    def all(self) -> str:
        return f"{self.prefix}.all"

    def many(self) -> str:
        return f"{self.prefix}.many"

    def call(self, invocation: str) -> str:
        return f"{self.prefix}.call.{zlib.crc32(invocation.encode()) % CALL_BUCKETS}"

    def room(self, code: str) -> str:
        return f"{self.prefix}.r.{token(code)}"


def node(node_id: str) -> str:
    """The subject of one node: always in partition 0."""
    return f"ev.0.{SYSTEM_HUB}.node.{token(node_id)}"


def canary(node_id: str, number: int) -> str:
    """Where a node tries partition ``number``."""
    return f"ev.{number}.{SYSTEM_HUB}.canary.{token(node_id)}"


def stream(partition: int) -> str:
    return f"EV_{partition}"


def partition(subject: str) -> int:
    """The partition that a subject names."""
    return int(subject.split(".", 2)[1])


def live(subject: str) -> str:
    """Where the server republishes what is stored under a subject."""
    return "lv" + subject[2:]


def stored(live_subject: str) -> str:
    """The inverse of :func:`live`."""
    return "ev" + live_subject[2:]


_NAMED: dict[str, Kind] = {"g": "group", "u": "user", "r": "room"}


def parse(subject: str) -> Subject:
    """Raises: ValueError for anything that this module does not build."""
    parts = subject.split(".")
    if len(parts) < 4 or parts[0] != "ev" or not _NUMBER.match(parts[1]):
        raise ValueError(f"{subject!r} is not a subject of the log")
    number, hub, rest = int(parts[1]), parts[2], parts[3:]
    if hub == SYSTEM_HUB:
        match rest:
            case ["node", ident] if number == 0:
                return Subject(number, hub, "node", name_of(ident))
            case ["canary", ident]:
                return Subject(number, hub, "canary", name_of(ident))
            case _:
                raise ValueError(f"{subject!r} is not a subject of the log")
    try:
        parse_hub(hub)
    except InvalidName as exc:
        raise ValueError(f"{subject!r} is not a subject of the log: {exc}") from exc
    match rest:
        case ["s", ident, "log"]:
            return Subject(number, hub, "session", name_of(ident))
        case ["s", ident, "inbox"]:
            return Subject(number, hub, "inbox", name_of(ident))
        case ["all"]:
            return Subject(number, hub, "all")
        case ["many"]:
            return Subject(number, hub, "many")
        case ["call", bucket] if _NUMBER.match(bucket) and int(bucket) < CALL_BUCKETS:
            return Subject(number, hub, "call", bucket)
        case [letter, ident] if letter in _NAMED:
            return Subject(number, hub, _NAMED[letter], name_of(ident))
        case _:
            raise ValueError(f"{subject!r} is not a subject of the log")
