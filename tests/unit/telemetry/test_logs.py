"""Log lines: a failure is told with its trace and without the values of variables."""

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from service.telemetry import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Logging is the process's: what a test configures ends with it."""
    root = logging.getLogger()
    handlers, level, psycopg = root.handlers[:], root.level, logging.getLogger("psycopg").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("psycopg").setLevel(psycopg)
    structlog.reset_defaults()


def fail() -> None:
    token = "-".join(["eyJ", "secret"])
    raise RuntimeError(f"failed with {len(token)} characters")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_trace_shows_no_variables(stream: io.StringIO) -> None:
    configure_logging("info", process="test", stream=stream)
    try:
        fail()
    except RuntimeError:
        structlog.get_logger("ours").exception("it.failed")
        logging.getLogger("a library").exception("it failed")
    said = stream.getvalue()
    assert said.count("failed with 10 characters") >= 2
    assert said.count("fail") >= 4
    assert "eyJ-secret" not in said


def test_outside_a_terminal_each_line_is_one_object() -> None:
    stream = io.StringIO()
    configure_logging("info", process="test", stream=stream)
    try:
        fail()
    except RuntimeError:
        structlog.get_logger("ours").exception("it.failed", code="internal")
    (line,) = stream.getvalue().splitlines()
    found = msgspec.json.decode(line)
    assert (found["event"], found["level"], found["process"], found["code"]) == (
        "it.failed",
        "error",
        "test",
        "internal",
    )
    (trace,) = found["exception"]
    assert trace["exc_type"] == "RuntimeError"
    assert [frame["name"] for frame in trace["frames"]][-1] == "fail"
