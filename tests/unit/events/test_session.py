"""The session machine: given a state, when a command comes, then these events; and what every history has in common."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import codec, session
from events.errors import (
    NotResumable,
    Refused,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    TokenStale,
    TooManyGroups,
)
from events.ids import EventId
from events.session import (
    GROUP_NAMES_BYTES_MAX,
    GROUPS_MAX,
    INITIAL,
    Attach,
    Attached,
    Carried,
    Carry,
    Close,
    Closed,
    Command,
    Detach,
    Detached,
    Event,
    Join,
    Joined,
    Leave,
    LeaveAll,
    Left,
    Open,
    Opened,
    State,
    decide,
    evolve,
    settle,
)

TTL_US = 1_000_000
ANN = Open("n1", "i1", "c1", user="ann", metadata=msgspec.Raw(b'{"colour":"red"}'), resumable=True)
BOB = Open("n1", "i1", "c1", user="bob")
RESUME = Attach("n2", "i2", "c2", generation=1, now_us=0, ttl_us=TTL_US)
DROP = Detach("c1", "transport_error", last_seen_us=7)


def history(*commands: Command, state: State = INITIAL, first: int = 1) -> State:
    """The state after commands that all succeed, stored at 10, 20, 30 …, each at its sequence in milliseconds."""
    for number, command in enumerate(commands, first):
        (event,) = decide(state, command)
        state = settle(event, number * 10, number * 10_000)
    return state


NONE = INITIAL
ACTIVE = history(ANN, Join(("lobby", "den")))
PLAIN = history(BOB, Join(("lobby", "den")))
DETACHED = history(ANN, Join(("lobby", "den")), DROP)
CLOSED = history(ANN, Close("client"))

ALREADY: tuple[Event, ...] = ()

TABLE = [
    (NONE, ANN, Opened),
    (NONE, RESUME, SessionNotFound),
    (NONE, DROP, SessionNotFound),
    (NONE, Join(("a",)), SessionNotFound),
    (NONE, Leave(("a",)), SessionNotFound),
    (NONE, LeaveAll(), SessionNotFound),
    (NONE, Carry(), SessionNotFound),
    (NONE, Close("client"), SessionNotFound),
    (ACTIVE, ANN, SessionExists),
    (ACTIVE, RESUME, Attached),
    (ACTIVE, DROP, Detached),
    (ACTIVE, Detach("c9", "timeout", 7), ALREADY),
    (ACTIVE, Join(("a",)), Joined),
    (ACTIVE, Join(("lobby",)), ALREADY),
    (ACTIVE, Join(()), ALREADY),
    (ACTIVE, Leave(("lobby",)), Left),
    (ACTIVE, Leave(("a",)), ALREADY),
    (ACTIVE, LeaveAll(), Left),
    (ACTIVE, Carry(), Carried),
    (ACTIVE, Close("client"), Closed),
    (ACTIVE, Close("client", "c1"), Closed),
    (ACTIVE, Close("client", "c9"), ALREADY),
    (PLAIN, RESUME, NotResumable),
    (PLAIN, DROP, NotResumable),
    (PLAIN, Detach("c9", "timeout", 7), ALREADY),
    (DETACHED, ANN, SessionExists),
    (DETACHED, RESUME, Attached),
    (DETACHED, DROP, ALREADY),
    (DETACHED, Detach("c9", "timeout", 7), ALREADY),
    (DETACHED, Join(("a",)), Joined),
    (DETACHED, Join(("den", "lobby")), ALREADY),
    (DETACHED, Leave(("lobby",)), Left),
    (DETACHED, LeaveAll(), Left),
    (DETACHED, Carry(), Carried),
    (DETACHED, Close("expired"), Closed),
    (CLOSED, ANN, SessionExists),
    (CLOSED, RESUME, SessionClosed),
    (CLOSED, DROP, ALREADY),
    (CLOSED, Join(("a",)), SessionClosed),
    (CLOSED, Join(()), SessionClosed),
    (CLOSED, Leave(("a",)), ALREADY),
    (CLOSED, LeaveAll(), ALREADY),
    (CLOSED, Carry(), ALREADY),
    (CLOSED, Close("kicked"), ALREADY),
]


@pytest.mark.parametrize(
    ("state", "command", "then"), TABLE, ids=lambda value: getattr(value, "status", None) or type(value).__name__
)
def test_every_command_in_every_state(state, command, then):
    if then is ALREADY:
        assert decide(state, command) == ()
    elif issubclass(then, Refused):
        with pytest.raises(then):
            decide(state, command)
    else:
        (event,) = decide(state, command)
        assert isinstance(event, then)
        # What it carries leaves open only what the log will fill in.
        assert event.after == evolve(state, event, session.OPEN, session.OPEN)


def test_the_table_meets_every_command_in_every_state():
    commands = {Open, Attach, Detach, Join, Leave, LeaveAll, Carry, Close}
    for state in (NONE, ACTIVE, DETACHED, CLOSED):
        assert {type(command) for given_, command, _ in TABLE if given_ is state} == commands


def test_opened_is_the_first_attachment():
    (event,) = decide(INITIAL, ANN)
    assert event == Opened(
        after=event.after,
        user="ann",
        metadata=msgspec.Raw(b'{"colour":"red"}'),
        node="n1",
        incarnation="i1",
        connection="c1",
        resumable=True,
    )
    state = settle(event, 10, 1)
    assert (state.status, state.generation, state.opened, state.node, state.connection) == ("active", 1, 10, "n1", "c1")


def test_joining_several_groups_is_one_event_without_those_held_or_named_twice():
    (event,) = decide(ACTIVE, Join(("b", "lobby", "a", "b")))
    assert isinstance(event, Joined)
    assert event.groups == ("b", "a")
    assert settle(event, 30, 1).groups == {"lobby": 20, "den": 20, "b": 30, "a": 30}


def test_leaving_repeats_the_join_sequences_that_it_ends():
    state = history(ANN, Join(("lobby",)), Join(("den",)))
    (event,) = decide(state, Leave(("den", "elsewhere", "den", "lobby")))
    assert isinstance(event, Left)
    assert event.groups == {"den": 30, "lobby": 20}
    assert settle(event, 40, 1).groups == {}


def test_leaving_all_ends_exactly_what_is_held():
    (event,) = decide(ACTIVE, LeaveAll())
    assert isinstance(event, Left)
    assert event.groups == ACTIVE.groups
    assert decide(settle(event, 40, 1), LeaveAll()) == ()


def test_a_group_left_and_joined_again_begins_anew():
    state = history(ANN, Join(("lobby",)), Leave(("lobby",)), Join(("lobby",)))
    assert state.groups == {"lobby": 40}


def test_closing_leaves_every_group_and_says_who_held_the_session():
    (event,) = decide(ACTIVE, Close("kicked"))
    assert event == Closed(after=event.after, reason="kicked", connection="c1", groups={"lobby": 20, "den": 20})
    state = settle(event, 50, 1)
    assert (state.status, state.reason, state.groups, state.opened) == ("closed", "kicked", {}, 10)


def test_closing_a_detached_session_forgets_since_when_it_was():
    (event,) = decide(DETACHED, Close("expired"))
    assert settle(event, 50, 1).detached_since_us is None


def test_a_detached_session_keeps_its_groups_and_knows_since_when_by_the_brokers_clock():
    assert DETACHED.groups == {"lobby": 20, "den": 20}
    assert DETACHED.detached_since_us == 30_000
    later = history(Join(("a",)), state=DETACHED, first=4)
    assert later.detached_since_us == 30_000


def test_detaching_says_when_the_connection_was_last_seen_and_where_to_go_back_to():
    (event,) = decide(ACTIVE, Detach("c1", "hole", last_seen_us=7, rewind=5))
    assert event == Detached(after=event.after, connection="c1", reason="hole", last_seen_us=7, rewind=5)


def test_a_resume_takes_over_and_hands_out_the_next_generation():
    for state in (ACTIVE, DETACHED):
        (event,) = decide(state, RESUME)
        assert event == Attached(after=event.after, node="n2", incarnation="i2", connection="c2", generation=2)
        after = settle(event, 60, 1)
        assert (after.status, after.connection, after.generation, after.detached_since_us) == ("active", "c2", 2, None)
        assert after.groups == state.groups


def test_a_token_whose_successor_was_lost_still_works_and_gives_that_successor_again():
    state = history(ANN, RESUME)
    (event,) = decide(state, msgspec.structs.replace(RESUME, connection="c3"))
    assert isinstance(event, Attached)
    assert event.generation == 2


@pytest.mark.parametrize("generation", [0, 1, 4])
def test_other_generations_are_stale(generation):
    state = history(ANN, RESUME, msgspec.structs.replace(RESUME, connection="c3", generation=2))
    with pytest.raises(TokenStale):
        decide(state, msgspec.structs.replace(RESUME, connection="c4", generation=generation))


def test_generation_0_was_never_given_out():
    with pytest.raises(TokenStale):
        decide(ACTIVE, msgspec.structs.replace(RESUME, generation=0))


def test_the_old_connection_cannot_end_what_the_new_one_holds():
    state = history(ANN, RESUME)
    assert decide(state, Detach("c1", "timeout", 7)) == ()
    assert decide(state, Close("client", "c1")) == ()
    assert len(decide(state, Close("client", "c2"))) == 1


def test_an_overdue_session_is_closed_by_whoever_comes_for_it():
    in_time = msgspec.structs.replace(RESUME, now_us=30_000 + TTL_US)
    assert isinstance(decide(DETACHED, in_time)[0], Attached)
    (event,) = decide(DETACHED, msgspec.structs.replace(RESUME, now_us=30_000 + TTL_US + 1))
    assert event == Closed(after=event.after, reason="expired", connection="c1", groups=DETACHED.groups)


def test_an_attached_session_is_never_overdue():
    assert isinstance(decide(ACTIVE, msgspec.structs.replace(RESUME, now_us=1 << 60))[0], Attached)


def test_exactly_128_groups():
    full = history(ANN, Join(tuple(f"g{number}" for number in range(GROUPS_MAX))))
    assert len(full.groups) == GROUPS_MAX == 128
    with pytest.raises(TooManyGroups):
        decide(full, Join(("one more",)))
    # Those held are not counted again, and a place that was left is free.
    assert decide(full, Join(("g0", "g1"))) == ()
    assert len(decide(history(Leave(("g0",)), state=full), Join(("one more",)))) == 1


def test_all_or_none_of_the_groups_are_joined():
    state = history(ANN, Join(tuple(f"g{number}" for number in range(GROUPS_MAX - 1))))
    with pytest.raises(TooManyGroups):
        decide(state, Join(("a", "b")))
    assert len(decide(state, Join(("a",)))) == 1


def test_exactly_8_KiB_of_names_in_bytes_not_characters():  # noqa: N802
    names = tuple(f"{number:02}" + "é" * 127 for number in range(32))
    assert sum(len(name.encode()) for name in names) == GROUP_NAMES_BYTES_MAX == 8 * 1024
    full = history(ANN, Join(names))
    with pytest.raises(TooManyGroups):
        decide(full, Join(("x",)))
    with pytest.raises(TooManyGroups):
        decide(history(ANN), Join((*names, "x")))


# ---- whatever happens

groups = st.lists(st.sampled_from(["a", "b", "c", "d.e", "ü", "🎈"]), max_size=4).map(tuple)
connections = st.sampled_from(["c1", "c2", "c3"])
openings = st.builds(
    Open,
    node=st.just("n"),
    incarnation=st.just("i"),
    connection=connections,
    user=st.sampled_from([None, "ann"]),
    metadata=st.sampled_from([msgspec.Raw(b"null"), msgspec.Raw(b'{"a": [1.50, "\\u0000"]}')]),
    resumable=st.booleans(),
)
commands: st.SearchStrategy[Command] = st.one_of(
    openings,
    st.builds(
        Attach,
        node=st.just("n2"),
        incarnation=st.just("i2"),
        connection=connections,
        generation=st.integers(0, 4),
        now_us=st.integers(0, 10_000),
        ttl_us=st.integers(1, 5_000),
    ),
    st.builds(
        Detach,
        connection=connections,
        reason=st.sampled_from(["transport_error", "hole"]),
        last_seen_us=st.integers(0, 10_000),
        rewind=st.none() | st.integers(1, 100),
    ),
    st.builds(Join, groups),
    st.builds(Leave, groups),
    st.builds(LeaveAll),
    st.builds(Carry),
    st.builds(Close, reason=st.sampled_from(["client", "kicked"]), connection=st.none() | connections),
)
steps = st.lists(st.tuples(commands, st.integers(1, 5), st.integers(1, 5_000)), max_size=25)


def live(opened: Open, then: list[tuple[Command, int, int]]) -> list[tuple[State, Command, Event, int, int]]:
    """Every event of a history: the state before, the command, the event, its sequence and the broker's time."""
    written: list[tuple[State, Command, Event, int, int]] = []
    state, sequence, now_us = INITIAL, 0, 0
    for command, gap, pause_us in [(opened, 1, 1), *then]:
        try:
            events = decide(state, command)
        except Refused:
            continue
        for event in events:
            sequence, now_us = sequence + gap, now_us + pause_us
            written.append((state, command, event, sequence, now_us))
            state = settle(event, sequence, now_us)
    return written


@settings(max_examples=150, deadline=None)
@given(openings, steps)
def test_what_an_event_carries_is_what_the_fold_of_the_history_gives(opened, then):
    folded = INITIAL
    for _, _, event, sequence, now_us in live(opened, then):
        new = codec.encode(event, id=EventId("e"), at="2026-11-21T10:00:00.000000Z", actor="session:x")
        _, read = codec.decode(new.payload)
        assert read == event
        folded = evolve(folded, read, sequence, now_us)
        assert settle(read, sequence, now_us) == folded


@settings(max_examples=150, deadline=None)
@given(openings, steps)
def test_a_repeated_command_writes_nothing(opened, then):
    for state, command, event, sequence, now_us in live(opened, then):
        if isinstance(command, Carry):
            continue  # carries each time it is told to; who tells it looks at the age first
        after = settle(event, sequence, now_us)
        try:
            assert decide(after, command) == ()
        except SessionExists:
            assert isinstance(command, Open)
        except SessionClosed:
            assert isinstance(command, Attach)
            assert isinstance(event, Closed)
        assert after != state


@settings(max_examples=60, deadline=None)
@given(openings, steps)
def test_a_history_opens_once_and_ends_once(opened, then):
    kinds = [type(event) for _, _, event, _, _ in live(opened, then)]
    assert kinds[0] is Opened
    assert kinds.count(Opened) == 1
    assert Closed not in kinds[:-1]


@settings(max_examples=60, deadline=None)
@given(openings, steps)
def test_every_join_sequence_is_of_a_joined_that_names_the_group(opened, then):
    joined: dict[int, tuple[str, ...]] = {}
    for _, _, event, sequence, now_us in live(opened, then):
        if isinstance(event, Joined):
            joined[sequence] = event.groups
        ended = event.groups if isinstance(event, Left | Closed) else {}
        for group, at in {**settle(event, sequence, now_us).groups, **ended}.items():
            assert group in joined[at]
