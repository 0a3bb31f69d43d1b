"""Logs and metrics of a process.

Owns how log lines look (JSON outside a terminal, coloured on one) and how numbers are exported. Hot paths keep plain
integers and never call in here: an OpenTelemetry counter costs 3 µs, an ``int`` nothing, so instruments *observe*. It
refuses to know what is counted.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

import structlog
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

Read = Callable[[], float | Iterable[tuple[Mapping[str, str], float]]]
"""The number as it is now, or one per set of labels. Labels are bounded: never an id of a session, group or call."""

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def configure_logging(level: str, *, process: str, stream: TextIO | None = None) -> None:
    """From here on ``structlog.get_logger()`` and ``logging`` write to ``stream`` (standard error), one line each."""
    output = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _name_process(process),
    ]
    if output.isatty():
        rendering: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    else:
        rendering = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(sort_keys=False)]
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    # Libraries are heard when something is wrong; what they do otherwise is their own business.
    logging.basicConfig(level=max(numeric, logging.WARNING), handlers=[handler], force=True)
    # It tells of every attempt while Postgres is away; whoever asked says it once.
    logging.getLogger("psycopg").setLevel(logging.ERROR)


def _name_process(process: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    return add


class Metrics:
    """The numbers of one process, readable in the text format of Prometheus."""

    def __init__(self, role: str, instance: str) -> None:
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        self._provider = MeterProvider(
            metric_readers=[reader],
            resource=Resource({"service.name": f"hublog-{role}", "service.instance.id": instance}),
            shutdown_on_exit=False,
        )
        self._meter = self._provider.get_meter("hublog")

    def counter(self, name: str, description: str, read: Read, unit: str = "") -> None:
        """What only grows: exported as ``<name>_total``."""
        self._meter.create_observable_counter(name, [_observe(read)], unit, description)

    def gauge(self, name: str, description: str, read: Read, unit: str = "") -> None:
        """What goes up and down."""
        self._meter.create_observable_gauge(name, [_observe(read)], unit, description)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def shutdown(self) -> None:
        self._provider.shutdown()


def _observe(read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        now = read()
        if isinstance(now, int | float):
            return [Observation(now)]
        return [Observation(value, dict(labels)) for labels, value in now]

    return observe
