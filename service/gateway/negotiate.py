"""Negotiation: what a client is told before it connects (aspnetcore, ``TransportProtocols.md``).

Owns the version rule and the shape of the answer. Pure: ids and tokens are arguments. It refuses to know HTTP and keys.
Only what is there is advertised: WebSockets in text, and no stateful reconnect.
"""

import msgspec

from events.errors import HublogError, InvalidQuery

NEGOTIATE_VERSION_MAX = 1
TRANSPORTS: tuple[tuple[str, tuple[str, ...]], ...] = (("WebSockets", ("Text",)),)


class Transport(msgspec.Struct, frozen=True, rename="camel"):
    transport: str
    transfer_formats: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The body of a successful negotiation, status 200."""

    # No defaults, or `omit_defaults` would drop a version 0 that clients look for.
    negotiate_version: int
    connection_id: str
    available_transports: tuple[Transport, ...]
    connection_token: str | None = None


class RefusalAnswer(msgspec.Struct, frozen=True):
    """The body of a refused one, also with status 200: stock clients then throw ``error`` as it stands."""

    error: str


_ADVERTISED = tuple(Transport(name, formats) for name, formats in TRANSPORTS)


def version_of(negotiate_version: str | None) -> int:
    """The version both sides speak, from ``?negotiateVersion=`` (absent: 0). Raises: InvalidQuery."""
    if negotiate_version is None:
        return 0
    # Not int() alone: it takes "+1", " 1", "1_0" and digits of other scripts.
    if not (negotiate_version.isascii() and negotiate_version.isdigit() and len(negotiate_version) < 10):
        raise InvalidQuery("negotiateVersion is not a number")
    return min(int(negotiate_version), NEGOTIATE_VERSION_MAX)


def answer(version: int, connection_id: str, connection_token: str) -> bytes:
    """The answer as JSON.

    In version 0 the id itself is what the client connects with, so there it is the token: nothing is remembered here
    that could turn an id back into a grant.
    """
    if version == 0:
        return msgspec.json.encode(Answer(0, connection_token, _ADVERTISED))
    return msgspec.json.encode(Answer(version, connection_id, _ADVERTISED, connection_token))


def refusal(error: HublogError) -> bytes:
    """The refusal as JSON."""
    return msgspec.json.encode(RefusalAnswer(error.wire()))
