"""Numbers that are kept anyway, made readable: of the parts that several roles have. Decides nothing, keeps nothing."""

from collections.abc import Iterable, Mapping

from service.log.jetstream import JetStreamLog
from service.problems import POLICIES
from service.telemetry import Buckets, Metrics
from service.telemetry.catalogue import LIMITS


def measure_log(metrics: Metrics, log: JetStreamLog) -> None:
    """Of every process that has a log."""
    tally = log.tally
    metrics.counter("hublog_appends_total", tally.outcomes)
    metrics.histogram("hublog_append_duration_seconds", tally.latencies)
    metrics.counter("hublog_append_conflicts_total", tally.conflicts)
    metrics.counter("hublog_append_repeats_refused_total", lambda: tally.repeats_refused)
    metrics.counter("hublog_append_doubts_total", tally.doubts)
    metrics.gauge("hublog_log_connected", lambda: int(log.connected))
    metrics.counter("hublog_log_disconnects_total", lambda: log.disconnects)


def measure_errors(metrics: Metrics, errors: Mapping[str, int]) -> None:
    """Of every process that tells others of errors."""
    metrics.counter("hublog_errors_total", lambda: [({"code": code}, errors.get(code, 0)) for code in POLICIES])
    metrics.counter("hublog_limits_hit_total", lambda: [({"limit": code}, errors.get(code, 0)) for code in LIMITS])


def together(bounds: tuple[float, ...], parts: Iterable[Buckets]) -> Buckets:
    """One histogram of several with the same bounds."""
    whole = Buckets(bounds)
    for part in parts:
        whole.counts = [one + other for one, other in zip(whole.counts, part.counts, strict=True)]
        whole.total += part.total
    return whole
