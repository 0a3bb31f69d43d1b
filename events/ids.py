"""Identifiers and positions: what they look like, and how text becomes one.

Owns the grammar of hubs, sessions, names and positions. Makes no random and reads no clock: whoever needs a new id
passes the bytes in.
"""

import base64
import binascii
import re
import uuid
import zlib
from typing import NewType

import msgspec

from events.errors import InvalidName, InvalidPosition

HubName = NewType("HubName", str)
SessionId = NewType("SessionId", str)
GroupName = NewType("GroupName", str)
UserId = NewType("UserId", str)
Epoch = NewType("Epoch", str)
EventId = NewType("EventId", str)

NAME_BYTES_MAX = 256
SESSION_ID_BYTES = 16
SEQUENCE_MAX = 2**63 - 1  # of what the read models can store; the log itself would count further
# Namespace of ids made from idempotency keys; fixed for ever, or a repeated key would no longer meet its own event.
KEYED = uuid.UUID("5f0c3a54-6a0e-5a63-9a75-3a1e6f1d9b10")

_HUB = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_EPOCH = re.compile(r"[a-z2-7]{4}\Z")
_POSITION = re.compile(r"([a-z2-7]{4})\.(0|[1-9][0-9]{0,3})-(0|[1-9][0-9]{0,18})\Z")


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the log: ``<epoch>.<partition>-<sequence>``, opaque to clients."""

    epoch: Epoch
    partition: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.partition}-{self.sequence}"


def parse_position(text: str) -> Position:
    """Raises: InvalidPosition."""
    found = _POSITION.match(text)
    if found is None or int(found[3]) > SEQUENCE_MAX:
        raise InvalidPosition(f"{text[:64]!r} is not a position")
    return Position(Epoch(found[1]), int(found[2]), int(found[3]))


def parse_hub(text: str) -> HubName:
    """Raises: InvalidName."""
    if _HUB.match(text) is None:
        raise InvalidName(f"{text[:64]!r} is not the name of a hub")
    return HubName(text)


def is_epoch(text: str) -> bool:
    return _EPOCH.match(text) is not None


def parse_name(text: str, what: str) -> str:
    """A group's, user's or target's name: 1 to 256 bytes of UTF-8, no NUL. ``what`` says which. Raises: InvalidName."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"the {what} holds a lone surrogate") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        raise InvalidName(f"the {what} has {size} bytes")
    if "\0" in text:
        raise InvalidName(f"the {what} holds a NUL character")
    return text


def session_id(random: bytes) -> SessionId:
    """The id of a new session from 16 random bytes."""
    if len(random) != SESSION_ID_BYTES:
        raise ValueError(f"a session id takes {SESSION_ID_BYTES} bytes, got {len(random)}")
    return SessionId(b64url(random))


def epoch(random: bytes) -> Epoch:
    """The name of a new life of the log: 4 base32 characters from at least 3 random bytes."""
    return Epoch(base64.b32encode(random[:3]).decode().lower()[:4])


def keyed_id(hub: HubName, actor: str, key: str) -> EventId:
    """The id that a call with an idempotency key gets, the same each time (UUIDv5 of hub, actor and key)."""
    # Lengths first, so that no two triples spell the same bytes.
    return EventId(str(uuid.uuid5(KEYED, f"{len(hub)}.{len(actor)}.{hub}{actor}{key}")))


def partition_of(hub: str, partitions: int) -> int:
    """The partition that orders a hub."""
    return zlib.crc32(hub.encode()) % partitions


def b64url(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64url(text: str) -> bytes:
    """The only text that :func:`b64url` gives for these bytes. Raises: ValueError for any other spelling."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError(f"not base64url: {exc}") from exc
    if b64url(data) != text:
        raise ValueError("not the canonical base64url spelling")
    return data
