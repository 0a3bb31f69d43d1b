"""The numbers of a process, readable in the text format of Prometheus.

Hot paths keep plain integers and ``Buckets`` and never call in here: what is registered is read when somebody asks.
A metric must be in ``CATALOGUE``, which has its name, meaning and labels; what is counted, this refuses to know.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from service.telemetry.catalogue import CATALOGUE, Declared, Kind

Labels = Mapping[str, str]
Read = Callable[[], float | Iterable[tuple[Labels, float]]]
"""The number as it is now, or one per set of labels. Labels are bounded: never an id of a session, group or call."""

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger(__name__)


class Buckets:
    """A histogram in plain integers. ``bounds`` ascend; a value counts in the first bucket that is not below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Hot path: about 0.15 µs."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


ReadBuckets = Callable[[], Buckets | Iterable[tuple[Labels, Buckets]]]


class Metrics:
    """What one process exports. ``role``: which rows of the catalogue it may register."""

    def __init__(self, role: str, *, catalogue: Sequence[Declared] = CATALOGUE) -> None:
        self.role = role
        self._declared = {one.name: one for one in catalogue if role in one.roles}
        self._registry = CollectorRegistry()
        self._registered: set[str] = set()
        ProcessCollector(registry=self._registry)

    def counter(self, name: str, read: Read) -> None:
        """What only grows since the process began. ``name`` as in the catalogue, with its ``_total``."""
        declared = self._claim(name, "counter")
        self._registry.register(_Reading(declared, lambda: _counted(declared, read())))

    def gauge(self, name: str, read: Read) -> None:
        """What goes up and down."""
        declared = self._claim(name, "gauge")
        self._registry.register(_Reading(declared, lambda: _gauged(declared, read())))

    def histogram(self, name: str, read: ReadBuckets) -> None:
        """How values spread, since the process began."""
        declared = self._claim(name, "histogram")
        self._registry.register(_Reading(declared, lambda: _spread(declared, read())))

    @property
    def missing(self) -> set[str]:
        """What the catalogue says of this role and nobody has registered."""
        return self._declared.keys() - self._registered

    def exposition(self) -> bytes:
        return generate_latest(self._registry)

    def _claim(self, name: str, kind: Kind) -> Declared:
        """Raises: ValueError, for a metric that the catalogue does not have so, and one that is registered twice."""
        declared = self._declared.get(name)
        if declared is None or declared.kind != kind:
            raise ValueError(f"{name} is no {kind} of a {self.role}: add it to service/telemetry/catalogue.py")
        if name in self._registered:
            raise ValueError(f"{name} is registered twice")
        self._registered.add(name)
        return declared


class _Reading(Collector):
    """One metric, read when asked for."""

    def __init__(self, declared: Declared, read: Callable[[], Metric]) -> None:
        self._declared = declared
        self._read = read

    def describe(self) -> list[Metric]:
        return []  # or registering would read it

    def collect(self) -> Iterator[Metric]:
        try:
            yield self._read()
        except Exception:  # noqa: BLE001  one number that cannot be read must not hide the others
            _log.exception("metric.unreadable", metric=self._declared.name)


def _each(now: float | Iterable[tuple[Labels, float]]) -> Iterable[tuple[Labels, float]]:
    return [({}, now)] if isinstance(now, int | float) else now


def _values(declared: Declared, labels: Labels) -> list[str]:
    return [labels[name] for name in declared.labels]


def _counted(declared: Declared, now: float | Iterable[tuple[Labels, float]]) -> Metric:
    family = CounterMetricFamily(declared.name, declared.meaning, labels=tuple(declared.labels))
    for labels, value in _each(now):
        family.add_metric(_values(declared, labels), value)
    return family


def _gauged(declared: Declared, now: float | Iterable[tuple[Labels, float]]) -> Metric:
    family = GaugeMetricFamily(declared.name, declared.meaning, labels=tuple(declared.labels))
    for labels, value in _each(now):
        family.add_metric(_values(declared, labels), value)
    return family


def _spread(declared: Declared, now: Buckets | Iterable[tuple[Labels, Buckets]]) -> Metric:
    family = HistogramMetricFamily(declared.name, declared.meaning, labels=tuple(declared.labels))
    for labels, buckets in [({}, now)] if isinstance(now, Buckets) else now:
        running, cumulative = 0, []
        for bound, count in zip((*buckets.bounds, float("inf")), buckets.counts, strict=True):
            running += count
            cumulative.append((_bound(bound), running))
        family.add_metric(_values(declared, labels), cumulative, buckets.total)
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else f"{bound:g}"
