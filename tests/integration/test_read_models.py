"""The questions, against the plain fold of the same history: every filter, page by page, with their position."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from events.errors import (
    EpochMismatch,
    InvalidPosition,
    InvalidQuery,
    PositionNotReached,
    ReadModelUnavailable,
)
from events.ids import Epoch, Position, b64url
from projections import checkpoint as checkpoints
from projections.fold import fold
from projections.read import Page, ReadModel, events, groups, hubs, invocations, members, nodes, sessions
from projections.read import projections as projected
from projections.write import store
from tests.servers.histories import History
from tests.servers.plain_fold import PlainFold

EPOCH = Epoch("k7qd")
HUB = "chat"


class World:
    """A history in Postgres, the plain fold of it, and a way to ask."""

    def __init__(self, dsn: str, history: History) -> None:
        self.dsn = dsn
        self.history = history
        self.model = ReadModel(dsn, 1)
        self.plain = PlainFold()

    async def write(self) -> None:
        """What the history holds beyond the checkpoint."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            at = await checkpoints.load(connection, 0, EPOCH)
            fresh = self.history.events[at.sequence :]
            await store(connection, at, fold(fresh, self.plain._parked_subjects))
            for event in fresh:
                self.plain.take(event)

    @property
    def here(self) -> str:
        return f"{EPOCH}.0-{len(self.history.events)}"

    async def all(self, ask: Callable[..., Awaitable[Page[Any]]], *what: str, **filters: str) -> list[Any]:
        """Every item, three by three; each page says where it stands."""
        items: list[Any] = []
        after: str | None = None
        while True:
            page = await ask(self.model, *what, limit=3, after=after, **filters)
            assert page.position == self.here
            assert len(page.items) <= 3
            items += page.items
            if page.next is None:
                return items
            after = page.next


@pytest.fixture
async def world(database: str) -> AsyncIterator[World]:
    world = World(database, History(21, sessions=16).steps(700))
    await world.write()
    yield world
    await world.model.close()


def moment(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


FILTERS: list[dict[str, str]] = [
    {},
    {"state": "active"},
    {"state": "closed"},
    {"user": "ann"},
    {"user": "bob ✓", "state": "detached"},
    {"node": "gw-1"},
    {"node": "gw-0", "state": "active"},
    {"group": "lobby"},
    {"group": "Röum", "state": "detached"},
    {"group": "d", "node": "gw-0"},
    {"group": 'quo"te\\', "user": "ann"},
    {"group": "nobody's"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
async def test_sessions_by_every_filter(world: World, filters: dict[str, str]) -> None:
    def fits(row: dict[str, Any]) -> bool:
        own = {"state": row["state"], "user": row["user_id"], "node": row["node"]}
        return all(value in row["groups"] if what == "group" else own[what] == value for what, value in filters.items())

    expected = sorted(name for (hub, name), row in world.plain.sessions.items() if hub == HUB and fits(row))
    found = await world.all(sessions.page, HUB, **filters)
    assert [one.session_id for one in found] == expected


async def test_a_session_is_told_in_full(world: World) -> None:
    for (hub, name), row in world.plain.sessions.items():
        found = await sessions.find(world.model, hub, name, last_renewal=lambda _: 4_000_000_000_000_000)
        assert found.position == world.here
        seen_us = row["last_seen_at"] or row["closed_at"]
        assert found.item == sessions.Session(
            name,
            row["user_id"],
            row["state"],
            row["node"],
            row["groups"],
            msgspec.Raw(row["metadata"]),
            moment(row["opened_at"]),
            moment(4_000_000_000_000_000 if row["state"] == "active" else seen_us),
            f"{EPOCH}.0-{row['seq']}",
        )
    assert (await sessions.find(world.model, HUB, "nobody")).item is None


async def test_groups_and_their_members(world: World) -> None:
    found = await world.all(groups.page, HUB)
    expected = {group: counts for (hub, group), counts in world.plain.groups.items() if hub == HUB}
    assert {one.group: (one.size, one.attached) for one in found} == expected
    assert [one.group for one in found] == sorted(expected, key=str.encode)
    for one in found:
        assert (await groups.find(world.model, HUB, one.group)).item == one
        present = await world.all(members.page, HUB, one.group)
        assert [(m.session_id, m.state, m.joined_at, m.joined_position) for m in present] == [
            (name, world.plain.sessions[hub, name]["state"], moment(joined_at), f"{EPOCH}.0-{joined}")
            for (hub, name, group, joined), (joined_at, left, _) in sorted(world.plain.memberships.items())
            if (hub, group, left) == (HUB, one.group, None)
        ]
    assert (await groups.find(world.model, HUB, "nobody's")).item is None


async def test_invocations_descend_and_keep_their_bytes(world: World) -> None:
    found = await world.all(invocations.page, HUB)
    expected = sorted(
        ((row["seq"], ident, row) for (hub, ident), row in world.plain.invocations.items() if hub == HUB), reverse=True
    )
    assert [(one.position, one.invocation_id) for one in found] == [(f"{EPOCH}.0-{s}", i) for s, i, _ in expected]
    for one, (_, _, row) in zip(found, expected, strict=True):
        assert bytes(one.arguments) == row["arguments"]
        assert msgspec.json.decode(one.selector) == row["selector"]
        told = (one.target, one.caller, one.status, one.requested_at)
        assert told == (row["target"], row["caller"], row["status"], moment(row["requested_at"]))
        assert (await invocations.find(world.model, HUB, one.invocation_id)).item == one


async def test_events_by_type_and_subject(world: World) -> None:
    def written(*, kind: str = "", subject: str | None = None) -> list[tuple[str, str]]:
        return [
            (f"{EPOCH}.0-{event.sequence}", event.subject)
            for event in world.history.events
            if event.subject.startswith("ev.0.chat.")
            and f'"type":"{kind}'.encode() in event.payload
            and subject in (None, event.subject)
        ]

    async def asked(**filters: str) -> list[tuple[str, str]]:
        return [(one.position, one.subject) for one in await world.all(events.page, HUB, **filters)]

    own = "ev.0.chat.s.s1.log"
    assert await asked() == written()
    assert await asked(type="session.joined.v1") == await asked(type="session.joined") == written(kind="session.joined")
    assert await asked(subject=own) == written(subject=own)
    assert await asked(subject="ev.0.chat.all", type="invocation.requested") == written(subject="ev.0.chat.all")
    assert await asked(subject=own, type="invocation.requested") == []
    assert await asked(subject="ev.0.ops-2.s.s1.log") == []
    history = await world.all(events.history, HUB, "s1")
    assert [(one.position, one.subject) for one in history] == written(subject=own)
    first = msgspec.json.decode(world.history.events[int(history[0].position.split("-")[1]) - 1].payload)
    assert (history[0].id, history[0].actor, msgspec.json.decode(history[0].data)) == (
        first["id"],
        first["actor"],
        first["data"],
    )


async def test_hubs_and_nodes_and_projections(world: World) -> None:
    found = await world.all(hubs.page)
    expected = {hub: (*counts, f"{EPOCH}.0-{last}") for hub, (last, *counts) in world.plain.hubs.items()}
    assert {one.hub: (one.active, one.detached, one.closed, one.position) for one in found} == expected
    assert (await hubs.find(world.model, HUB)).item == next(one for one in found if one.hub == HUB)
    newest = {}
    for (name, life), row in world.plain.nodes.items():
        rank = (row["started_seq"] or row["seq"], life, row["state"])
        newest[name] = max(newest.get(name, rank), rank)
    told = await world.all(nodes.page)
    assert {one.node: (one.incarnation, one.state) for one in told} == {n: (i, s) for n, (_, i, s) in newest.items()}
    (one,) = (await projected.page(world.model)).items
    assert (one.partition, one.position, one.parked, one.parked_subjects) == (0, world.here, 0, 0)


async def test_what_cannot_be_read_is_shown_as_it_is(world: World) -> None:
    world.history.put("ev.0.chat.all", b"\xff no")
    await world.write()
    last = (await world.all(events.page, HUB, subject="ev.0.chat.all"))[-1]
    assert (last.type, msgspec.json.decode(last.data)) == (
        "unreadable",
        {"payload": base64.b64encode(b"\xff no").decode()},
    )
    (one,) = (await projected.page(world.model)).items
    assert (one.parked, one.parked_subjects) == (1, 1)


async def test_waiting_for_a_position(world: World) -> None:
    reached = Position(EPOCH, 0, len(world.history.events))
    assert await world.model.wait_for(Position(EPOCH, 0, 1), 0) == reached
    before = len(world.history.events)
    world.history.steps(20)
    wanted = Position(EPOCH, 0, before + 1)
    with pytest.raises(PositionNotReached) as refused:
        await world.model.wait_for(wanted, 0.05)
    assert refused.value.details == {"reached": str(reached)}
    waiting = [asyncio.create_task(world.model.wait_for(wanted, 10)) for _ in range(50)]
    await asyncio.sleep(0)
    await world.write()
    assert {await one for one in waiting} == {Position(EPOCH, 0, len(world.history.events))}
    with pytest.raises(EpochMismatch):
        await world.model.wait_for(Position(Epoch("aaaa"), 0, 1), 10)


async def test_bad_cursors_and_names_are_refused(world: World) -> None:
    with pytest.raises(InvalidQuery):
        await sessions.page(world.model, HUB, user="a\0b")
    with pytest.raises(InvalidQuery):
        await groups.page(world.model, HUB, after="\ud800")
    with pytest.raises(InvalidQuery):
        await hubs.page(world.model, after="not a cursor!")
    for after, error in [("x", InvalidPosition), ("k7qd.1-4", InvalidPosition), ("aaaa.0-4", EpochMismatch)]:
        with pytest.raises(error):
            await events.page(world.model, HUB, after=after)
        with pytest.raises(error):
            await invocations.page(world.model, HUB, after=after)


async def test_before_anything_was_projected_it_says_so(database: str) -> None:
    model = ReadModel(database, 1)
    for ask in (sessions.page(model, HUB), hubs.page(model), model.wait_for(Position(EPOCH, 0, 0), 0)):
        with pytest.raises(ReadModelUnavailable, match="no projector"):
            await ask
    await model.close()


async def test_without_postgres_it_says_so(tmp_path: object) -> None:
    model = ReadModel(f"postgresql://hublog@/none?host={tmp_path}", 1)
    with pytest.raises(ReadModelUnavailable):
        await asyncio.wait_for(groups.page(model, HUB), 10)
    await model.close()


async def test_hubs_of_several_partitions_are_one_list(database: str) -> None:
    model = ReadModel(database, 2)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for number, names in enumerate([("chat", "d"), ("a", "ops")]):
            history = History(number, partitions=2, hubs=names).steps(200)
            at = await checkpoints.load(connection, number, EPOCH)
            await store(connection, at, fold(history.events, ()))
    page = await hubs.page(model, limit=3)
    assert [hub.hub for hub in page.items] == ["a", "chat", "d"]
    assert [hub.position[:7] for hub in page.items] == ["k7qd.1-", "k7qd.0-", "k7qd.0-"]
    assert (page.position, page.next) == (None, b64url(b"d"))
    rest = await hubs.page(model, limit=3, after=page.next)
    assert ([hub.hub for hub in rest.items], rest.next) == (["ops"], None)
    await model.close()
