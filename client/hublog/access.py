"""The access token of a connection: where it comes from, and what a node says that refuses it.

A token may be a text, or a function that is asked at every connection, so that it may give a fresh one. Owns no
connection; what a token holds is nobody's business here.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping

from hublog.errors import ServerError

Token = str | Callable[[], "str | Awaitable[str]"]
"""An access token, or what gives one; a plain function must return soon."""

REFUSED = "Give the client a token of this service that is valid for the hub."
_DESCRIPTION = re.compile(r'error_description="([a-z_]+): ([^"]*)"')


class NoToken(Exception):
    """Whoever should give a token failed; the cause says how."""


async def fetch(token: Token | None) -> str | None:
    """The token for one connection. Raises: NoToken."""
    if token is None or isinstance(token, str):
        return token
    try:
        given = token()
        return await given if inspect.isawaitable(given) else given
    except Exception as exc:
        raise NoToken(f"{type(exc).__name__}: {exc}") from exc


def refusal(status: int, headers: Mapping[str, str]) -> ServerError | None:
    """What a node means that answers 401, or 403 for what a token does not allow (RFC 6750); None: something else."""
    challenge = headers.get("WWW-Authenticate", "")
    said = _DESCRIPTION.search(challenge)
    if said is not None:
        return ServerError(said[1], said[2], REFUSED)
    return ServerError("token_missing", "the service asks for an access token", REFUSED) if status == 401 else None
