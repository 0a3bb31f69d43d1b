"""How settings are shown to people: in groups, with what each takes and which process reads it.

Owns the groups and the readers; a test compares the readers with the code. ``docs/configuration.md`` is made from here.
What a setting is called and means, ``service.settings`` says.
"""

import re
from collections.abc import Mapping

import msgspec

from service.settings import ADMIN_OFFSET_API, ADMIN_OFFSET_PROJECTOR, Role, defaults, required_by, variables

Readers = tuple[Role, ...]

SERVING: Readers = ("gateway", "projector", "api")
ON_THE_LOG: Readers = (*SERVING, "migrate", "wait")
ON_THE_ROWS: Readers = ("projector", "api", "migrate", "wait")
AT_THE_DOOR: Readers = ("up", "gateway", "api")


class Group(msgspec.Struct, frozen=True):
    """Settings that are looked for together. ``rows``: each field of ``Settings`` with the roles that look at it."""

    title: str
    preface: str
    rows: Mapping[str, Readers]


GROUPS: tuple[Group, ...] = (
    Group(
        "Servers",
        "",
        {
            "nats_url": ("up", *ON_THE_LOG, "tail"),
            "postgres_dsn": ("up", "gateway", *ON_THE_ROWS),
        },
    ),
    Group(
        "Addresses and names",
        f"Admin ports: gateway *i* has base + *i*, the api base + {ADMIN_OFFSET_API}, the projector base + "
        f"{ADMIN_OFFSET_PROJECTOR}.",
        {
            "host": ("up", *SERVING),
            "gateway_port": ("up", "gateway"),
            "api_port": ("up", "api"),
            "admin_port": ("up", *SERVING),
            "node": ("up", "gateway"),
        },
    ),
    Group(
        "Who may come in",
        "[security.md](security.md) says what these protect, and what not.",
        {
            "auth": AT_THE_DOOR,
            "auth_none_beyond_loopback": ("up", *SERVING),
            "jwt_algorithm": (*AT_THE_DOOR, "token"),
            "jwt_key": (*AT_THE_DOOR, "token"),
            "jwt_key_file": (*AT_THE_DOOR, "token"),
            "jwt_issuer": (*AT_THE_DOOR, "token"),
            "jwt_audience": (*AT_THE_DOOR, "token"),
            "allowed_origins": AT_THE_DOOR,
            "secrets": ("up", "gateway"),
        },
    ),
    Group(
        "The log",
        "The same for every process of an install: each compares them with the streams when it starts, and refuses to "
        "go on when they differ (`log_drifted`). To change one, run `hublog migrate` with the new value, then restart.",
        {
            "partitions": ON_THE_LOG,
            "nats_replicas": ("up", *ON_THE_LOG),
            "max_age_s": ON_THE_LOG,
            "duplicate_window_s": ON_THE_LOG,
        },
    ),
    Group(
        "Sessions",
        "",
        {
            "session_ttl_s": ("gateway", "projector"),
            "nats_grace_s": ("gateway",),
            "drain_s": ("up", "gateway"),
        },
    ),
    Group(
        "Limits of a connection",
        "",
        {
            "message_bytes_max": ("gateway",),
            "outbox_bytes_max": ("gateway",),
            "outbox_age_s": ("gateway",),
            "ping_interval_s": ("gateway",),
            "client_timeout_s": ("gateway",),
            "handshake_timeout_s": ("gateway",),
        },
    ),
    Group(
        "Seeing",
        "",
        {
            "stale_after_s": ("projector", "api"),
            "log_level": SERVING,
            "canary_every_s": ("gateway",),
            "otlp_endpoint": SERVING,
            "trace_ratio": SERVING,
        },
    ),
    Group(
        "An extension of your own",
        "",
        {"session_manager": ("gateway", "api")},
    ),
    Group(
        "Only `hublog up`",
        "",
        {
            "data_dir": ("up", "tail"),
            "nats_sync": ("up",),
            "nats_bin": ("up",),
            "postgres_bin": ("up",),
        },
    ),
)

_TIME = re.compile(r"(whole )?seconds, or a number with s, m, h or d, from (\S+) to (\S+)")
_SIZE = re.compile(r"bytes, or a number with KiB or MiB, from (\d+) to (\d+)")
_WHOLE = re.compile(r"a whole number from (\d+) to (\d+)")


def markdown() -> str:
    """The body of ``docs/configuration.md``: a table per group."""
    return "\n".join(_section(group) for group in GROUPS)


def _section(group: Group) -> str:
    known, plain = variables(), defaults()
    lines = [f"## {group.title}", ""]
    if group.preface:
        lines += [group.preface, ""]
    lines += ["| variable | takes | default | read by | meaning |", "|---|---|---|---|---|"]
    for field, readers in group.rows.items():
        variable = known[field]
        cells = (
            f"`{variable.name}`",
            takes(variable.expectation).replace("|", "\\|"),
            variable.default_shown(plain[field]),
            ", ".join(f"**{role}**" if field in required_by(role) else role for role in readers),
            variable.doc,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def takes(expectation: str) -> str:
    """What a parser expects, short enough for a table."""
    if found := _TIME.fullmatch(expectation):
        return f"time, {found[2]} to {found[3]}"
    if found := _SIZE.fullmatch(expectation):
        return f"size, {_size(int(found[1]))} to {_size(int(found[2]))}"
    if found := _WHOLE.fullmatch(expectation):
        return f"number, {found[1]} to {found[2]}"
    return expectation


def _size(size: int) -> str:
    for unit, length in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if size >= length and size % length == 0:
            return f"{size // length}{unit}"
    return str(size)
