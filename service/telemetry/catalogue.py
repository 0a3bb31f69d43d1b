"""Every metric of every process, once: ``docs/metrics.md`` is made from here, and a test compares it with ``/metrics``.

A new metric is a row here and one call of ``Metrics.counter``, ``gauge`` or ``histogram`` in a composition root. Names
are Prometheus': the prefix ``hublog_``, a base unit (``_seconds``, ``_bytes``) where there is one, ``_total`` on
counters. Labels take few values, known beforehand: no id of a session, a group, a call or a user, and no hub.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]

GATEWAY = ("gateway",)
PROJECTOR = ("projector",)
API = ("api",)
EVERY = ("gateway", "projector", "api")

PARTITION = {"partition": "of the log, from 0"}
CIRCUIT = {"circuit": "`nats`, `postgres`"}
KIND = {"kind": "`conditional` (sessions: their state) or `unconditional` (calls)"}

LIMITS = (
    "limit_too_large",
    "log_overloaded",
    "message_too_large",
    "payload_too_large",
    "slow_consumer",
    "too_many_groups",
    "too_many_targets",
)
"""The codes that say that a bound of ours was met."""


class Declared(msgspec.Struct, frozen=True):
    """One metric. ``labels``: each with what it holds, for people."""

    name: str
    kind: Kind
    roles: Sequence[str]
    meaning: str
    labels: Mapping[str, str] = {}


def _counter(name: str, roles: Sequence[str], meaning: str, **labels: str) -> Declared:
    return Declared(name, "counter", roles, meaning, labels)


def _gauge(name: str, roles: Sequence[str], meaning: str, **labels: str) -> Declared:
    return Declared(name, "gauge", roles, meaning, labels)


def _histogram(name: str, roles: Sequence[str], meaning: str, **labels: str) -> Declared:
    return Declared(name, "histogram", roles, meaning, labels)


CATALOGUE: tuple[Declared, ...] = (
    _histogram(
        "hublog_loop_lag_seconds", EVERY, "By how much a timer of the event loop was late, four times a second."
    ),
    _gauge("hublog_build_info", EVERY, "Always 1.", process="the name in its log lines", version="of the release"),
    # ------------------------------------------------------------------------ connections and sessions of a gateway
    _gauge("hublog_connections", GATEWAY, "Open connections."),
    _gauge(
        "hublog_connections_by_standing",
        GATEWAY,
        "Connections by where they stand.",
        standing="`connecting`, `authenticating`, `active`, `detached`, `closed`",
    ),
    _counter("hublog_sessions_opened_total", GATEWAY, "Sessions opened or resumed here."),
    _counter("hublog_sessions_closed_total", GATEWAY, "Sessions closed or detached here."),
    _gauge("hublog_sessions_closing", GATEWAY, "Sessions whose end waits to be written."),
    _counter(
        "hublog_resumes_total",
        GATEWAY,
        "Sessions taken over by a connection here.",
        resync="what they were told: `none` (nothing missing), `repeated` or `lost`",
    ),
    _counter("hublog_resumes_refused_total", GATEWAY, "Tokens and cursors refused."),
    _counter("hublog_resume_messages_total", GATEWAY, "Messages that resumed sessions had missed."),
    _counter("hublog_resume_reads_total", GATEWAY, "Readings of a hub for resumed sessions."),
    _histogram(
        "hublog_resume_duration_seconds",
        GATEWAY,
        "From a resume's `attached` until all that was missed was written to the connection.",
    ),
    _histogram("hublog_resume_missed_messages", GATEWAY, "Messages that each resumed session had missed."),
    _counter("hublog_calls_failed_total", GATEWAY, "Calls answered with an error."),
    _counter("hublog_slow_consumers_total", GATEWAY, "Connections cut because they did not read."),
    _counter("hublog_client_timeouts_total", GATEWAY, "Connections that fell silent."),
    _gauge("hublog_outbox_bytes", GATEWAY, "Bytes that wait in this process for clients to read."),
    _gauge("hublog_outbox_largest_bytes", GATEWAY, "The same, of the one connection where it is most."),
    _counter(
        "hublog_errors_total",
        ("gateway", "api"),
        "Errors that clients were told of: in an answer, a Close, a refusal.",
        code="of the error, as in `docs/errors.md`",
    ),
    _counter(
        "hublog_limits_hit_total",
        ("gateway", "api"),
        "Those of these errors that say that a bound was met.",
        limit=", ".join(f"`{code}`" for code in LIMITS),
    ),
    _counter(
        "hublog_access_refused_total",
        ("gateway", "api"),
        "Requests refused at the door: by their token or their origin.",
        code="of the error: `token_missing`, `token_invalid`, `token_expired`, `hub_forbidden`, `scope_missing`, "
        "`token_user_mismatch`, `origin_refused`",
    ),
    # ------------------------------------------------------------------------ delivery
    _counter("hublog_deliveries_total", GATEWAY, "Messages written to connections."),
    _counter("hublog_delivery_events_total", GATEWAY, "Events dispatched to local connections."),
    _histogram(
        "hublog_delivery_lag_seconds",
        GATEWAY,
        "From the writing of an event by its gateway to its last socket here; by two clocks.",
    ),
    _counter(
        "hublog_delivery_holds_total",
        GATEWAY,
        "Times that delivery waited for the log.",
        reason="`chain` (a gap was heard), `tail` (a last message was not heard), `new_group`, `disconnected`, "
        "`leader_changed`, `servers_changed`, `suspended`, `lease_renewed_late`, `repair_failed`, `other`",
    ),
    _gauge("hublog_delivery_held_seconds", GATEWAY, "For how long delivery has waited; 0 while it is live."),
    _counter("hublog_delivery_gap_repairs_total", GATEWAY, "Gaps in the feed, read from the log."),
    _counter("hublog_delivery_unreadable_events_total", GATEWAY, "Events that could not be read, passed over."),
    _counter("hublog_delivery_repaired_events_total", GATEWAY, "Events read because the feed missed them."),
    _counter("hublog_delivery_tail_repairs_total", GATEWAY, "Lost last messages found."),
    _counter("hublog_delivery_holes_total", GATEWAY, "Connections closed over a hole."),
    # ------------------------------------------------------------------------ writing to the log
    _histogram("hublog_append_duration_seconds", EVERY, "From a write's beginning to its answer, if stored.", **KIND),
    _counter(
        "hublog_appends_total",
        EVERY,
        "Writes by what they ended as.",
        **KIND,
        outcome="`stored`, `duplicate`, or the code of an error",
    ),
    _counter("hublog_append_conflicts_total", EVERY, "Conditional writes that found their subject moved on."),
    _counter(
        "hublog_append_repeats_refused_total",
        EVERY,
        "Times that such a write was not repeated because too many are: it ends as `conflict`, or waits.",
    ),
    _counter(
        "hublog_append_doubts_total",
        EVERY,
        "Writes whose answer did not come, by what was found out.",
        **KIND,
        resolved="`stored`, `not_stored`, or `unknown`, which its caller is told",
    ),
    _gauge("hublog_log_connected", EVERY, "1 while connected to NATS."),
    _counter("hublog_log_disconnects_total", EVERY, "Times that the connection to NATS was lost."),
    # ------------------------------------------------------------------------ the API
    _counter("hublog_api_requests_total", API, "Requests answered.", status="of HTTP"),
    _histogram("hublog_api_request_duration_seconds", API, "From a request's head to its answer."),
    # ------------------------------------------------------------------------ the node
    _gauge("hublog_suspended", GATEWAY, "1 while the lease is too old."),
    _counter("hublog_node_lost_total", GATEWAY, "Times that this node was called lost."),
    _counter(
        "hublog_connections_without_request_total",
        GATEWAY,
        "TCP connections closed because no request came within `HUBLOG_HANDSHAKE_TIMEOUT`.",
    ),
    # ------------------------------------------------------------------------ what the process needs
    _gauge(
        "hublog_circuit_state",
        EVERY,
        "1 for the state that a circuit is in, 0 for the others; `postgres` not of a gateway.",
        **CIRCUIT,
        state="`closed`, `open`, `half_open`",
    ),
    _counter("hublog_circuit_opened_total", EVERY, "Times that nobody answered any more.", **CIRCUIT),
    _counter("hublog_circuit_refused_total", EVERY, "Commands and questions refused at once meanwhile.", **CIRCUIT),
    _gauge(
        "hublog_canary_leg_seconds",
        GATEWAY,
        "How long the last canary took from its beginning, where it came so far; `project` only with Postgres.",
        **PARTITION,
        leg="`append`, `deliver`, `project`",
    ),
    _counter("hublog_canaries_total", GATEWAY, "Canaries sent (`HUBLOG_CANARY_EVERY`)."),
    _counter(
        "hublog_canaries_failed_total",
        GATEWAY,
        "Canaries that did not come through, by the leg that they were on.",
        leg="`append`, `deliver`, `project`",
    ),
    # ------------------------------------------------------------------------ projections
    _gauge("hublog_sessions", PROJECTOR, "Sessions of all hubs in the read models.", state="`active`, `detached`"),
    _gauge("hublog_stream_bytes", PROJECTOR, "What the stream takes on disk.", **PARTITION),
    _gauge("hublog_stream_events", PROJECTOR, "Events that the stream holds.", **PARTITION),
    _gauge("hublog_stream_last_sequence", PROJECTOR, "The sequence of its last event.", **PARTITION),
    _gauge("hublog_stream_first_age_seconds", PROJECTOR, "The age of its oldest event; by two clocks.", **PARTITION),
    _gauge("hublog_projection_lag_events", PROJECTOR, "Events stored and not yet in the rows.", **PARTITION),
    _gauge(
        "hublog_projection_lag_seconds",
        PROJECTOR,
        "For how long at most the oldest event that is not in the rows has been stored; by two clocks.",
        **PARTITION,
    ),
    _gauge("hublog_projection_leading", PROJECTOR, "1 where this process is the one at work.", **PARTITION),
    _gauge("hublog_projection_parked_events", PROJECTOR, "Events that wait for a repair.", **PARTITION),
    _counter("hublog_projection_events_total", PROJECTOR, "Events written to the rows.", **PARTITION),
    _counter("hublog_projection_batches_total", PROJECTOR, "Transactions.", **PARTITION),
    _counter(
        "hublog_projection_interruptions_total", PROJECTOR, "Times that Postgres or the log went away.", **PARTITION
    ),
    _histogram(
        "hublog_projection_delay_seconds",
        PROJECTOR,
        "From an event's storing to its rows being there, of the oldest event of each transaction; by two clocks.",
        **PARTITION,
    ),
    # ------------------------------------------------------------------------ sweeping and judging
    _gauge(
        "hublog_sweeper_age_seconds",
        PROJECTOR,
        "Since the last complete round: how long everything that is owed has waited at least.",
        **PARTITION,
    ),
    _counter(
        "hublog_sweeper_sessions_total",
        PROJECTOR,
        "What the sweeper did to sessions.",
        **PARTITION,
        what="`detached`, `closed`, `expired`, `carried`, `forgotten`, `skipped`",
    ),
    _gauge("hublog_leases_age_seconds", PROJECTOR, "Since all leases were last seen."),
    _counter("hublog_nodes_lost_total", PROJECTOR, "Incarnations of nodes judged lost here."),
    # ------------------------------------------------------------------------ traces
    _counter("hublog_spans_exported_total", EVERY, "Spans that the collector has taken."),
    _counter("hublog_spans_lost_total", EVERY, "Spans that it was sent and did not take."),
    _counter("hublog_traces_refused_total", EVERY, "Traces that clients asked for beyond 100 a second."),
)


def labels_shown(one: Declared) -> str:
    return "; ".join(f"`{name}`: {holds}" for name, holds in one.labels.items()) or "none"


def markdown_table() -> str:
    """The table of ``docs/metrics.md``."""
    head = "| metric | kind | of | labels | meaning |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{one.name}` | {one.kind} | {', '.join(one.roles)} | {labels_shown(one)} | {one.meaning} |\n"
        for one in CATALOGUE
    )
