"""Given a batch of the log, then these rows: what each event says, and what is left to be looked up."""

from events import invocation, node, selector, session, subjects
from events.envelope import Recorded
from projections.fold import BEHIND, InvocationRow, NodeRow, SessionRow, Stay, fold
from tests.servers.histories import History, stored_at_us

SUBJECT = "ev.0.chat.s.s1.log"
KEY = ("chat", "s1")


def decided(*commands: session.Command) -> list[Recorded]:
    """What one session's commands write."""
    history = History(1)
    for command in commands:
        for said in session.decide(history.states.get(SUBJECT, session.INITIAL), command):
            history.note(history.add(SUBJECT, said))
    return history.events


OPEN = session.Open("gw", "gw-1", "c1", "ann", resumable=True)
DETACH = session.Detach("c1", "timeout", 77)


def test_the_last_event_is_the_row() -> None:
    rows = fold(decided(OPEN, session.Join(("b", "a")), session.Leave(("b",))), ())
    row = rows.sessions[KEY]
    assert (row.seq, row.state.status, row.state.groups) == (3, "active", {"a": 2})
    assert (row.opened_at_us, row.closed_at_us, row.last_seen_us, row.seen) == (stored_at_us(1), None, None, True)
    assert rows.hubs == {"chat": 3}


def test_memberships_are_what_is_joined_and_what_ends() -> None:
    rows = fold(decided(OPEN, session.Join(("a", "b")), session.Leave(("b",)), session.Close("client")), ())
    joined = stored_at_us(2)
    assert rows.stays == {
        (*KEY, "a", 2): Stay(joined, 4, stored_at_us(4)),
        (*KEY, "b", 2): Stay(joined, 3, stored_at_us(3)),
    }


def test_a_stay_that_began_earlier_is_named_by_its_join() -> None:
    events = decided(OPEN, session.Join(("a",)), session.Close("kicked"))
    assert fold(events[2:], ()).stays == {(*KEY, "a", 2): Stay(None, 3, stored_at_us(3))}


def test_carried_tells_what_the_log_forgot() -> None:
    events = decided(OPEN, session.Join(("a",)), session.Carry())
    assert fold(events[2:], ()).stays == {(*KEY, "a", 2): Stay()}


def test_when_it_was_last_seen_is_known_or_left_to_the_row_before() -> None:
    events = decided(OPEN, DETACH, session.Leave(("a",)), session.Close("expired"))
    whole = fold(events, ()).sessions[KEY]
    assert (whole.last_seen_us, whole.seen, whole.closed_at_us) == (77, True, stored_at_us(3))
    end = fold(events[2:], ()).sessions[KEY]
    assert (end.last_seen_us, end.seen) == (None, False)
    back = fold(decided(OPEN, DETACH, session.Attach("gw", "gw-1", "c2", 1, 0, 1)), ()).sessions[KEY]
    assert (back.last_seen_us, back.seen) == (None, True)


def test_calls_keep_their_bytes_and_name_their_caller() -> None:
    history = History(1)
    said = invocation.Requested(target="say", selector=selector.Group("a"), ttl_ms=5)
    event = history.put("ev.0.chat.g.a", history.new(said, "system:api").payload)
    assert fold([event], ()).invocations == [
        InvocationRow(
            hub="chat",
            invocation_id=fold([event], ()).invocations[0].invocation_id,
            seq=1,
            target="say",
            arguments=b"[]",
            selector=b'{"to":"group","group":"a"}',
            caller="system:api",
            ttl_ms=5,
            requested_at_us=stored_at_us(1),
        )
    ]


def test_nodes_are_what_their_last_event_says() -> None:
    history = History(1)
    started = node.Started(node="gw", incarnation="i", version="1", url="u")
    history.add(subjects.node("gw"), started)
    history.add(subjects.node("gw"), node.Lost(node="gw", incarnation="i", last_renewal_us=1))
    rows = fold(history.events, ())
    assert rows.nodes == {("gw", "i"): NodeRow("lost", 2, stored_at_us(2), "1", "u", 1, stored_at_us(1))}
    assert rows.hubs == {}
    assert fold(history.events[1:], ()).nodes == {("gw", "i"): NodeRow("lost", 2, stored_at_us(2))}


def test_an_unreadable_event_parks_its_subject_and_nothing_else() -> None:
    history = History(1)
    history.put("ev.0.chat.all", b"{")
    for command in (OPEN, session.Join(("a",))):
        (said,) = session.decide(history.states.get(SUBJECT, session.INITIAL), command)
        history.note(history.add(SUBJECT, said))
    history.add("ev.0.chat.all", invocation.Requested(target="say", selector=selector.All()))
    rows = fold(history.events, ())
    assert [(row.seq, row.code) for row in rows.parked] == [(1, "unreadable_event"), (4, BEHIND)]
    assert rows.invocations == []
    assert rows.sessions[KEY].seq == 3
    assert [(row.event.sequence, row.hub, row.type) for row in rows.log] == [
        (1, "chat", None),
        (2, "chat", "session.opened.v1"),
        (3, "chat", "session.joined.v1"),
        (4, "chat", "invocation.requested.v1"),
    ]


def test_what_was_parked_before_and_what_postgres_refused_is_parked() -> None:
    events = decided(OPEN, session.Join(("a",)), session.Join(("b",)))
    assert [row.code for row in fold(events, {SUBJECT}).parked] == [BEHIND] * 3
    rows = fold(events, (), {2})
    assert [(row.seq, row.code) for row in rows.parked] == [(2, "unreadable_event"), (3, BEHIND)]
    assert isinstance(rows.sessions[KEY], SessionRow)
    assert rows.sessions[KEY].seq == 1
