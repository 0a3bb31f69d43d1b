"""Every error that may cross a boundary, as one tree.

Owns the stable codes that clients, operators and the documentation rely on. It knows neither HTTP nor SignalR:
``service.problems`` maps codes to statuses. Long, because all of them stand in one place.

    HublogError
    ├── Refused                    a decision said no; nothing was written
    │   ├── InvalidName            invalid_name
    │   ├── InvalidPosition        invalid_position
    │   ├── InvalidSelector        invalid_selector
    │   ├── InvalidArguments       invalid_arguments
    │   ├── InvalidOption          invalid_option
    │   ├── TooManyGroups          too_many_groups
    │   ├── TooManyTargets         too_many_targets
    │   ├── SessionExists          session_exists
    │   ├── SessionNotFound        session_not_found
    │   ├── SessionClosed          session_closed
    │   ├── NotResumable           not_resumable
    │   ├── TokenStale             token_stale
    │   ├── TokenUserMismatch      token_user_mismatch
    │   ├── KeyReused              key_reused
    │   ├── NotAvailable           not_available
    │   ├── NotFound               not_found
    │   ├── MethodNotFound         method_not_found
    │   ├── PayloadTooLarge        payload_too_large
    │   ├── LimitTooLarge          limit_too_large
    │   ├── InvalidQuery           invalid_query
    │   ├── InvalidBody            invalid_body
    │   ├── MethodNotAllowed       method_not_allowed
    │   ├── EpochMismatch          epoch_mismatch
    │   └── PositionNotReached     position_not_reached    (retryable)
    ├── NotAdmitted                who asks has not shown that they may
    │   ├── TokenMissing           token_missing
    │   ├── TokenInvalid           token_invalid
    │   ├── TokenExpired           token_expired
    │   ├── HubForbidden           hub_forbidden
    │   └── ScopeMissing           scope_missing
    ├── ProtocolViolation          what a peer sent cannot be read
    │   ├── BadHandshake           bad_handshake
    │   ├── UnsupportedProtocol    unsupported_protocol
    │   ├── HandshakeTimeout       handshake_timeout
    │   ├── BadMessage             bad_message
    │   ├── MessageTooLarge        message_too_large
    │   ├── BadToken               bad_token
    │   ├── ConnectionInUse        connection_in_use
    │   ├── ClientTimeout          client_timeout
    │   └── OriginRefused          origin_refused
    ├── Unavailable                something this node needs is away       (all retryable)
    │   ├── LogUnavailable         log_unavailable
    │   ├── LogOverloaded          log_overloaded
    │   ├── Suspended              suspended
    │   ├── ShuttingDown           shutting_down
    │   ├── UpgradeRequired        upgrade_required
    │   ├── Conflict               conflict
    │   └── ReadModelUnavailable   read_model_unavailable
    ├── OutcomeUnknown             outcome_unknown         stored or not: nobody could say in time
    ├── Ended                      why the server ended a connection
    │   ├── Kicked                 kicked
    │   ├── Replaced               replaced
    │   ├── SlowConsumer           slow_consumer           (retryable)
    │   ├── Hole                   hole                    (retryable)
    │   └── Restarting             shutdown                (retryable)
    ├── LogDamaged                 the log is not what it must be
    │   ├── LogFull                log_full
    │   ├── LogDrifted             log_drifted
    │   ├── LogRegressed           log_regressed
    │   ├── LogMissing             log_missing
    │   └── UnreadableEvent        unreadable_event
    ├── Misconfigured              misconfigured           start-up refuses, naming every mistake
    └── Internal                   internal                a defect of ours; the log line has the trace
"""

from typing import ClassVar


class HublogError(Exception):
    """Base of the tree: ``code`` is stable, ``hint`` says what to do next, ``retryable`` whether repeating can help."""

    code: ClassVar[str] = "internal"
    hint: ClassVar[str] = "Report this with the log line of the same time."
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def wire(self) -> str:
        """The one-line form of the SignalR wire: ``<code>: <what happened>. <hint>``."""
        return f"{self.code}: {self.message.rstrip('.')}. {self.hint}"


class Refused(HublogError):
    """A decision said no; nothing was written."""


class InvalidName(Refused):
    code = "invalid_name"
    hint = "Names are 1 to 256 bytes of UTF-8 without NUL; hubs match ^[a-z0-9][a-z0-9-]{0,31}$."


class InvalidPosition(Refused):
    code = "invalid_position"
    hint = "Send a position exactly as it was given, e.g. k7qd.0-1523."


class InvalidSelector(Refused):
    code = "invalid_selector"
    hint = 'Send one selector object tagged by "to", e.g. {"to":"group","group":"lobby"}.'


class InvalidArguments(Refused):
    code = "invalid_arguments"
    hint = "Send arguments as one JSON array in UTF-8; docs/clients.md has what each method takes."


class InvalidOption(Refused):
    code = "invalid_option"
    hint = "Options are {key?: 1 to 128 characters, ttlMs?: 1 to the log's max_age}."


class TooManyGroups(Refused):
    code = "too_many_groups"
    hint = "A session holds at most 128 groups and 8 KiB of group names; leave some first."


class TooManyTargets(Refused):
    code = "too_many_targets"
    hint = "Name at most 1,000 targets, or use a group."


class SessionExists(Refused):
    code = "session_exists"
    hint = "Open another session id."


class SessionNotFound(Refused):
    code = "session_not_found"
    hint = "The session never existed or has aged out of the log; look it up in GET /sessions."


class SessionClosed(Refused):
    code = "session_closed"
    hint = "A closed session stays closed; connect again for a new one."


class NotResumable(Refused):
    code = "not_resumable"
    hint = "Connect with ?resumable=1 to be able to resume."


class TokenStale(Refused):
    code = "token_stale"
    hint = "Use the newest resume token that the service gave out."


class TokenUserMismatch(Refused):
    code = "token_user_mismatch"
    hint = "Resume as the user whose session it is, or connect without a token."


class KeyReused(Refused):
    code = "key_reused"
    hint = "An idempotency key names one call: repeat it unchanged, or use a new key."


class NotAvailable(Refused):
    code = "not_available"
    hint = "This version does not offer it; see the README for what it does."


class NotFound(Refused):
    code = "not_found"
    hint = "Check the path and the identifiers in it; /schema of the API lists its routes, docs/clients.md a gateway's."


class MethodNotFound(Refused):
    code = "method_not_found"
    hint = "Call one of hub.session, hub.join, hub.leave, hub.leaveAll, hub.groups, hub.invoke, hub.resume."


class PayloadTooLarge(Refused):
    code = "payload_too_large"
    hint = "Send less in one call, or a reference to it."


class LimitTooLarge(Refused):
    code = "limit_too_large"
    hint = "Ask for at most 1,000 items and follow `next`."


class InvalidQuery(Refused):
    code = "invalid_query"
    hint = "/schema of the API has the parameters of its routes, docs/clients.md those of a connection."


class InvalidBody(Refused):
    code = "invalid_body"
    hint = "See /schema for the body of this route."


class MethodNotAllowed(Refused):
    code = "method_not_allowed"
    hint = "The Allow header lists what this path takes."


class EpochMismatch(Refused):
    code = "epoch_mismatch"
    hint = "The position belongs to another life of the log; start again without it."


class PositionNotReached(Refused):
    code = "position_not_reached"
    hint = "The read model is behind; try again shortly, or without min_position."
    retryable = True


class NotAdmitted(HublogError):
    """Who asks has not shown that they may. Never says more of a token than what is wrong with it."""


class TokenMissing(NotAdmitted):
    code = "token_missing"
    hint = "Send `Authorization: Bearer <token>`, or ?access_token= to a hub; `hublog token` mints one."


class TokenInvalid(NotAdmitted):
    code = "token_invalid"
    hint = "Get a token that is signed with a key of this installation and has the claims of docs/security.md."


class TokenExpired(NotAdmitted):
    code = "token_expired"
    hint = "Get a new token and connect again."


class HubForbidden(NotAdmitted):
    code = "hub_forbidden"
    hint = "Use a token whose claim `hubs` names the hub, or one without that claim."


class ScopeMissing(NotAdmitted):
    code = "scope_missing"
    hint = "Use a token whose claim `scope` holds hublog:read for questions, hublog:write for commands."


class ProtocolViolation(HublogError):
    """What a peer sent cannot be read as its protocol."""


class BadHandshake(ProtocolViolation):
    code = "bad_handshake"
    hint = 'Send {"protocol":"json","version":1} and 0x1E first.'


class UnsupportedProtocol(ProtocolViolation):
    code = "unsupported_protocol"
    hint = 'Use the "json" protocol, version 1 or 2.'


class HandshakeTimeout(ProtocolViolation):
    code = "handshake_timeout"
    hint = "Send the handshake right after connecting."


class BadMessage(ProtocolViolation):
    code = "bad_message"
    hint = "Send one SignalR message in JSON, ended by 0x1E."


class MessageTooLarge(ProtocolViolation):
    code = "message_too_large"
    hint = "Send smaller messages, or raise HUBLOG_MESSAGE_BYTES_MAX."


class BadToken(ProtocolViolation):
    code = "bad_token"
    hint = "Negotiate again for a connection token; the newest resume token is the one that hub.session() gave."


class ConnectionInUse(ProtocolViolation):
    code = "connection_in_use"
    hint = "Negotiate again: a connection token serves one socket."


class ClientTimeout(ProtocolViolation):
    code = "client_timeout"
    hint = "Send a ping at least every 15 s."


class OriginRefused(ProtocolViolation):
    code = "origin_refused"
    hint = "Add the origin to HUBLOG_ALLOWED_ORIGINS."


class Unavailable(HublogError):
    """Something that this node needs is away; nothing is known to be written."""

    retryable = True


class LogUnavailable(Unavailable):
    code = "log_unavailable"
    hint = "NATS does not answer; try again in a moment."


class LogOverloaded(Unavailable):
    code = "log_overloaded"
    hint = "Slow down and try again."


class Suspended(Unavailable):
    code = "suspended"
    hint = "This node lost its lease for the moment; try again, or on another node."


class ShuttingDown(Unavailable):
    code = "shutting_down"
    hint = "Connect again; another node takes over."


class UpgradeRequired(Unavailable):
    code = "upgrade_required"
    hint = "A newer node wrote this; try on another node, or finish the rolling upgrade."


class Conflict(Unavailable):
    code = "conflict"
    hint = "Many commands change this at once; try again."


class ReadModelUnavailable(Unavailable):
    code = "read_model_unavailable"
    hint = "Postgres does not answer; delivery goes on, questions must wait."


class OutcomeUnknown(HublogError):
    """It may or may not be stored; nobody could say in time. Repeat with the same key to find out."""

    code = "outcome_unknown"
    hint = "Repeat with the same key: what was stored is found, not stored twice."
    retryable = True


class Ended(HublogError):
    """Why the server ended a connection."""


class Kicked(Ended):
    code = "kicked"
    hint = "The session was closed by an administrator or its own backend."


class Replaced(Ended):
    code = "replaced"
    hint = "The session goes on on a newer connection; do not reconnect this one."


class SlowConsumer(Ended):
    code = "slow_consumer"
    hint = "Read faster, or ask for less; connect again."
    retryable = True


class Hole(Ended):
    code = "hole"
    hint = "A message was missed; connect again."
    retryable = True


class Restarting(Ended):
    code = "shutdown"
    hint = "This node is going away; connect again."
    retryable = True


class LogDamaged(HublogError):
    """The log is not what it must be. Never retried: somebody has to look."""


class LogFull(LogDamaged):
    code = "log_full"
    hint = "NATS has met a limit of its stream, account or server: its log says which; raise it."


class LogDrifted(LogDamaged):
    code = "log_drifted"
    hint = "The stream differs from its definition; `hublog migrate` says how, and mends what may be mended."


class LogRegressed(LogDamaged):
    code = "log_regressed"
    hint = "The stream is shorter than what was read from it, or another one; restore it before going on."


class LogMissing(LogDamaged):
    code = "log_missing"
    hint = "Run `hublog migrate` first."


class UnreadableEvent(LogDamaged):
    code = "unreadable_event"
    hint = "An event does not decode; it is parked, see GET /v1/projections."


class Misconfigured(HublogError):
    code = "misconfigured"
    hint = "Correct the settings named above; docs/configuration.md lists them all."


class Internal(HublogError):
    code = "internal"


def every_error() -> dict[str, type[HublogError]]:
    """All codes of the tree and their classes, for the mapping to statuses and for the documentation."""

    def walk(cls: type[HublogError]) -> list[type[HublogError]]:
        return [cls, *(leaf for sub in cls.__subclasses__() for leaf in walk(sub))]

    return {cls.code: cls for cls in walk(HublogError) if "code" in vars(cls) and cls is not HublogError}
