"""Log lines: JSON outside a terminal, coloured on one. Owns how they look, and refuses to know what is worth saying."""

import logging
import sys
from typing import TextIO

import structlog

from events import trace
from service.telemetry.tracing import CURRENT


def configure_logging(level: str, *, process: str, stream: TextIO | None = None) -> None:
    """From here on ``structlog.get_logger()`` and ``logging`` write to ``stream`` (standard error), one line each."""
    output = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _name_process(process),
        _name_trace,
    ]
    if output.isatty():
        plain = structlog.dev.plain_traceback
        rendering: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        # Without the values of variables, which structlog adds by default: among them are tokens and payloads.
        traces = structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        )
        rendering = [traces, structlog.processors.JSONRenderer(sort_keys=False)]
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
    # Likewise while the collector of traces is away.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def _name_trace(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What is said within a traced command names its trace."""
    traceparent = CURRENT.get()
    if traceparent is not None:
        event["trace_id"] = trace.trace_id(traceparent)
    return event


def _name_process(process: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    return add
