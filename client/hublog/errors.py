"""What can go wrong, as exceptions with a stable ``code``, a ``hint`` that says what to do, and ``retryable``.

    HublogError
    ├── ServerError       whatever the service said, with its code (docs/errors.md lists them)
    ├── ConnectionLost    connection_lost    the connection went while the call was under way      (retryable)
    ├── OutcomeUnknown    outcome_unknown    sent, and nobody could say whether it was done        (retryable)
    ├── Unreachable       unreachable        no node answered in time; nothing was sent            (retryable)
    └── ClientClosed      client_closed      the client has ended, or was never started

Owns the client's own errors and the reading of the service's one-line form. It knows no connection.
"""

RETRYABLE_CODES = frozenset(
    {
        "conflict",
        "hole",
        "log_overloaded",
        "log_unavailable",
        "outcome_unknown",
        "position_not_reached",
        "read_model_unavailable",
        "shutdown",
        "shutting_down",
        "slow_consumer",
        "suspended",
        "upgrade_required",
    }
)
"""Of the service's codes, as docs/errors.md publishes them; a test compares the two."""


class HublogError(Exception):
    """Base of everything that this library raises."""

    code: str = "internal"
    hint: str = ""
    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}. {self.hint}".rstrip()


class ServerError(HublogError):
    """The service refused or ended something; ``code`` and ``hint`` are its own."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.retryable = code in RETRYABLE_CODES

    @classmethod
    def from_wire(cls, line: str) -> "ServerError":
        """Reads ``<code>: <what happened>. <hint>``; what is not of that form keeps its text as the message."""
        code, colon, rest = line.partition(": ")
        if not colon or not code.replace("_", "").isalnum():
            return cls("internal", line)
        message, _, hint = rest.partition(". ")
        return cls(code, message.rstrip("."), hint)


class ConnectionLost(HublogError):
    code = "connection_lost"
    hint = "Repeat the call: it waits for the connection."
    retryable = True


class OutcomeUnknown(HublogError):
    """``key``: the idempotency key of the call, if it had one; to repeat with, within the service's window."""

    code = "outcome_unknown"
    hint = "With a user, repeat with the same key: what was stored is found, not stored twice."
    retryable = True

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class Unreachable(HublogError):
    code = "unreachable"
    hint = "Check the addresses and that a gateway runs there; then try again."
    retryable = True


class ClientClosed(HublogError):
    """``__cause__`` is what ended the client, if it was not ``close()``."""

    code = "client_closed"
    hint = "Use a new Client inside `async with`."
