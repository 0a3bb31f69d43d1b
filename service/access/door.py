"""The door of a public port: who comes in, and a count of who does not.

Owns the order of the questions, the count of refusals by code and their log lines. With ``HUBLOG_AUTH=none`` nobody is
asked for a token, and origins are all that is looked at. It knows no route.
"""

import time

import structlog

from events.errors import (
    HubForbidden,
    HublogError,
    NotAdmitted,
    OriginRefused,
    ScopeMissing,
    TokenInvalid,
    TokenUserMismatch,
)
from service.access.bearer import Verifier, token_of
from service.access.claims import Claims
from service.access.origins import Origins

OURS = (NotAdmitted, OriginRefused, TokenUserMismatch)
"""What a door refuses with."""
LINES_PER_S = 10
"""Of refusals; the rest of a flood is counted, and the next line says how many."""

_log = structlog.get_logger(__name__)


class Door:
    """Made once per process. ``refusals``: how many were refused, by code."""

    def __init__(self, verifier: Verifier | None = None, origins: Origins | None = None) -> None:
        """Without a verifier there are no tokens: everybody is who they say they are."""
        self._verifier = verifier
        self.origins = origins or Origins(named_hosts=verifier is not None)
        self.refusals: dict[str, int] = {}
        self._second = 0
        self._lines = 0
        self._unlogged = 0

    @property
    def locked(self) -> bool:
        return self._verifier is not None

    def claims(self, authorization: str | None, access_token: str | None = None) -> Claims | None:
        """Of the token that a request brings; None where nobody asks.

        Raises: TokenMissing, TokenInvalid, TokenExpired.
        """
        return None if self._verifier is None else self._verifier(token_of(authorization, access_token))

    def refused(self, error: HublogError, *, at: str, remote: str | None) -> None:
        """Count and log an error, if it is one of ours. ``at``: what was asked for, in constant words; ``remote``: the
        address that asked, which may be a proxy's."""
        if not isinstance(error, OURS):
            return
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_S:
            self._unlogged += 1
            return
        self._lines += 1
        unlogged, self._unlogged = self._unlogged, 0
        _log.warning(
            "access.refused", code=error.code, why=error.message, at=at, remote=remote, unlogged_before=unlogged
        )


def may_connect(claims: Claims, hub: str) -> None:
    """Whether a session of this user may be opened in the hub. Raises: HubForbidden, TokenInvalid."""
    _within(claims, hub)
    if claims.user is None:
        raise TokenInvalid("the claim `sub` is missing: a session is somebody's")


def may_ask(claims: Claims, hub: str | None, scope: str) -> None:
    """Whether the API may be asked this, of one hub or of all (None). Raises: HubForbidden, ScopeMissing."""
    if scope not in claims.scopes:
        raise ScopeMissing(f"the token lacks the scope {scope}", scope=scope)
    _within(claims, hub)


def _within(claims: Claims, hub: str | None) -> None:
    if claims.hubs is not None and hub not in claims.hubs:
        named = "all hubs" if hub is None else f"hub {hub[:64]}"
        raise HubForbidden(f"the token's claim `hubs` does not allow {named}")
