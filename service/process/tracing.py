"""Whether this process exports traces, and to whom."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service import VERSION
from service.settings import Settings
from service.telemetry import Metrics
from service.telemetry.tracing import Tracing


class Traces:
    """The traces of one process, and what became of its spans. Off without ``HUBLOG_OTLP_ENDPOINT``."""

    def __init__(self, settings: Settings, role: str, instance: str) -> None:
        self._spans = None
        if settings.otlp_endpoint is not None:
            # Surprising because imports stand at the top elsewhere: these weigh 15 MiB, in every process that traces
            # nothing as well.
            from service.telemetry.spans import OtelSpans, otlp  # noqa: PLC0415

            exporter = otlp(settings.otlp_endpoint)
            self._spans = OtelSpans(exporter, service=f"hublog-{role}", instance=instance, version=VERSION)
        self.tracing = Tracing(self._spans, settings.trace_ratio)

    def measure(self, metrics: Metrics) -> None:
        exporting = self._spans.exporting if self._spans is not None else None
        metrics.counter("hublog_spans_exported_total", lambda: exporting.sent if exporting is not None else 0)
        metrics.counter("hublog_spans_lost_total", lambda: exporting.lost if exporting is not None else 0)
        metrics.counter("hublog_traces_refused_total", lambda: self.tracing.refused)

    async def close(self) -> None:
        """Send what waits, if the collector is there."""
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)


@asynccontextmanager
async def traced(settings: Settings, role: str, instance: str) -> AsyncIterator[Traces]:
    """Traces until left."""
    traces = Traces(settings, role, instance)
    try:
        yield traces
    finally:
        await traces.close()
