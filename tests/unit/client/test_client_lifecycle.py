"""The client's state machine, and the pauses between its attempts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hublog.backoff import delay_s
from hublog.lifecycle import Event, IllegalTransition, State, after


def path(*events: Event) -> list[State]:
    states = [State.DISCONNECTED]
    for event in events:
        states.append(after(states[-1], event))
    return states[1:]


def test_a_life_with_a_lost_connection() -> None:
    assert path(Event.START, Event.LOST, Event.OPENED, Event.LOST, Event.LOST, Event.OPENED, Event.STOPPED) == [
        State.CONNECTING,
        State.CONNECTING,
        State.ACTIVE,
        State.RECONNECTING,
        State.RECONNECTING,
        State.ACTIVE,
        State.CLOSED,
    ]


@pytest.mark.parametrize("event", [Event.REFUSED, Event.STOPPED])
@pytest.mark.parametrize("state", [state for state in State if state is not State.DISCONNECTED])
def test_the_service_and_the_user_can_end_it_at_any_time(state: State, event: Event) -> None:
    assert after(state, event) is State.CLOSED


@pytest.mark.parametrize("event", [Event.START, Event.OPENED, Event.LOST])
def test_nothing_leaves_closed(event: Event) -> None:
    with pytest.raises(IllegalTransition, match=f"{event.value} while closed"):
        after(State.CLOSED, event)


@given(st.lists(st.sampled_from(Event)))
def test_any_legal_history_is_active_only_right_after_opened(events: list[Event]) -> None:
    state = State.DISCONNECTED
    for event in events:
        try:
            state = after(state, event)
        except IllegalTransition:
            continue
        assert (state is State.ACTIVE) == (event is Event.OPENED)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_spread_over_all_of_their_range_and_bounded(attempt: int, uniform: float) -> None:
    pause_s = delay_s(attempt, uniform, first_s=0.25, longest_s=10.0)
    assert pause_s == uniform * min(10.0, 0.25 * 2 ** min(attempt, 20))
    assert 0 <= pause_s < 10.0
