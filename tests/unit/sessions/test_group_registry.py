"""Groups: memberships are part of their session, and a group is what has a member."""

import asyncio

import pytest

from events import session
from events.errors import InvalidName, SessionClosed, SessionNotFound, TooManyGroups
from events.ids import SessionId


async def test_one_event_adds_to_several_groups(manager, opened, written):
    ann = await opened()
    known = await manager.groups.add(ann, "lobby", "den", "lobby")
    assert set(known.state.groups) == {"lobby", "den"}
    assert set(known.state.groups.values()) == {known.sequence}
    *_, (_, envelope, event) = await written.all()
    assert isinstance(event, session.Joined)
    assert event.groups == ("lobby", "den")
    assert envelope.actor == f"session:{ann}"


async def test_all_of_the_groups_or_none(manager, opened, written):
    ann = await opened("lobby")
    before = await written.all()
    with pytest.raises(TooManyGroups):
        await manager.groups.add(ann, *(f"g{number}" for number in range(128)))
    with pytest.raises(InvalidName):
        await manager.groups.add(ann, "den", "")
    assert await written.all() == before
    assert manager.groups.local_members("den") == ()


async def test_adding_twice_is_already_done(manager, other, opened, written):
    ann = await opened("lobby")
    before = await written.all()
    for each in (manager, other):
        known = await each.groups.add(ann, "lobby")
        assert (set(known.state.groups), known.sequence) == ({"lobby"}, 2)
    assert await written.all() == before


async def test_a_group_id_does_not_stay_on_a_session_that_left(manager, other, opened, written):
    ann = await opened("lobby", "den")
    known = await manager.groups.remove(ann, "lobby")
    assert set(known.state.groups) == {"den"}
    assert set((await written.state(ann)).groups) == {"den"}
    local = manager.local.get(ann)
    assert local is not None
    assert set(local.state.groups) == {"den"}
    assert manager.groups.local_members("lobby") == ()
    # Nor when another process takes it out.
    known = await other.groups.remove_from_all(ann)
    assert known.state.groups == {}
    assert (await written.state(ann)).groups == {}
    manager.local.learn(ann, known)
    assert manager.groups.local_members("den") == ()


async def test_the_names_of_empty_groups_are_gone(manager, opened):
    ann, bob = await opened("lobby", "den"), await opened("den")
    assert (await manager.groups.names()).value == ("den", "lobby")
    await manager.groups.remove(ann, "lobby")
    assert (await manager.groups.names()).value == ("den",)
    await manager.sessions.unregister(ann)
    assert (await manager.groups.names()).value == ("den",)
    await manager.groups.remove_from_all(bob)
    assert (await manager.groups.names()).value == ()
    assert manager.local._groups == {}


async def test_leaving_what_one_is_not_in_is_already_done(manager, opened, written):
    ann = await opened("lobby")
    before = await written.all()
    known = await manager.groups.remove(ann, "den", "\0 impossible")
    assert set(known.state.groups) == {"lobby"}
    assert await written.all() == before


async def test_leaving_all_of_nothing_is_already_done(manager, opened, written):
    ann = await opened()
    known = await manager.groups.remove_from_all(ann)
    assert (known.state.groups, known.sequence) == ({}, 1)
    assert await written.tags(ann) == ["session.opened.v1"]


async def test_a_detached_session_can_be_joined_and_counts(manager, other, opened, detach):
    ann = await opened("lobby")
    await detach(ann)
    known = await other.groups.add(ann, "den")
    assert known.state.status == "detached"
    assert (await manager.groups.size("den")).value == (await manager.groups.size("lobby")).value == 1
    assert other.groups.local_members("den") == ()


async def test_who_is_not_there_cannot_join(manager, opened):
    with pytest.raises(SessionNotFound):
        await manager.groups.add(SessionId("nobody"), "lobby")
    with pytest.raises(SessionNotFound):
        await manager.groups.remove(SessionId("nobody"), "lobby")
    ann = await opened("lobby")
    await manager.sessions.unregister(ann)
    with pytest.raises(SessionClosed):
        await manager.groups.add(ann, "lobby")
    assert (await manager.groups.remove(ann, "lobby")).state.groups == {}


async def test_sizes_count_members_of_all_processes_once(manager, other, opened):
    await opened("lobby", "den")
    await opened("lobby", in_=other)
    size = await manager.groups.size("lobby")
    assert (size.value, str(size.position)) == (2, "mema.0-4")
    assert (await manager.groups.size("nowhere")).value == 0
    assert len(manager.groups.local_members("lobby")) == len(other.groups.local_members("lobby")) == 1


async def test_a_stale_state_here_never_decides(manager, other, opened, written):
    """What this process believes costs a read, not the truth."""
    ann = await opened("lobby")
    await other.groups.remove(ann, "lobby")  # not yet heard of here
    known = await manager.groups.add(ann, "lobby")
    assert known.sequence == 4
    await other.groups.remove(ann, "lobby")
    known = await manager.groups.remove(ann, "lobby")
    assert (known.state.groups, known.sequence) == ({}, 5)
    assert await written.tags(ann) == ["session.opened.v1", *["session.joined.v1", "session.left.v1"] * 2]


async def test_many_at_once_in_two_processes_end_in_one_state(manager, other, opened, written):
    ann = await opened()
    changes = [
        (each.groups.add if number % 3 else each.groups.remove)(ann, f"g{number % 5}")
        for number in range(30)
        for each in (manager, other)
    ]
    await asyncio.gather(*changes)
    folded = session.INITIAL
    for recorded, (_, _, event) in zip(
        await written.recorded(written.subjects.session(ann)), await written.all(), strict=True
    ):
        folded = session.evolve(folded, event, recorded.sequence, recorded.stored_at_us)
    assert folded == await written.state(ann)
