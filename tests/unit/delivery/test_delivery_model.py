"""Delivery held against the audience: whatever is lost, cut or overtaken, each session gets what the log says it must.

A history of opens, joins, leaves, closes and calls runs on a log in memory under one dispatcher, while live messages
are dropped and the connection goes and comes. Then every session was given exactly what ``events.audience`` says, once
and in order, or it was told of a hole and given nothing out of order before.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from events import selector, session
from service.delivery import feed, repair
from tests.servers.delivery import Peer, World, running, settled, turns

GROUPS = ["a", "b", "c"]
USERS = [None, "u", "v"]

PEER = st.integers(0, 5)
GROUP_LIST = st.lists(st.sampled_from(GROUPS), min_size=1, max_size=3)
ACTION = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(USERS)),
    st.tuples(st.just("join"), PEER, GROUP_LIST, st.booleans()),
    st.tuples(st.just("leave"), PEER, GROUP_LIST),
    st.tuples(st.just("close"), PEER),
    st.tuples(st.just("all"), PEER),
    st.tuples(st.just("others"), PEER),
    st.tuples(st.just("group"), st.sampled_from(GROUPS), PEER),
    st.tuples(st.just("groups"), GROUP_LIST, PEER),
    st.tuples(st.just("client"), PEER),
    st.tuples(st.just("clients"), st.lists(PEER, min_size=1, max_size=4)),
    st.tuples(st.just("user"), st.sampled_from(["u", "v"])),
    st.tuples(st.just("turns"), st.integers(1, 6)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("heal")),
    st.tuples(st.just("reap")),
    st.tuples(st.just("doubt")),
    st.tuples(st.just("vanish"), PEER),
    st.tuples(st.just("ask"), PEER, st.sampled_from(GROUPS)),
    # What only hurts close together, so that it is tried often.
    st.tuples(st.just("join and call"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("join, call and ask"), PEER, PEER, st.sampled_from(GROUPS), st.sampled_from(["api", "itself"])),
    st.tuples(st.just("joins in a row"), st.lists(st.tuples(PEER, GROUP_LIST), min_size=2, max_size=4), GROUP_LIST),
    st.tuples(st.just("lose a join to several"), PEER, GROUP_LIST),
    st.tuples(st.just("leave and call"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("lose a join"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("lose an open"), st.sampled_from(USERS)),
    st.tuples(st.just("lose a call"), st.sampled_from(GROUPS), PEER),
    st.tuples(st.just("drop")),
)


def act(world: World, action: tuple[object, ...], *, drops: bool) -> None:
    def peer(number: object) -> Peer:
        assert isinstance(number, int)
        return world.peers[number % len(world.peers)]

    if not world.peers and action[0] not in {"open", "cut", "heal"}:
        return
    match action:
        case ("open", user):
            if world.log.connected:  # a node that is cut off opens no sessions
                world.open(user)  # type: ignore[arg-type]
        case ("join", number, groups, here):
            world.join(peer(number), list(groups), here=bool(here))  # type: ignore[call-overload]
        case ("leave", number, groups):
            world.command(peer(number), session.Leave(tuple(groups)))  # type: ignore[arg-type]
        case ("close", number):
            world.command(peer(number), session.Close("kicked"))
        case ("all", number):
            world.call(selector.All(), peer(number))
        case ("others", number):
            world.call(selector.Others(), peer(number))
        case ("group", group, number):
            world.call(selector.Group(str(group), (peer(number).id,)), None)
        case ("groups", groups, number):
            world.call(selector.Groups(tuple(groups), (peer(number).id,)), None)  # type: ignore[arg-type]
        case ("client", number):
            world.call(selector.Client(peer(number).id), None)
        case ("clients", numbers):
            world.call(selector.Clients(tuple(peer(n).id for n in numbers)), None)  # type: ignore[attr-defined]
        case ("user", user):
            world.call(selector.User(str(user)), None)
        case ("cut",):
            world.log.disconnect()
        case ("heal",):
            world.log.reconnect()
        case ("reap",) if world.dispatcher.live:
            world.dispatcher.interest.reap(time.monotonic() + 1_000)
        case ("doubt",):
            world.log.change_leader(0)
        case ("vanish", number):
            peer(number).vanish()
        case ("ask", number, group):  # a join that is refused, or has nothing to write
            peer(number).receiver.expect_group(str(group))
        case ("join, call and ask", number, other, group, who):
            # Somebody asks to join what another is in already, of which this node has not heard yet.
            joins = peer(number)
            if who == "itself" and peer(other) is joins:
                return  # the same on two connections at once: the tail check finds what came between, and says so
            actor = f"session:{joins.id}" if who == "itself" else "system:api"
            world.command(joins, session.Join((str(group),)), actor=actor)
            world.call(selector.Group(str(group)), None)
            peer(other).receiver.expect_group(str(group))
            world.call(selector.All(), None)
        case ("join and call", number, group):
            world.join(peer(number), [str(group)], here=False)
            world.call(selector.Group(str(group)), None)
        case ("joins in a row", joins, groups):
            for number, joined in joins:  # type: ignore[attr-defined]
                world.join(peer(number), joined, here=False)
                world.call(selector.Groups(tuple(groups)), None)  # type: ignore[arg-type]
                world.call(selector.Group(joined[0]), None)
        case ("lose a join to several", number, groups) if drops and world.log.connected:
            world.log.drop_next_live()
            world.join(peer(number), list(groups), here=True)  # type: ignore[call-overload]
            for group in groups:  # type: ignore[attr-defined]
                world.call(selector.Group(group), None)
        case ("leave and call", number, group):
            world.command(peer(number), session.Leave((str(group),)))
            world.call(selector.Group(str(group)), None)
        case ("drop",) if drops and world.log.connected:
            world.log.drop_next_live()
        case ("lose a join", number, group) if drops and world.log.connected:
            world.log.drop_next_live()
            world.join(peer(number), [str(group)], here=True)
        case ("lose an open", user) if drops and world.log.connected:
            world.log.drop_next_live()
            world.open(user)  # type: ignore[arg-type]
        case ("lose a call", group, number) if drops and world.log.connected:
            world.log.drop_next_live()
            world.call(selector.Group(str(group)), None)
            world.call(selector.Client(peer(number).id), None)


HISTORY = st.lists(ACTION, min_size=5, max_size=60)


async def play(actions: list[tuple[object, ...]], *, drops: bool) -> None:
    async with running() as world:
        for action in actions:
            if action[0] == "turns":
                await turns(int(action[1]))  # type: ignore[call-overload]
            else:
                act(world, action, drops=drops)
        await settled(world)
        world.check(holes_allowed=drops)


@contextmanager
def in_pieces_of(burst: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (feed, repair):
            patch.setattr(module, "BURST_BYTES", burst)
        yield


BURST = st.sampled_from([1, feed.BURST_BYTES])  # every message on its own, or as a process does
FULL = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@FULL
@given(HISTORY, BURST)
def test_nothing_is_missed_when_the_connection_goes_and_comes(actions: list[tuple[object, ...]], burst: int) -> None:
    with asyncio.Runner() as runner, in_pieces_of(burst):
        runner.run(play(actions, drops=False))


@FULL
@given(HISTORY, BURST)
@example(  # a group that was expected, dropped as idle, and expected again before the first join had come by
    actions=[
        ("open", None),
        ("join", 0, ["a"], True),
        ("reap",),
        ("join and call", 0, "a"),
        ("leave and call", 0, "a"),
        ("lose a join", 0, "a"),
    ],
    burst=1,
)
def test_what_the_feed_drops_is_delivered_in_order_or_said(actions: list[tuple[object, ...]], burst: int) -> None:
    with asyncio.Runner() as runner, in_pieces_of(burst):
        runner.run(play(actions, drops=True))
