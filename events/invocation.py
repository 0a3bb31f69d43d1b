"""The facts of a call: requested, and what became of it.

``arguments`` is one JSON array, byte for byte as the caller sent it, from socket to socket.
"""

from typing import TypeAlias

import msgspec

from events.errors import InvalidArguments, InvalidOption
from events.ids import EventId, parse_name
from events.nesting import NESTING_MAX, too_deep
from events.selector import Route, Selector

ARGUMENTS_NONE = msgspec.Raw(b"[]")
KEY_CHARACTERS_MAX = 128


class Requested(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A call was made. Its invocation id is the id of this event.

    ``selector`` is what the caller asked for; ``sessions``, ``groups`` and ``without`` are what that meant then (see
    ``selector.Route``), so that its audience is a function of the log. ``caller`` is the calling session.
    """

    target: str
    arguments: msgspec.Raw = ARGUMENTS_NONE
    selector: Selector
    caller: str | None = None
    ttl_ms: int | None = None
    sessions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Answered(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One session or worker answered: ``error`` is None, or its text in place of a result."""

    invocation: EventId
    session: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str | None = None


class Cancelled(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The caller gave up waiting."""

    invocation: EventId


class Expired(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The deadline passed with answers missing."""

    invocation: EventId
    missing: tuple[str, ...]


Event: TypeAlias = Requested | Answered | Cancelled | Expired


def requested(
    route: Route,
    selector: Selector,
    target: str,
    arguments: bytes | msgspec.Raw,
    *,
    caller: str | None = None,
    ttl_ms: int | None = None,
    ttl_ms_max: int | None = None,
) -> Requested:
    """The event of a call, checked. Raises: InvalidName (target), InvalidArguments, InvalidOption."""
    parse_name(target, "target")
    check_arguments(arguments)
    if ttl_ms is not None and not 1 <= ttl_ms <= (ttl_ms_max or ttl_ms):
        raise InvalidOption(f"ttlMs is {ttl_ms}, not within 1 and {ttl_ms_max}")
    return Requested(
        target=target,
        # A copy: a Raw pins the whole frame or request that it came from.
        arguments=msgspec.Raw(bytes(arguments)),
        selector=selector,
        caller=caller,
        ttl_ms=ttl_ms,
        sessions=route.sessions,
        groups=route.groups,
        without=route.without,
    )


def check_arguments(arguments: bytes | msgspec.Raw) -> None:
    """Stock clients close on invalid UTF-8, and ``msgspec.Raw`` lets it through. Raises: InvalidArguments."""
    view = bytes(arguments)
    if not view.startswith(b"["):
        raise InvalidArguments("the arguments are not an array")
    try:
        view.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArguments(f"the arguments are not UTF-8 at byte {exc.start}") from exc
    if too_deep(view):
        raise InvalidArguments(f"the arguments are nested deeper than {NESTING_MAX}")


def check_key(key: str) -> str:
    """Raises: InvalidOption."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        raise InvalidOption(f"the key has {len(key)} characters")
    return key


def same_call(one: Requested, other: Requested) -> bool:
    """Whether two requests under one key are the same call: as asked, whichever session of the user asks."""
    return (one.target, one.arguments, one.selector, one.ttl_ms) == (
        other.target,
        other.arguments,
        other.selector,
        other.ttl_ms,
    )
