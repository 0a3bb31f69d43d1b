"""What a token says of who shows it: user, hubs, scopes, metadata.

Owns the claims and their limits, reading and writing them. It refuses to know signatures, and what anybody does with a
claim. The claims are documented in docs/security.md.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from events.errors import InvalidName, TokenInvalid
from events.ids import UserId, parse_hub, parse_name
from events.nesting import NESTING_MAX, too_deep

READ = "hublog:read"
WRITE = "hublog:write"
SCOPES = (READ, WRITE)
METADATA_BYTES_MAX = 2 * 1024
HUBS_MAX = 256
_SCOPE = re.compile(r"[!#-\[\]-~]+(?: [!#-\[\]-~]+)*\Z")


class Claims(msgspec.Struct, frozen=True):
    """``user`` is ``sub``; ``hubs`` None means every hub; ``metadata`` is raw JSON, ``null`` for none.

    ``expires_at_s`` is wall clock time in seconds, with the leeway that clocks are given.
    """

    user: UserId | None
    hubs: frozenset[str] | None
    scopes: frozenset[str]
    metadata: msgspec.Raw
    expires_at_s: float


def read_claims(payload: Mapping[str, Any], *, leeway_s: float) -> Claims:
    """The claims of a payload whose signature and registered claims were found right. Raises: TokenInvalid."""
    return Claims(
        user=_user(payload.get("sub")),
        hubs=_hubs(payload.get("hubs")),
        scopes=_scopes(payload.get("scope")),
        metadata=_metadata(payload.get("meta")),
        expires_at_s=_expiry(payload["exp"]) + leeway_s,
    )


def payload_of(
    *,
    user: str | None,
    hubs: Sequence[str],
    scopes: Sequence[str],
    metadata: Mapping[str, Any] | None,
    now_s: int,
    ttl_s: int,
) -> dict[str, Any]:
    """A payload that ``read_claims`` takes; what is not given is left out. Raises: TokenInvalid, as reading would."""
    payload: dict[str, Any] = {"iat": now_s, "exp": now_s + ttl_s}
    if user is not None:
        payload["sub"] = user
    if hubs:
        payload["hubs"] = list(dict.fromkeys(hubs))
    if scopes:
        payload["scope"] = " ".join(dict.fromkeys(scopes))
    if metadata is not None:
        payload["meta"] = dict(metadata)
    read_claims(payload, leeway_s=0)
    return payload


def _expiry(exp: Any) -> float:
    try:
        return float(exp)
    except (TypeError, ValueError, OverflowError) as exc:
        raise TokenInvalid("the claim `exp` is not a time") from exc


def _user(sub: object) -> UserId | None:
    if sub is None:
        return None
    if not isinstance(sub, str):
        raise TokenInvalid("the claim `sub` is not a text")
    try:
        return UserId(parse_name(sub, "claim `sub`"))
    except InvalidName as exc:
        raise TokenInvalid(exc.message) from exc


def _hubs(hubs: object) -> frozenset[str] | None:
    if hubs is None:
        return None
    if not isinstance(hubs, list) or len(hubs) > HUBS_MAX or not all(isinstance(hub, str) for hub in hubs):
        raise TokenInvalid(f"the claim `hubs` is not a list of at most {HUBS_MAX} names")
    try:
        return frozenset(parse_hub(hub) for hub in hubs)
    except InvalidName as exc:
        raise TokenInvalid("the claim `hubs` holds something that is not the name of a hub") from exc


def _scopes(scope: object) -> frozenset[str]:
    if scope is None or scope == "":
        return frozenset()
    if not isinstance(scope, str) or _SCOPE.match(scope) is None:
        raise TokenInvalid("the claim `scope` is not a text of scopes with single spaces between them")
    return frozenset(scope.split(" "))


def _metadata(meta: object) -> msgspec.Raw:
    if meta is None:
        return msgspec.Raw(b"null")
    if not isinstance(meta, dict):
        raise TokenInvalid("the claim `meta` is not an object")
    try:
        raw = msgspec.json.encode(meta)
    except (TypeError, ValueError, RecursionError) as exc:
        raise TokenInvalid("the claim `meta` cannot be written as JSON") from exc
    if len(raw) > METADATA_BYTES_MAX:
        raise TokenInvalid(f"the claim `meta` has {len(raw)} bytes, more than {METADATA_BYTES_MAX}")
    if too_deep(raw):
        raise TokenInvalid(f"the claim `meta` is nested deeper than {NESTING_MAX}")
    return msgspec.Raw(raw)
