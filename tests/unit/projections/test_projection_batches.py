"""A transaction takes what has come, within limits, and never stops inside an atomic batch."""

from hypothesis import given
from hypothesis import strategies as st

from events.envelope import Recorded
from projections.batches import leading

BATCHES = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12)


def events(batches: list[tuple[int, bool]]) -> list[Recorded]:
    """Runs of events: alone, or atomic with a commit on the last."""
    made: list[Recorded] = []
    for number, (size, atomic) in enumerate(batches):
        for place in range(1, size + 1):
            lines = [f"Nats-Batch-Id: {number}", f"Nats-Batch-Sequence: {place}"] if atomic else []
            lines += ["Nats-Batch-Commit: 1"] if atomic and place == size else []
            headers = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
            made.append(Recorded("ev.0.chat.all", len(made) + 1, 0, b"12345678", headers))
    return made


def ends(batches: list[tuple[int, bool]]) -> set[int]:
    """After how many events one may stop."""
    found, count = {0}, 0
    for size, atomic in batches:
        found |= {count + size} if atomic else {count + place for place in range(1, size + 1)}
        count += size
    return found


@given(batches=BATCHES, events_max=st.integers(1, 10))
def test_everything_is_taken_once_and_never_half_a_batch(batches: list[tuple[int, bool]], events_max: int) -> None:
    waiting, taken = events(batches), 0
    while waiting:
        count = leading(waiting, events_max)
        assert 0 < count <= events_max + 3
        taken += count
        assert taken in ends(batches)
        waiting = waiting[count:]


@given(batches=BATCHES, come=st.integers(0, 48))
def test_an_atomic_batch_that_has_not_come_as_a_whole_waits(batches: list[tuple[int, bool]], come: int) -> None:
    assert leading(events(batches)[:come]) == max(end for end in ends(batches) if end <= come)


def test_bytes_are_bounded_too() -> None:
    some = events([(10, False)])
    size = len(some[0].payload) + len(some[0].headers)
    assert leading(some, bytes_max=3 * size) == 3
    assert leading(events([(4, True), (4, False)]), bytes_max=1) == 4


def test_a_batch_whose_end_is_not_marked_ends_where_another_begins() -> None:
    first, second = events([(2, True), (1, True)])[:1], events([(1, True), (2, True)])[1:]
    assert leading(first + second) == 3
    assert leading(first + second[:1]) == 1
