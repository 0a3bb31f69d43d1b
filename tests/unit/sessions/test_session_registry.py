"""Sessions: registered once by the log, unregistered by whoever may, and known here only while attached here."""

import asyncio

import msgspec
import pytest

from events import session
from events.errors import Conflict, InvalidName, LogUnavailable, SessionNotFound
from events.ids import SessionId
from service.sessions.registry import NewSession


async def test_a_session_registered_is_there_for_everybody(manager, other, opened, written):
    ann = await opened(user="ann")
    known = await other.sessions.get(ann)
    assert known is not None
    assert (known.state.user, known.state.status, known.state.opened) == ("ann", "active", known.sequence)
    assert await manager.sessions.exists(ann)
    assert manager.sessions.local_sessions() == (ann,)
    assert other.sessions.local_sessions() == ()
    assert await written.tags(ann) == ["session.opened.v1"]


async def test_the_first_attachment_is_in_the_event(manager, written):
    new = NewSession(SessionId("s"), "c1", "n1", "i1", "ann", msgspec.Raw(b'{"a":1.50}'), resumable=True)
    assert await manager.sessions.register(new)
    [(_, envelope, event)] = await written.all()
    assert isinstance(event, session.Opened)
    assert (event.node, event.incarnation, event.connection, event.resumable) == ("n1", "i1", "c1", True)
    assert bytes(event.metadata) == b'{"a":1.50}'
    assert envelope.actor == "session:s"


async def test_an_id_is_registered_once_whoever_tries(manager, other, opened, written):
    ann = await opened()
    for each in (manager, other):
        assert await each.sessions.register(NewSession(ann, "c2")) is False
    assert other.sessions.local_sessions() == ()
    await manager.sessions.unregister(ann)
    assert await manager.sessions.register(NewSession(ann, "c3")) is False
    assert await written.tags(ann) == ["session.opened.v1", "session.closed.v1"]


async def test_of_two_at_once_one_wins(manager, other, written):
    ids = [SessionId(f"s{number}") for number in range(20)]
    won = await asyncio.gather(
        *(each.sessions.register(NewSession(session_id, "c")) for session_id in ids for each in (manager, other))
    )
    assert sum(won) == len(ids)
    assert len(await written.all()) == len(ids)
    assert set(manager.sessions.local_sessions()).isdisjoint(other.sessions.local_sessions())


async def test_unregistering_closes_leaves_all_groups_and_is_done_once(manager, opened, written):
    ann = await opened("lobby", "den")
    assert await manager.sessions.unregister(ann, "kicked", actor="user:admin") is True
    assert await manager.sessions.unregister(ann) is False
    assert await manager.sessions.get(ann) is None
    assert not await manager.sessions.exists(ann)
    assert manager.sessions.local_sessions() == ()
    assert manager.groups.local_members("lobby") == ()
    *_, (_, envelope, event) = await written.all()
    assert isinstance(event, session.Closed)
    assert (event.reason, set(event.groups), envelope.actor) == ("kicked", {"lobby", "den"}, "user:admin")


async def test_any_process_may_unregister(manager, other, opened):
    ann = await opened()
    assert await other.sessions.unregister(ann, "kicked")
    assert not await manager.sessions.exists(ann)
    assert await manager.sessions.unregister(ann) is False
    assert manager.sessions.local_sessions() == ()


async def test_a_connection_ends_only_the_session_that_it_holds(manager, other, opened, written):
    ann = await opened()
    for each in (manager, other):
        assert await each.sessions.unregister(ann, "transport_error", connection="an older one") is False
    # Looking at a session of another process does not make it one of this process.
    assert other.sessions.local_sessions() == ()
    assert await manager.sessions.unregister(ann, "transport_error", connection=f"c-{ann}") is True
    assert await written.tags(ann) == ["session.opened.v1", "session.closed.v1"]


async def test_what_never_was_cannot_be_unregistered(manager):
    with pytest.raises(SessionNotFound):
        await manager.sessions.unregister(SessionId("nobody"))
    assert await manager.sessions.get(SessionId("nobody")) is None
    assert await manager.sessions.get(SessionId("")) is None


async def test_a_detached_session_exists_but_not_here(manager, opened, detach):
    ann = await opened("lobby")
    await detach(ann)
    known = await manager.sessions.get(ann)
    assert known is not None
    assert known.state.status == "detached"
    manager.local.learn(ann, known)
    assert manager.sessions.local_sessions() == ()
    assert manager.groups.local_members("lobby") == ()


@pytest.mark.parametrize(
    "new",
    [
        NewSession(SessionId(""), "c"),
        NewSession(SessionId("x" * 257), "c"),
        NewSession(SessionId("s"), "c", user=""),
        NewSession(SessionId("s"), "c", user="u" * 257),
    ],
)
async def test_names_are_checked_before_they_are_written(manager, written, new):
    with pytest.raises(InvalidName):
        await manager.sessions.register(new)
    assert await written.all() == []


@pytest.mark.parametrize(
    "metadata", [b"", b"[1]", b'"x"', b"{", b'{"a":oops}', b'{"a":"\xff"}', b'{"a":' * 70 + b"1" + b"}" * 70]
)
async def test_metadata_that_no_reader_could_read_is_refused(manager, written, metadata):
    with pytest.raises(ValueError, match="metadata"):
        await manager.sessions.register(NewSession(SessionId("s"), "c", metadata=msgspec.Raw(metadata)))
    assert await written.all() == []


async def test_a_log_that_is_away_is_said_and_nothing_is_known_here(manager, log):
    log.fail_next(LogUnavailable("away"))
    with pytest.raises(LogUnavailable):
        await manager.sessions.register(NewSession(SessionId("s"), "c"))
    assert manager.sessions.local_sessions() == ()


async def test_closing_can_insist(manager, opened, log):
    ann = await opened()
    log.fail_next(LogUnavailable("away"))
    log.fail_next(Conflict("somebody was quicker"))
    assert await manager.sessions.unregister(ann, "shutdown", insist=True) is True
    assert not await manager.sessions.exists(ann)


async def test_shutting_down_ends_no_session(manager, opened, written):
    ann = await opened()
    await manager.sessions.shutdown()
    assert manager.sessions.local_sessions() == ()
    assert (await written.state(ann)).status == "active"


async def test_counts_and_ids_are_of_all_processes_and_carry_their_position(manager, other, opened):
    ann, bob = await opened(), await opened(in_=other)
    closed = await opened()
    await manager.sessions.unregister(closed)
    count, ids = await manager.sessions.count(), await other.sessions.ids()
    assert (count.value, ids.value) == (2, tuple(sorted([ann, bob])))
    assert str(count.position) == str(ids.position) == "mema.0-4"
