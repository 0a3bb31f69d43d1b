"""The facts of a call: requested, and what became of it.

``arguments`` is one JSON array, byte for byte as the caller sent it, from socket to socket.
"""

from typing import TypeAlias

import msgspec

from events.errors import InvalidArguments, InvalidName, InvalidOption
from events.ids import EventId, parse_name
from events.nesting import NESTING_MAX, too_deep
from events.selector import Route, Selector

ARGUMENTS_NONE = msgspec.Raw(b"[]")
OWN_TARGETS = "hub."
KEY_CHARACTERS_MAX = 128
TTL_MS_MAX = 2**53 - 1  # where nothing else bounds it: beyond, JSON's readers no longer agree

_any_json = msgspec.json.Decoder(msgspec.Raw)


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
    """The event of a call, checked. ``ttl_ms_max``: the age at which the log forgets, None if it never does.

    Raises: InvalidName (target), InvalidArguments, InvalidOption.
    """
    parse_name(target, "target")
    if target.startswith(OWN_TARGETS):  # hub.cursor tells a client where it is: nobody else may say that
        raise InvalidName(f"the target begins with {OWN_TARGETS}, as what hublog itself calls on clients")
    check_arguments(arguments)
    longest_ms = ttl_ms_max if ttl_ms_max is not None else TTL_MS_MAX
    if ttl_ms is not None and not 1 <= ttl_ms <= longest_ms:
        raise InvalidOption(f"ttlMs is {ttl_ms}, not within 1 and {longest_ms}")
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
    """One JSON array in UTF-8, for whoever reads the log: no reader may stumble over what one caller sent.

    Stock clients close on invalid UTF-8, and ``msgspec.Raw`` lets it through. Raises: InvalidArguments.
    """
    view = bytes(arguments)
    if not view.startswith(b"["):
        raise InvalidArguments("the arguments are not an array")
    try:
        view.decode()
    except UnicodeDecodeError as exc:
        raise InvalidArguments(f"the arguments are not UTF-8 at byte {exc.start}") from exc
    if too_deep(view):
        raise InvalidArguments(f"the arguments are nested deeper than {NESTING_MAX}")
    try:
        _any_json.decode(view)
    except msgspec.DecodeError as exc:
        raise InvalidArguments(f"the arguments are not JSON: {exc}") from exc


def check_key(key: str) -> str:
    """An idempotency key: 1 to 128 characters. Raises: InvalidOption."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        raise InvalidOption(f"the key has {len(key)} characters")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidOption("the key holds a lone surrogate") from None
    return key


def same_call(one: Requested, other: Requested) -> bool:
    """Whether two requests under one key are the same call: as asked, whichever session of the user asks."""
    return (one.target, one.arguments, one.selector, one.ttl_ms) == (
        other.target,
        other.arguments,
        other.selector,
        other.ttl_ms,
    )
