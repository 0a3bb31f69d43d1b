"""Global answers by reading the log: as of a position, and without what has ended."""

from events.ids import HubName, Position
from service.log.memory import MemoryEventLog
from service.sessions.view import LogView

HUB = HubName("chat")


async def test_an_empty_log(log):
    view = LogView(log)
    nothing = Position(log.epoch, 0, 0)
    count, ids, names, size = (
        await view.session_count(HUB),
        await view.session_ids(HUB),
        await view.group_names(HUB),
        await view.group_size(HUB, "lobby"),
    )
    assert (count.value, ids.value, names.value, size.value) == (0, (), (), 0)
    assert {each.position for each in (count, ids, names, size)} == {nothing}
    await view.close()


async def test_answers_follow_the_log(log, manager, opened, detach):
    view = LogView(log)
    ann, bob, eve = await opened("lobby", "ä.b"), await opened("lobby"), await opened("attic")
    await detach(bob)
    await manager.sessions.unregister(eve)
    assert (await view.session_count(HUB)).value == 2
    assert (await view.session_ids(HUB)).value == tuple(sorted([ann, bob]))
    assert (await view.group_names(HUB)).value == ("lobby", "ä.b")
    assert (await view.group_size(HUB, "lobby")).value == 2
    assert (await view.group_size(HUB, "attic")).value == 0
    before = (await view.session_count(HUB)).position
    await manager.router.all("say")  # moves the position, and nothing else
    after = await view.session_count(HUB)
    assert (after.value, after.position.sequence) == (2, before.sequence + 1)


async def test_other_hubs_and_partitions_are_not_counted(opened, log):
    await opened("lobby")
    assert (await LogView(log).session_count(HubName("games"))).value == 0
    assert (await LogView(log).session_count(HubName("cha"))).value == 0
    wide = LogView(MemoryEventLog(8))
    assert (await wide.session_count(HUB)).position.partition == 2
