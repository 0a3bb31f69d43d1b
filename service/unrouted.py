"""Requests that no route of aiohttp's takes: what its router says of them in plain text, as an error of ours.

Owns those two words, not there and not by this method. Who answers, and what else they count or log, is theirs.
"""

from aiohttp import hdrs, web

from events.errors import HublogError, MethodNotAllowed, NotFound

PATH_QUOTED_MAX = 256


def refusal(exc: web.HTTPException, request: web.Request) -> tuple[HublogError, dict[str, str]] | None:
    """The error, and the headers that go with it; None for whatever else aiohttp raises."""
    path = request.path[:PATH_QUOTED_MAX]
    if isinstance(exc, web.HTTPNotFound):
        return NotFound(f"there is nothing at {path}"), {}
    if isinstance(exc, web.HTTPMethodNotAllowed):
        error = MethodNotAllowed(f"{exc.method} is not served at {path}")
        return error, {hdrs.ALLOW: ", ".join(sorted(exc.allowed_methods))}
    return None
