"""``hublog token``: options into claims. What a claim may be is ``service.access``'s to say."""

from collections.abc import Sequence
from typing import Any

import msgspec
import typer

from events.errors import NotAdmitted
from service.access.claims import SCOPES
from service.process.access import mint
from service.settings import TOKEN_TTL_MAX_S, Settings, whole_seconds

TTL_MIN_S = 1
OWN_TTL_S = 600


def minted(*, user: str | None, hubs: Sequence[str], scopes: Sequence[str], ttl: str, meta: str | None) -> str:
    """Raises: Misconfigured, typer.BadParameter."""
    settings = Settings.from_environment("token")
    if user is None and not scopes:
        raise typer.BadParameter("without --user and without --scope it would be good for nothing")
    for scope in scopes:
        if scope not in SCOPES:
            raise typer.BadParameter(
                f"{scope!r} is neither {' nor '.join(SCOPES)}; repeat --scope for both", param_hint="--scope"
            )
    try:
        ttl_s = whole_seconds(ttl, TTL_MIN_S, TOKEN_TTL_MAX_S)
    except ValueError as exc:
        raise typer.BadParameter(f"{ttl!r} is not {exc}", param_hint="--ttl") from exc
    metadata: dict[str, Any] | None = None
    if meta is not None:
        try:
            metadata = msgspec.json.decode(meta, type=dict[str, Any])
        except msgspec.DecodeError as exc:
            raise typer.BadParameter(f"not a JSON object: {exc}", param_hint="--meta") from exc
    try:
        return mint(settings, user=user, hubs=hubs, scopes=scopes, metadata=metadata, ttl_s=ttl_s)
    except NotAdmitted as exc:
        raise typer.BadParameter(exc.message) from exc


def own_token(user: str, hub: str) -> str | None:
    """One for a tool of ours, for minutes, with every scope; None where no key is set. Raises: Misconfigured."""
    settings = Settings.from_environment("token")
    if settings.jwt_key is None and settings.jwt_key_file is None:
        return None
    return mint(settings, user=user, hubs=[hub], scopes=SCOPES, metadata=None, ttl_s=OWN_TTL_S)
