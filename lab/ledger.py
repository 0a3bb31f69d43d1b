"""Who received what, how often, in which order and how late.

Owns the counting of one run. Pure: times are arguments. It refuses to know sockets.
"""

import math
from array import array

import msgspec


class Tally(msgspec.Struct, frozen=True):
    """What became of all deliveries that were due."""

    expected: int
    delivered: int
    lost: int
    duplicated: int
    out_of_order: int


class Ledger:
    """Counts deliveries of messages 0 … ``messages`` - 1 to receivers 0 … ``receivers`` - 1."""

    __slots__ = ("_last", "_seen", "delays_ns", "deliveries", "measured_from", "messages", "out_of_order", "receivers")

    def __init__(self, receivers: int, messages: int, measured_from: int = 0) -> None:
        """Delays of messages below ``measured_from`` are not kept: they are the warm-up. They still must arrive."""
        self.receivers = receivers
        self.messages = messages
        self.measured_from = measured_from
        self.deliveries = 0
        self.out_of_order = 0
        self.delays_ns = array("q")
        self._seen = [bytearray(messages) for _ in range(receivers)]
        self._last = [-1] * receivers

    def note(self, receiver: int, message: int, delay_ns: int) -> None:
        """One delivery. Hot path: called once for each."""
        seen = self._seen[receiver]
        if seen[message] < 255:
            seen[message] += 1
        if message <= self._last[receiver]:
            # A duplicate is counted as one; only a first copy behind a later message is out of order.
            self.out_of_order += seen[message] == 1
        else:
            self._last[receiver] = message
        self.deliveries += 1
        if message >= self.measured_from:
            self.delays_ns.append(delay_ns)

    @property
    def complete(self) -> bool:
        return self.deliveries >= self.receivers * self.messages

    def received(self, receiver: int) -> int:
        """How many different messages this receiver has."""
        seen = self._seen[receiver]
        return self.messages - seen.count(0)

    def tally(self, messages: int | None = None) -> Tally:
        """The outcome, if only the first ``messages`` were really sent."""
        sent = self.messages if messages is None else messages
        lost = sum(seen[:sent].count(0) for seen in self._seen)
        distinct = sum(sent - seen[:sent].count(0) for seen in self._seen)
        return Tally(self.receivers * sent, self.deliveries, lost, self.deliveries - distinct, self.out_of_order)


def percentile_ms(values_ns: "array[int]", percent: float) -> float | None:
    """The nearest-rank percentile in milliseconds; None of nothing."""
    return percentile(values_ns, percent) / 1e6 if values_ns else None


def percentile(values: "array[int]", percent: float) -> int:
    """The nearest-rank percentile, of one value at least."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]
