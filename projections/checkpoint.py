"""How far a partition is projected: read, made, and moved only from where it was expected to be.

Owns the ``checkpoints`` table. A checkpoint names the last event in the rows by sequence, epoch and hash, so that
another log, or a shorter one, cannot be mistaken for the one that was read. Whoever waits for a position hears of every
move that was committed.
"""

import hashlib
from typing import Any, LiteralString

import msgspec
import psycopg

from events.envelope import Recorded
from events.ids import Epoch

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

CHANNEL: LiteralString = "hublog_projected"


class Checkpoint(msgspec.Struct, frozen=True):
    """``sequence`` 0 with an empty ``hash``: nothing was projected yet."""

    partition: int
    epoch: Epoch
    sequence: int = 0
    hash: bytes = b""


_MAKE: LiteralString = """
INSERT INTO checkpoints (partition, epoch, sequence, hash, as_of)
VALUES (%s, %s, 0, '', to_timestamp(0)) ON CONFLICT (partition) DO NOTHING"""
_LOAD: LiteralString = "SELECT partition, epoch, sequence, hash FROM checkpoints WHERE partition = %s"
# With it goes what depends on it alone: how far ``event_log`` has come, and the notice, which Postgres keeps back until
# the transaction is committed.
_MOVE: LiteralString = f"""
UPDATE checkpoints c SET sequence = %(to)s, hash = %(hash)s,
    as_of = greatest(as_of, timestamptz 'epoch' + %(stored_at)s * interval '1 microsecond')
WHERE partition = %(partition)s AND epoch = %(epoch)s AND sequence = %(expected)s AND hash = %(expected_hash)s
RETURNING (SELECT coalesce(max(l.seq), 0) FROM event_log l WHERE l.partition = c.partition),
          pg_notify('{CHANNEL}', concat_ws(' ', c.partition, c.sequence))"""
_CONFIRM: LiteralString = """
UPDATE checkpoints SET as_of = greatest(as_of, now() - %s * interval '1 second')
WHERE partition = %s AND epoch = %s AND sequence = %s"""


def digest(event: Recorded) -> bytes:
    """What tells an event from any other: SHA-256 of its subject and payload."""
    return hashlib.sha256(event.subject.encode() + b"\0" + event.payload).digest()


async def load(connection: Connection, partition: int, epoch: Epoch) -> Checkpoint:
    """The checkpoint of a partition, made at sequence 0 of ``epoch`` if there is none."""
    found = await (await connection.execute(_LOAD, (partition,))).fetchone()
    if found is None:
        await connection.execute(_MAKE, (partition, epoch))
        found = await (await connection.execute(_LOAD, (partition,))).fetchone()
        assert found is not None
    return Checkpoint(found[0], Epoch(found[1]), found[2], found[3])


async def move(connection: Connection, expected: Checkpoint, last: Recorded) -> tuple[Checkpoint, int] | None:
    """Inside a transaction: move to ``last``, and hold others off until it ends. None: it was not at ``expected``.

    Answers where it is now, and the last sequence of the partition in ``event_log``.
    """
    target = Checkpoint(expected.partition, expected.epoch, last.sequence, digest(last))
    values = {
        "partition": expected.partition,
        "epoch": expected.epoch,
        "expected": expected.sequence,
        "expected_hash": expected.hash,
        "to": target.sequence,
        "hash": target.hash,
        "stored_at": last.stored_at_us,
    }
    found = await (await connection.execute(_MOVE, values)).fetchone()
    return None if found is None else (target, found[0])


async def confirm(connection: Connection, checkpoint: Checkpoint, since_s: float) -> None:
    """The log was seen to hold nothing beyond the checkpoint, ``since_s`` ago: so the rows are as of then."""
    values = (since_s, checkpoint.partition, checkpoint.epoch, checkpoint.sequence)
    await connection.execute(_CONFIRM, values)
