"""NATS, watched: its circuit, and what ``/readyz`` says of it.

Readiness looks at what the probe found last, and asks nobody itself: however often it is called, it costs NATS nothing.
"""

import time
from collections.abc import Coroutine, Mapping
from typing import Any

from service.admin import Check
from service.breaker import STATES, Breaker, keep
from service.log.guarded import GuardedLog
from service.log.jetstream import JetStreamLog
from service.telemetry import Metrics


class NatsHealth:
    """The circuit of NATS; ``guarded`` is the log for commands."""

    def __init__(self, log: JetStreamLog) -> None:
        self.breaker = Breaker("nats")
        self.breaker.on_open = log.refuse_waiting
        self.guarded = GuardedLog(log, self.breaker)
        self._log = log

    def job(self) -> Coroutine[Any, Any, None]:
        return keep(self.breaker, self._log.probe)

    def checks(self) -> Mapping[str, Check]:
        return {"nats": self._check}

    def _check(self) -> str | None:
        if not self._log.connected:
            return "not connected to NATS (HUBLOG_NATS_URL)"
        why = self.breaker.why(time.monotonic())
        return None if why is None else f"connected to NATS (HUBLOG_NATS_URL), but {why}"


def circuits(*breakers: Breaker) -> dict[str, object]:
    """For ``/readyz``: each by its state."""
    return {"circuits": {one.name: one.state for one in breakers}}


def measure_circuits(metrics: Metrics, *breakers: Breaker) -> None:
    """Numbers that are kept anyway, made readable."""
    labels = [(one, {"circuit": one.name}) for one in breakers]
    metrics.gauge(
        "hublog_circuit_state",
        lambda: [({**by, "state": state}, int(one.state == state)) for one, by in labels for state in STATES],
    )
    metrics.counter("hublog_circuit_opened_total", lambda: [(by, one.opened) for one, by in labels])
    metrics.counter("hublog_circuit_refused_total", lambda: [(by, one.refused) for one, by in labels])
