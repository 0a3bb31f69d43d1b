"""What is known of the projector's transactions beside their rows: how late they were, and the traces they end."""

import time
from collections.abc import Sequence

from events import trace
from events.envelope import Recorded
from service.telemetry import Buckets
from service.telemetry.tracing import Attributes, Tracing

DELAY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Batches:
    """The transactions of one partition."""

    def __init__(self, partition: int, tracing: Tracing) -> None:
        self.partition = partition
        self.delay = Buckets(DELAY_S)
        self._tracing = tracing

    def written(self, events: Sequence[Recorded], began_ns: int) -> None:
        """One transaction is committed. One measurement for all of it; spans only for events that are traced."""
        self.delay.add(max(0.0, time.time() - events[0].stored_at_us / 1e6))
        if not self._tracing.on:
            return
        for event in events:
            traceparent = trace.of(event.headers)
            if traceparent is not None:
                self._project(event, traceparent, began_ns, len(events))

    def _project(self, event: Recorded, traceparent: str, began_ns: int, events: int) -> None:
        attributes: Attributes = {
            "hublog.subject": event.subject,
            "hublog.sequence": event.sequence,
            "hublog.partition": self.partition,
            "hublog.batch_events": events,
        }
        span = self._tracing.child("project", "consumer", traceparent, attributes, began_ns)
        if span is not None:
            span.end()
