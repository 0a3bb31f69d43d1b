"""Why a node refuses a connection for good: asked of its negotiation, which has room to say so.

A WebSocket that is refused shows a client the status alone. Owns the one request and what can be read of its answer.
"""

from collections.abc import Mapping

import aiohttp
import msgspec

from hublog.errors import ServerError

BYTES_MAX = 4096


class _Said(msgspec.Struct):
    """``error``: of a negotiation; the others: of a problem document."""

    error: str | None = None
    code: str | None = None
    detail: str = ""
    hint: str = ""


async def reason(http: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> ServerError | None:
    """What the node says of a connection to ``url``; None where it says nothing that can be read."""
    hub, _, query = url.partition("?")
    address = f"{hub.replace('ws', 'http', 1) if hub.startswith('ws') else hub}/negotiate?{query}"
    try:
        async with http.post(address, headers=headers) as answer:
            said = msgspec.json.decode(await answer.content.read(BYTES_MAX), type=_Said)
    except (OSError, aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None
    if said.error is not None:
        return ServerError.from_wire(said.error)
    return ServerError(said.code, said.detail, said.hint) if said.code is not None else None
