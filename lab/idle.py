"""What sleeping cores cost: how late this machine wakes up for a timer, and a way to keep its cores awake.

At a low rate a message waits more for cores that must be woken than for code, and a virtual machine wakes by way of its
host. So a latency says little without this figure beside it.
"""

import contextlib
import os
import time
from array import array
from collections.abc import Iterator

import msgspec

from lab.ledger import percentile
from lab.pacer import open_timer

LATENCY_DEVICE = "/dev/cpu_dma_latency"
"""Whoever holds it open with a zero in it keeps the kernel from putting idle cores to sleep (Linux, PM QoS)."""
BEATS = 500
INTERVAL_NS = 1_000_000


class StaysAsleep(Exception):
    """The cores cannot be kept awake; the text says why, and what to do."""


class Waking(msgspec.Struct, frozen=True):
    """How long after a timer was due the process that slept for it ran, on an otherwise idle machine."""

    p50_us: float
    p99_us: float
    kept_awake: bool


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """While inside, idle cores spin instead of sleeping. Raises: StaysAsleep."""
    try:
        device = os.open(LATENCY_DEVICE, os.O_WRONLY)
    except OSError as exc:
        raise StaysAsleep(
            f"idle cores cannot be kept awake: {LATENCY_DEVICE}: {exc.strerror}; run as root, or without --awake"
        ) from exc
    try:
        os.write(device, bytes(4))
        yield
    finally:
        os.close(device)


def waking(*, kept_awake: bool, beats: int = BEATS) -> Waking:
    """Sleeps for ``beats`` milliseconds, one at a time. Blocks."""
    late = array("q")
    due = time.monotonic_ns()
    timer = open_timer(INTERVAL_NS, due + INTERVAL_NS)
    try:
        while len(late) < beats:
            due += int.from_bytes(os.read(timer, 8), "little") * INTERVAL_NS
            late.append(time.monotonic_ns() - due)
    finally:
        os.close(timer)
    return Waking(percentile(late, 50) / 1e3, percentile(late, 99) / 1e3, kept_awake)
