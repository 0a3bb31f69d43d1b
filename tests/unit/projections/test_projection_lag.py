"""How far behind a projector says it is, whatever it can see just now."""

import time

from events.ids import Epoch
from projections.checkpoint import Checkpoint
from projections.runner import Projector
from service.log.memory import MemoryEventLog


def at(sequence: int) -> Checkpoint:
    return Checkpoint(0, Epoch("mema"), sequence, b"")


async def test_it_is_level_until_the_log_is_seen_to_go_on() -> None:
    projector = Projector("", MemoryEventLog(), 0)
    assert (projector.lag, projector.lag_s) == (0, 0.0)
    projector.checkpoint = at(5)
    projector.noticed(5)
    assert (projector.lag, projector.lag_s) == (0, 0.0)
    projector.noticed(8)
    assert projector.lag == 3
    assert 0.0 <= projector.lag_s < 5.0


async def test_without_postgres_the_lag_grows_from_when_it_was_last_level() -> None:
    projector = Projector("", MemoryEventLog(), 0)
    projector.checkpoint = at(5)
    projector.noticed(6)
    projector._level_at_s = time.time() - 600
    projector._stored_at_s = time.time() - 700
    projector.noticed(9)  # seen by who watches the log, not by following it
    assert projector.lag == 4
    assert 600 <= projector.lag_s < 610


async def test_under_steady_traffic_it_is_as_old_as_the_last_event_in_the_rows() -> None:
    projector = Projector("", MemoryEventLog(), 0)
    projector.noticed(9)
    projector.checkpoint = at(5)
    projector._level_at_s = time.time() - 3_600  # it was never seen level since
    projector._stored_at_s = time.time() - 2
    assert 2 <= projector.lag_s < 7


async def test_the_log_is_never_seen_to_shrink() -> None:
    projector = Projector("", MemoryEventLog(), 0)
    projector.noticed(9)
    projector.noticed(7)
    assert projector.log_last == 9
