"""How much of what has come goes into one transaction: pure.

Owns the limits, and the rule that a checkpoint never stops inside an atomic batch of the log: readers would see half of
it.
"""

from collections.abc import Sequence

from events.envelope import Recorded

EVENTS_MAX = 5_000
BYTES_MAX = 8 * 1024 * 1024

_BATCH = b"Nats-Batch-Id:"
_COMMIT = b"Nats-Batch-Commit:"


def leading(events: Sequence[Recorded], events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> int:
    """How many of ``events``, from the first, make the next transaction.

    At most ``events_max`` and about ``bytes_max``, unless one atomic batch alone is more; 0 while the first atomic
    batch has not come as a whole.
    """
    whole = size = 0
    current: bytes | None = None
    for count, event in enumerate(events, start=1):
        batch = _batch(event.headers)
        if batch != current:
            whole = count - 1  # the one before ended here, even if nothing said so
        current = batch
        if batch is None or _COMMIT in event.headers:
            whole, current = count, None
        size += len(event.payload) + len(event.headers)
        if whole and (count >= events_max or size >= bytes_max):
            break
    return whole


def _batch(headers: bytes) -> bytes | None:
    start = headers.find(_BATCH)
    return None if start < 0 else headers[start : headers.find(b"\r\n", start)]
