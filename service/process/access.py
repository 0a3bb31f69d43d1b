"""The door of a process, made of its settings, and the token that opens it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from events.errors import Misconfigured, every_error
from service.access import bearer
from service.access.claims import payload_of
from service.access.door import OURS, Door
from service.access.keys import Keys, read_keys
from service.access.origins import Origins
from service.settings import Settings
from service.telemetry import Metrics

KEY_FILE_BYTES_MAX = 64 * 1024
COUNTED = tuple(sorted(code for code, error in every_error().items() if issubclass(error, OURS)))


def make_door(settings: Settings) -> Door:
    """Raises: Misconfigured."""
    locked = settings.auth == "jwt"
    verifier = bearer.Verifier(keys(settings), settings.jwt_issuer, settings.jwt_audience) if locked else None
    return Door(verifier, Origins(settings.allowed_origins, named_hosts=locked))


def measure_door(metrics: Metrics, door: Door) -> None:
    metrics.counter(
        "hublog_access_refused_total",
        lambda: [({"code": code}, door.refusals.get(code, 0)) for code in COUNTED],
    )


def keys(settings: Settings) -> Keys:
    """The keys of access tokens. Raises: Misconfigured."""
    if settings.jwt_key is not None:
        return read_keys(settings.jwt_algorithm, settings.jwt_key.reveal(), setting="HUBLOG_JWT_KEY")
    if settings.jwt_key_file is None:
        raise Misconfigured(
            "HUBLOG_JWT_KEY is not set, nor HUBLOG_JWT_KEY_FILE: there is no key to sign with.\n"
            "A `hublog up` on loopback asks for no token unless HUBLOG_AUTH=jwt: connect with ?user=<name>.\n"
            "To ask for tokens, give it HUBLOG_AUTH=jwt and a key, and this command the same key, e.g.\n"
            "  export HUBLOG_AUTH=jwt HUBLOG_JWT_KEY=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
        )
    try:
        with settings.jwt_key_file.open("rb") as file:
            text = file.read(KEY_FILE_BYTES_MAX).decode("ascii", "replace")
    except OSError as exc:
        raise Misconfigured(f"HUBLOG_JWT_KEY_FILE {settings.jwt_key_file} cannot be read: {exc.strerror}") from exc
    return read_keys(settings.jwt_algorithm, text, setting=f"HUBLOG_JWT_KEY_FILE {settings.jwt_key_file}")


def mint(
    settings: Settings,
    *,
    user: str | None,
    hubs: Sequence[str],
    scopes: Sequence[str],
    metadata: Mapping[str, Any] | None,
    ttl_s: int,
) -> str:
    """An access token that processes of the same settings take. Raises: Misconfigured, TokenInvalid."""
    ring = keys(settings)
    payload = payload_of(user=user, hubs=hubs, scopes=scopes, metadata=metadata, now_s=int(time.time()), ttl_s=ttl_s)
    return bearer.mint(ring, payload, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
