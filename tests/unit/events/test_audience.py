"""Who must receive what: the function of the log against a naive simulation of rooms full of people."""

from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events import codec, invocation, selector, session
from events.audience import Life, receives
from events.errors import Refused
from events.ids import EventId, HubName
from events.invocation import Requested
from events.selector import Selector
from events.session import Attach, Carry, Close, Detach, Join, Leave, LeaveAll, Open
from events.subjects import HubSubjects, Subject, parse

SESSIONS = ("a", "b", "c")
USERS = {"a": "ann", "b": "ann", "c": None}
GROUPS = ("g", "h", "i")
HUB = HubSubjects(HubName("chat"), 1)

some_sessions = st.lists(st.sampled_from((*SESSIONS, "nobody")), max_size=4).map(tuple)
some_groups = st.lists(st.sampled_from(GROUPS), max_size=3).map(tuple)
selectors: st.SearchStrategy[Selector] = st.one_of(
    st.just(selector.All()),
    st.just(selector.Caller()),
    st.just(selector.Others()),
    st.builds(selector.AllExcept, some_sessions),
    st.builds(selector.Client, st.sampled_from(SESSIONS)),
    st.builds(selector.Clients, some_sessions),
    st.builds(selector.Group, st.sampled_from(GROUPS), some_sessions),
    st.builds(selector.Groups, some_groups, some_sessions),
    st.builds(selector.GroupExceptCaller, st.sampled_from(GROUPS)),
    st.builds(selector.GroupsExceptCaller, some_groups),
    st.builds(selector.User, st.sampled_from(["ann", "nobody"])),
)
lifecycle: st.SearchStrategy[session.Command] = st.one_of(
    st.builds(Join, some_groups),
    st.builds(Leave, some_groups),
    st.builds(LeaveAll),
    st.builds(Carry),
    st.builds(Detach, st.just("c1"), st.just("timeout"), st.just(1)),
    st.builds(Attach, st.just("n"), st.just("i"), st.just("c1"), st.integers(1, 3), st.just(0), st.just(1)),
)
# Weighted: most of a history is joining, leaving and calling.
moves = st.one_of(
    st.tuples(st.sampled_from(SESSIONS), lifecycle),
    st.tuples(st.sampled_from(SESSIONS), st.builds(Join, some_groups)),
    st.tuples(st.sampled_from(SESSIONS), selectors),
    st.tuples(st.sampled_from(SESSIONS), selectors),
    st.tuples(st.sampled_from(SESSIONS), st.just(Close("client"))),
)
histories = st.lists(moves, max_size=40)


@dataclass
class World:
    """People in rooms, as anybody would write it down: sets, changed as things happen."""

    here: set[str] = field(default_factory=set)
    rooms: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def apply(self, name: str, event: session.Event) -> None:
        match event:
            case session.Opened():
                self.here.add(name)
            case session.Joined():
                for group in event.groups:
                    self.rooms[group].add(name)
            case session.Left():
                for group in event.groups:
                    self.rooms[group].discard(name)
            case session.Closed():
                self.here.discard(name)
                for room in self.rooms.values():
                    room.discard(name)

    def hears(self, caller: str, to: Selector) -> set[str]:
        match to:
            case selector.Caller():
                chosen = {caller}
            case selector.All():
                chosen = set(self.here)
            case selector.Others():
                chosen = self.here - {caller}
            case selector.AllExcept():
                chosen = self.here - set(to.sessions)
            case selector.Client():
                chosen = {to.session}
            case selector.Clients():
                chosen = set(to.sessions)
            case selector.Group():
                chosen = self.rooms[to.group] - set(to.without)
            case selector.Groups():
                chosen = {name for group in to.groups for name in self.rooms[group]} - set(to.without)
            case selector.GroupExceptCaller():
                chosen = self.rooms[to.group] - {caller}
            case selector.GroupsExceptCaller():
                chosen = {name for group in to.groups for name in self.rooms[group]} - {caller}
            case selector.User():
                chosen = {name for name in self.here if USERS[name] == to.user}
        return chosen & self.here


@dataclass
class Log:
    """What was written, and for each call who heard it in the world."""

    own: dict[str, list[tuple[session.Event, int]]] = field(default_factory=lambda: defaultdict(list))
    calls: list[tuple[Subject, int, Requested, set[str]]] = field(default_factory=list)


def subject_of(route: selector.Route) -> Subject:
    if route.kind in {"all", "many"}:
        return parse(getattr(HUB, route.kind)())
    return parse(getattr(HUB, route.kind)(route.name))


def play(history: list[tuple[str, session.Command | Selector]]) -> Log:
    world, log, sequence = World(), Log(), 0
    states = dict.fromkeys(SESSIONS, session.INITIAL)
    opening = [(name, Open("n", "i", "c1", user=USERS[name], resumable=True)) for name in SESSIONS]
    for name, move in [*opening, *history]:
        if isinstance(move, Selector):
            route = selector.resolve(move, name)
            if route.kind == "none":
                assert world.hears(name, move) == set()
                continue
            sequence += 1
            call = through_the_log(invocation.requested(route, move, "say", b"[]", caller=name))
            log.calls.append((subject_of(route), sequence, call, world.hears(name, move)))
            continue
        try:
            events = session.decide(states[name], move)
        except Refused:
            continue
        for event in events:
            sequence += 1
            states[name] = session.settle(event, sequence, sequence)
            log.own[name].append((event, sequence))
            world.apply(name, event)
    return log


def through_the_log(call: Requested) -> Requested:
    new = codec.encode(call, id=EventId("e"), at="2026-11-21T10:00:00.000000Z", actor="session:x")
    _, read = codec.decode(new.payload)
    assert isinstance(read, Requested)
    return read


def life(name: str, events: list[tuple[session.Event, int]]) -> Life:
    made = Life(name)
    for event, sequence in events:
        made.apply(event, sequence)
    return made


@settings(max_examples=250, deadline=None)
@given(histories)
def test_the_audience_is_whoever_was_there(history):
    log = play(history)
    lives = {name: life(name, log.own[name]) for name in SESSIONS}
    for subject, sequence, call, heard in log.calls:
        assert {name for name in SESSIONS if receives(lives[name], subject, sequence, call)} == heard, call


@settings(max_examples=250, deadline=None)
@given(histories, st.data())
def test_a_beginning_that_the_log_forgot_changes_nothing_afterwards(history, data):
    log = play(history)
    for name in SESSIONS:
        kept = log.own[name][data.draw(st.integers(0, len(log.own[name]) - 1)) :]
        late, whole = life(name, kept), life(name, log.own[name])
        assert (late.user, late.opened, late.closed) == (whole.user, whole.opened, whole.closed)
        for subject, sequence, call, heard in log.calls:
            if sequence > kept[0][1]:
                assert receives(late, subject, sequence, call) == (name in heard)


def one_life(*commands: session.Command) -> Life:
    """Opened at 10; then each command stored at 20, 30, …"""
    made, state = Life("a"), session.INITIAL
    for number, command in enumerate([Open("n", "i", "c1", user="ann", resumable=True), *commands], 1):
        (event,) = session.decide(state, command)
        state = session.settle(event, number * 10, 1)
        made.apply(event, number * 10)
    return made


def call(to: Selector) -> tuple[Subject, Requested]:
    route = selector.resolve(to, "caller")
    return subject_of(route), invocation.requested(route, to, "say", b"[]")


def test_a_membership_holds_between_its_two_sequences():
    subject, said = call(selector.Group("g"))
    member = one_life(Join(("g",)), Leave(("g",)), Join(("g",)))
    assert [at for at in range(1, 60, 4) if receives(member, subject, at, said)] == [21, 25, 29, 41, 45, 49, 53, 57]


def test_a_closed_session_receives_nothing():
    for to in (
        selector.All(),
        selector.Client("a"),
        selector.User("ann"),
        selector.Group("g"),
        selector.Clients(("a", "b")),
    ):
        subject, said = call(to)
        closed = one_life(Join(("g",)), Close("client"))
        assert receives(closed, subject, 25, said)
        assert not receives(closed, subject, 31, said)


def test_nothing_is_received_that_was_written_before_the_session_opened():
    for to in (selector.All(), selector.Client("a"), selector.User("ann")):
        subject, said = call(to)
        assert not receives(one_life(), subject, 9, said)
        assert receives(one_life(), subject, 11, said)
        assert not receives(Life("a"), subject, 11, said)


def test_a_detached_session_must_receive_too():
    subject, said = call(selector.Group("g"))
    assert receives(one_life(Join(("g",)), Detach("c1", "timeout", 1)), subject, 40, said)


def test_a_session_in_two_groups_of_a_call_is_one_receiver_by_one_event():
    subject, said = call(selector.Groups(("g", "h")))
    assert subject.kind == "many"
    assert receives(one_life(Join(("g", "h"))), subject, 30, said)
    assert receives(one_life(Join(("h",))), subject, 30, said)
    assert not receives(one_life(Join(("i",))), subject, 30, said)


def test_exclusions_are_of_sessions_whatever_else_speaks_for_them():
    for to in (selector.Groups(("g", "h"), ("a",)), selector.Group("g", ("a",)), selector.AllExcept(("a",))):
        subject, said = call(to)
        assert not receives(one_life(Join(("g", "h"))), subject, 30, said)


@pytest.mark.parametrize("subject", [HUB.session("a"), HUB.call("x"), HUB.room("r")])
def test_other_subjects_are_for_nobody(subject):
    _, said = call(selector.All())
    assert not receives(one_life(), parse(subject), 30, said)
