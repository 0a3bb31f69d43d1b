"""Spans by OpenTelemetry, sent to a collector by OTLP over HTTP.

Imported only where traces are exported: it weighs 15 MiB. Everything that is begun here is kept; what is worth tracing
was decided before. A collector that is away costs nothing but its spans: they are counted, and said once a minute.
"""

import time
from collections.abc import Sequence

import structlog
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from service.telemetry.tracing import Attributes, Kind

EXPORT_TIMEOUT_S = 2.0  # a process that stops waits this long for its collector
SAY_EVERY_S = 60.0

_KINDS: dict[Kind, SpanKind] = {
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_log = structlog.get_logger(__name__)


class OtelSpan:
    """A span of OpenTelemetry, as the service knows it."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: otel.Span) -> None:
        self._span = span
        named = span.get_span_context()
        self.traceparent = f"00-{named.trace_id:032x}-{named.span_id:016x}-01"

    def note(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, value)

    def end(self, error: str | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OtelSpans:
    """Makes spans for one process; ``exporter`` is given them in batches, from a thread of its own."""

    def __init__(self, exporter: SpanExporter, *, service: str, instance: str, version: str) -> None:
        resource = Resource.create(
            {"service.name": service, "service.instance.id": instance, "service.version": version}
        )
        self.exporting = Counting(exporter)
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self.exporting))
        self._tracer = self._provider.get_tracer("hublog")

    def start(
        self, name: str, kind: Kind, parent: str | None, attributes: Attributes, began_ns: int | None = None
    ) -> OtelSpan:
        above = Context() if parent is None else otel.set_span_in_context(NonRecordingSpan(_context(parent)), Context())
        span = self._tracer.start_span(name, above, _KINDS[kind], attributes, start_time=began_ns)
        return OtelSpan(span)

    def flush(self) -> None:
        """Send what waits. Blocks."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits, if the collector is there. Blocks, at most about twice ``EXPORT_TIMEOUT_S``."""
        self.exporting.closing = True
        self._provider.shutdown()


class Counting(SpanExporter):
    """Hands on to an exporter; counts what became of spans, and says so in our words and not in its."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._said_s = -SAY_EVERY_S
        self.sent = 0
        self.lost = 0
        self.closing = False
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        # Where the collector was away just now, nobody waits for it again while the process stops.
        result = SpanExportResult.FAILURE if self.closing and self._away else self._inner.export(spans)
        self._away = result is not SpanExportResult.SUCCESS
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
            return result
        self.lost += len(spans)
        now_s = time.monotonic()
        if now_s - self._said_s > SAY_EVERY_S:
            self._said_s = now_s
            _log.warning("trace.not_exported", spans=len(spans), lost=self.lost)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def otlp(endpoint: str) -> SpanExporter:
    """To ``<endpoint>/v1/traces``. Headers, certificates and compression are the standard OTEL_EXPORTER_OTLP_* ones."""
    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)


def _context(traceparent: str) -> SpanContext:
    return SpanContext(
        trace_id=int(traceparent[3:35], 16),
        span_id=int(traceparent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
