"""Counting deliveries: what is lost, doubled or out of order is seen, each as what it is."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from lab.ledger import Ledger, percentile_ms


def filled(arrivals: list[tuple[int, int]], receivers: int = 2, messages: int = 3) -> Ledger:
    ledger = Ledger(receivers, messages, measured_from=1)
    for receiver, message in arrivals:
        ledger.note(receiver, message, 1000 * message)
    return ledger


def test_all_once_and_in_order_is_clean():
    ledger = filled([(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2)])
    tally = ledger.tally()
    assert (tally.expected, tally.delivered) == (6, 6)
    assert (tally.lost, tally.duplicated, tally.out_of_order) == (0, 0, 0)
    assert ledger.complete


def test_the_warm_up_must_arrive_but_is_not_timed():
    assert list(filled([(0, 0), (0, 1), (0, 2)], receivers=1).delays_ns) == [1000, 2000]


def test_a_missing_message_is_lost():
    tally = filled([(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]).tally()
    assert (tally.lost, tally.duplicated, tally.out_of_order) == (1, 0, 0)


def test_a_second_copy_is_a_duplicate_and_not_out_of_order():
    tally = filled([(0, 0), (0, 1), (0, 0), (0, 2)], receivers=1).tally()
    assert (tally.lost, tally.duplicated, tally.out_of_order) == (0, 1, 0)


def test_a_late_first_copy_is_out_of_order_and_not_lost():
    tally = filled([(0, 1), (0, 0), (0, 2)], receivers=1).tally()
    assert (tally.lost, tally.duplicated, tally.out_of_order) == (0, 0, 1)


def test_what_was_never_sent_is_not_lost():
    tally = filled([(0, 0), (1, 0)]).tally(messages=1)
    assert (tally.expected, tally.lost) == (2, 0)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_every_arrival_is_counted_once(messages: list[int]):
    tally = filled([(0, message) for message in messages], receivers=1, messages=10).tally()
    assert tally.delivered == len(messages)
    assert tally.lost == 10 - len(set(messages))
    assert tally.duplicated == len(messages) - len(set(messages))


def test_percentiles_are_by_nearest_rank():
    values = array("q", (n * 1_000_000 for n in range(100, 0, -1)))
    assert (percentile_ms(values, 50), percentile_ms(values, 99), percentile_ms(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile_ms(array("q", [7_000_000]), 50) == 7.0
    assert percentile_ms(array("q"), 50) is None
