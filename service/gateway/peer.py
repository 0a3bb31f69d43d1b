"""Who connects and how it wants to be served: what a request says of that, before there is a connection."""

import math
from collections.abc import Mapping

import msgspec

from events.errors import InvalidQuery
from events.ids import HubName


class WireOptions(msgspec.Struct, frozen=True):
    """How a client wants to be served. ``kind``: 0 plain, 1 positions as a last argument, 2 as ``hub.cursor`` notices.

    ``token`` and ``cursor``: which session it wants to go on with, and what of it it has. ``traceparent``: of the
    request, unchecked.
    """

    resumable: bool = False
    kind: int = 0
    token: str | None = None
    cursor: str = ""
    traceparent: str | None = None


class Peer(msgspec.Struct, frozen=True):
    """Who connects, as the request says, and how it wants to be served.

    ``until_s``: when that ends to be so, wall clock time in seconds; the connection then ends as well.
    """

    hub: HubName
    connection: str
    user: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    wire: WireOptions = WireOptions()
    until_s: float = math.inf


def wire_options(query: Mapping[str, str], traceparent: str | None = None) -> WireOptions:
    """What a client asks for when connecting. Raises: InvalidQuery."""
    asked = query.get("resumable", "0")
    kind = {"0": 0, "false": 0, "": 1, "1": 1, "true": 1, "notice": 2}.get(asked)
    if kind is None:
        raise InvalidQuery(f"resumable is {asked[:32]!r}, not 1 or notice")
    token = query.get("resume")
    if token is not None and kind == 0:
        raise InvalidQuery("resume goes with resumable=1 or resumable=notice")
    return WireOptions(kind > 0, kind, token, query.get("cursor", ""), traceparent)
