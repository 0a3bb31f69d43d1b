"""What is known here: always the newest state seen, of what is attached here, and its index by group."""

from hypothesis import given
from hypothesis import strategies as st

from events import session
from events.ids import SessionId
from service.log.commands import Known
from service.sessions.local import LocalSessions


def known(sequence: int, *groups: str, status: session.Status = "active") -> Known[session.State]:
    return Known(session.State(status=status, groups=dict.fromkeys(groups, 1)), sequence)


ANN, BOB = SessionId("ann"), SessionId("bob")


def test_the_newest_state_wins_in_whatever_order_it_is_learned():
    local = LocalSessions()
    local.learn(ANN, known(5, "g"))
    local.learn(ANN, known(3, "h"))
    local.learn(ANN, known(5, "i"))
    assert local.get(ANN) == known(5, "g")
    assert (local.members("g"), local.members("h")) == ((ANN,), ())
    local.learn(ANN, known(6, "h"))
    assert (local.members("g"), local.members("h")) == ((), (ANN,))


def test_members_of_a_group_are_those_attached_here():
    local = LocalSessions()
    local.learn(ANN, known(1, "g", "h"))
    local.learn(BOB, known(2, "g"))
    assert set(local.members("g")) == {ANN, BOB}
    assert local.ids() == (ANN, BOB)
    local.learn(ANN, known(3, status="closed"))
    assert (local.members("g"), local.members("h"), local.ids()) == ((BOB,), (), (BOB,))
    local.learn(BOB, known(4, "g", status="detached"))
    assert (local.members("g"), local.ids(), len(local)) == ((), (), 0)


def test_forgetting_twice_or_a_stranger_is_nothing():
    local = LocalSessions()
    local.learn(ANN, known(1, "g"))
    for _ in range(2):
        local.forget(ANN)
    local.forget(BOB)
    assert (local.get(ANN), local.members("g"), len(local)) == (None, (), 0)


groups = st.sets(st.sampled_from("ghi")).map(sorted)
events = st.tuples(
    st.sampled_from([ANN, BOB]),
    st.integers(1, 20),
    groups,
    st.sampled_from(["active", "active", "active", "detached", "closed", "forget"]),
)


@given(st.lists(events, max_size=40))
def test_the_index_by_group_is_what_the_states_say(history):
    local = LocalSessions()
    for session_id, sequence, names, status in history:
        if status == "forget":
            local.forget(session_id)
        else:
            local.learn(session_id, known(sequence, *(() if status == "closed" else names), status=status))
        for group in "ghi":
            found = {each for each in local.ids() if group in local.get(each).state.groups}  # type: ignore[union-attr]
            assert set(local.members(group)) == found
        assert all(local._groups.values())
