"""What a gateway exports of its connections and its delivery."""

from service.delivery.feed import HOLD_REASONS, Dispatcher
from service.delivery.handover import MISSED, TOOK_S
from service.delivery.lag import LAG_S
from service.gateway.server import GatewayServer
from service.nodes.lease import Lease
from service.process.measuring import measure_errors, together
from service.telemetry import Metrics


def measure_gateway(metrics: Metrics, server: GatewayServer, lease: Lease) -> None:
    context = server.context
    counters, coordinator, handovers = context.counters, context.coordinator, context.handovers
    measure_errors(metrics, counters.errors)
    metrics.counter("hublog_connections_without_request_total", lambda: server.arrivals.closed)
    metrics.gauge("hublog_connections", lambda: len(coordinator))
    metrics.gauge(
        "hublog_connections_by_standing",
        lambda: [({"standing": one}, count) for one, count in coordinator.counts.items()],
    )
    metrics.counter("hublog_sessions_opened_total", lambda: counters.opened)
    metrics.counter("hublog_sessions_closed_total", lambda: counters.closed)
    metrics.gauge("hublog_sessions_closing", lambda: len(context.closings))
    metrics.counter("hublog_calls_failed_total", lambda: counters.failed_calls)
    metrics.counter("hublog_slow_consumers_total", lambda: counters.slow)
    metrics.counter("hublog_client_timeouts_total", lambda: counters.timeouts)
    metrics.gauge("hublog_outbox_bytes", lambda: sum(context.outboxes()))
    metrics.gauge("hublog_outbox_largest_bytes", lambda: max(context.outboxes(), default=0))
    metrics.counter(
        "hublog_resumes_total", lambda: [({"resync": one}, count) for one, count in counters.resyncs.items()]
    )
    metrics.counter("hublog_resumes_refused_total", lambda: counters.resumes_refused)
    metrics.counter("hublog_resume_messages_total", lambda: sum(one.replayed for one in handovers))
    metrics.counter("hublog_resume_reads_total", lambda: sum(one.reads for one in handovers))
    metrics.histogram("hublog_resume_duration_seconds", lambda: together(TOOK_S, (one.took for one in handovers)))
    metrics.histogram("hublog_resume_missed_messages", lambda: together(MISSED, (one.missed for one in handovers)))
    metrics.gauge("hublog_suspended", lambda: int(lease.suspended()))
    metrics.counter("hublog_node_lost_total", lambda: lease.lost)
    _measure_delivery(metrics, list(context.dispatchers))


def _measure_delivery(metrics: Metrics, dispatchers: list[Dispatcher]) -> None:
    counters = [one.counters for one in dispatchers]
    metrics.counter("hublog_deliveries_total", lambda: sum(one.deliveries for one in counters))
    metrics.counter("hublog_delivery_events_total", lambda: sum(one.events for one in counters))
    metrics.histogram("hublog_delivery_lag_seconds", lambda: together(LAG_S, (one.lag.buckets for one in counters)))
    metrics.counter(
        "hublog_delivery_holds_total",
        lambda: [
            ({"reason": reason.replace(" ", "_")}, sum(one.held_for[reason] for one in counters))
            for reason in HOLD_REASONS
        ],
    )
    metrics.gauge("hublog_delivery_held_seconds", lambda: max(one.held_s for one in dispatchers))
    metrics.counter("hublog_delivery_gap_repairs_total", lambda: sum(one.held_for["chain"] for one in counters))
    metrics.counter("hublog_delivery_tail_repairs_total", lambda: sum(one.tail_repairs for one in counters))
    metrics.counter("hublog_delivery_repaired_events_total", lambda: sum(one.repaired for one in counters))
    metrics.counter("hublog_delivery_holes_total", lambda: sum(one.holes for one in counters))
    metrics.counter("hublog_delivery_unreadable_events_total", lambda: sum(one.unreadable for one in counters))
