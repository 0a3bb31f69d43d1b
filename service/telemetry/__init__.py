"""What a process tells of itself: log lines, numbers, traces. It refuses to know who counts what, and why."""

from service.telemetry.logs import configure_logging
from service.telemetry.metrics import EXPOSITION_TYPE, Buckets, Metrics

__all__ = ["EXPOSITION_TYPE", "Buckets", "Metrics", "configure_logging"]
