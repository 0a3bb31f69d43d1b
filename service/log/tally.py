"""What became of the writes of one process, in plain integers: exported by its root, asked for by nobody else."""

from collections.abc import Iterator
from time import monotonic
from typing import Literal

from service.telemetry import Buckets

Kind = Literal["conditional", "unconditional"]
Resolved = Literal["stored", "not_stored", "unknown"]

KINDS: tuple[Kind, ...] = ("conditional", "unconditional")
RESOLVED: tuple[Resolved, ...] = ("stored", "not_stored", "unknown")
STORED, DUPLICATE = "stored", "duplicate"
UNKNOWN = "outcome_unknown"
# Counted from zero on: what appears with its first count has not increased, to Prometheus.
OUTCOMES = (
    *(STORED, DUPLICATE, UNKNOWN, "conflict", "log_unavailable", "log_overloaded", "log_full", "payload_too_large"),
    *("key_reused", "internal"),
)
LATENCY_S = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


class Tally:
    """Writes by kind: how long each took, what it ended as, and what became of those whose answer did not come.

    ``repeats_refused``: how often a command was not allowed to write again (see ``log.commands``).
    """

    def __init__(self) -> None:
        self.latency: dict[Kind, Buckets] = {kind: Buckets(LATENCY_S) for kind in KINDS}
        self._ended: dict[Kind, dict[str, int]] = {kind: dict.fromkeys(OUTCOMES, 0) for kind in KINDS}
        self._doubts: dict[tuple[Kind, Resolved], int] = {(kind, one): 0 for kind in KINDS for one in RESOLVED}
        self.repeats_refused = 0  # by the budget of a hub's commands

    def ended(self, kind: Kind, outcome: str, began_s: float, *, doubted: bool) -> None:
        """Hot path. ``outcome``: ``stored``, ``duplicate`` or the code of an error; ``began_s`` (monotonic)."""
        counts = self._ended[kind]
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome is STORED:
            self.latency[kind].add(monotonic() - began_s)
        if doubted:
            there = outcome in {STORED, DUPLICATE}
            resolved: Resolved = "stored" if there else "unknown" if outcome == UNKNOWN else "not_stored"
            self._doubts[kind, resolved] += 1

    def refused(self, code: str) -> None:
        """An unconditional write was not even taken in."""
        counts = self._ended["unconditional"]
        counts[code] = counts.get(code, 0) + 1

    def outcomes(self) -> Iterator[tuple[dict[str, str], int]]:
        for kind, counts in self._ended.items():
            for outcome, count in counts.items():
                yield {"kind": kind, "outcome": outcome}, count

    def conflicts(self) -> int:
        return self._ended["conditional"].get("conflict", 0)

    def doubts(self) -> Iterator[tuple[dict[str, str], int]]:
        for (kind, resolved), count in self._doubts.items():
            yield {"kind": kind, "resolved": resolved}, count

    def latencies(self) -> Iterator[tuple[dict[str, str], Buckets]]:
        for kind, buckets in self.latency.items():
            yield {"kind": kind}, buckets
