"""What an error code means to a peer: the HTTP status, what happens to a SignalR connection, the problem document.

Owns the one table from codes to both worlds, and the RFC 9457 document. It raises nothing, formats no SignalR frame
(``HublogError.wire`` has the words) and knows no route. A test proves that every code of the tree is here.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from events.errors import HublogError, Internal, NotAdmitted, ScopeMissing, TokenMissing

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

# answer: said to the call that asked, the connection goes on. reconnect, end: a Close with allowReconnect, or without.
OnConnection = Literal["answer", "reconnect", "end"]


class Policy(msgspec.Struct, frozen=True):
    """``status`` of a problem document; what a gateway does with the connection on which the error happened."""

    status: int
    connection: OnConnection = "answer"


POLICIES: Mapping[str, Policy] = {
    # What was asked cannot be read, or may not be.
    "invalid_name": Policy(400),
    "invalid_position": Policy(400),
    "invalid_selector": Policy(400),
    "invalid_arguments": Policy(400),
    "invalid_option": Policy(400),
    "invalid_query": Policy(400),
    "invalid_body": Policy(400),
    "limit_too_large": Policy(400),
    "too_many_targets": Policy(400),
    "method_not_found": Policy(404),
    "not_found": Policy(404),
    "session_not_found": Policy(404),
    "method_not_allowed": Policy(405),
    "payload_too_large": Policy(413),
    "not_available": Policy(501),
    # It meets a state that forbids it.
    "too_many_groups": Policy(409),
    "session_exists": Policy(409),
    "session_closed": Policy(410),
    "not_resumable": Policy(409),
    "token_stale": Policy(409),
    "token_user_mismatch": Policy(403),
    "key_reused": Policy(409),
    "epoch_mismatch": Policy(409),
    "position_not_reached": Policy(409),
    "conflict": Policy(409),
    # Who asks may not, or has not said who they are.
    "token_missing": Policy(401, "end"),
    "token_invalid": Policy(401, "end"),
    "token_expired": Policy(401, "end"),
    "hub_forbidden": Policy(403, "end"),
    "scope_missing": Policy(403, "end"),
    # A peer that breaks its protocol loses its connection: nothing after it could be trusted.
    "bad_handshake": Policy(400, "end"),
    "unsupported_protocol": Policy(400, "end"),
    "bad_message": Policy(400, "end"),
    "handshake_timeout": Policy(408, "end"),
    "client_timeout": Policy(408, "end"),
    "message_too_large": Policy(413, "end"),
    "bad_token": Policy(404, "end"),
    "connection_in_use": Policy(409, "end"),
    "origin_refused": Policy(403, "end"),
    # Something is away: connections stay, commands are refused until it is back.
    "log_unavailable": Policy(503),
    "log_overloaded": Policy(503),
    "suspended": Policy(503),
    "upgrade_required": Policy(503),
    "read_model_unavailable": Policy(503),
    "outcome_unknown": Policy(504),
    "shutting_down": Policy(503, "reconnect"),
    # The server ended it.
    "kicked": Policy(403, "end"),
    "replaced": Policy(409, "end"),
    "slow_consumer": Policy(503, "reconnect"),
    "hole": Policy(503, "reconnect"),
    "shutdown": Policy(503, "reconnect"),
    # Somebody has to look.
    "log_full": Policy(507),
    "log_drifted": Policy(500),
    "log_regressed": Policy(500),
    "log_missing": Policy(500),
    "unreadable_event": Policy(500),
    "misconfigured": Policy(500),
    "internal": Policy(500),
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, as RFC 9457 has it. ``code`` is stable; ``retryable``: the same request may succeed later."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    retryable: bool
    instance: str
    details: dict[str, Any] = {}


def policy(error: HublogError) -> Policy:
    return POLICIES.get(error.code, POLICIES[Internal.code])


def problem(error: HublogError, instance: str) -> Problem:
    """The document of an error that met the request path ``instance``."""
    return Problem(
        type=f"urn:hublog:problem:{error.code}",
        title=title(error.code),
        status=policy(error).status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        retryable=error.retryable,
        instance=instance,
        details=error.details,
    )


def challenge(error: HublogError) -> dict[str, str]:
    """The header that goes with a 401 and with what a token does not allow (RFC 6750, section 3)."""
    if not isinstance(error, NotAdmitted):
        return {}
    said = 'Bearer realm="hublog"'
    if not isinstance(error, TokenMissing):
        kind = "invalid_token" if policy(error).status == HTTPStatus.UNAUTHORIZED else "insufficient_scope"
        scope = f', scope="{error.details["scope"]}"' if isinstance(error, ScopeMissing) else ""
        described = re.sub(r"[^ !#-\[\]-~]", "?", f"{error.code}: {error.message}")
        said += f', error="{kind}"{scope}, error_description="{described}"'
    return {"WWW-Authenticate": said}


def encode(document: Problem) -> bytes:
    """Details are for people: whatever JSON cannot say is said as text."""
    return msgspec.json.encode(document, enc_hook=str)


def title(code: str) -> str:
    return code.replace("_", " ").capitalize()
