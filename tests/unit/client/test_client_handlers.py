"""From messages to handlers: once, in order, one after the other, whatever handlers do."""

import asyncio
import json
import logging

import pytest

from hublog import Resync, Session, wire
from hublog.handlers import REMEMBERED, Handlers
from hublog.inbox import ITEM_BYTES, READ_MAX_BYTES, READ_ON_BYTES, Inbox

SESSION = Session("s2", None, None, "p", (), resumed=False)


def message(target: str, *arguments: object) -> wire.Message:
    return wire.message(json.dumps({"type": 1, "target": target, "arguments": arguments}).encode())


async def test_sync_and_async_handlers_are_called_in_order_one_at_a_time() -> None:
    handlers, calls = Handlers(positioned=True), []

    async def slow(number: int) -> None:
        calls.append(("begin", number))
        await asyncio.sleep(0)
        calls.append(("end", number))

    handlers.on("say", slow)
    handlers.on("say", lambda number: calls.append(("sync", number)))
    handlers.on_resync(lambda told: calls.append((told.kind, told.previous)))
    handlers.take_in(message("say", 1, "p1"))
    handlers.resync(Resync("lost", "s1", SESSION))
    handlers.take_in(message("say", 2, "p2"))
    handlers.end()
    await handlers.run()
    one, two = ([("begin", n), ("end", n), ("sync", n)] for n in (1, 2))
    assert calls == [*one, ("lost", "s1"), *two]


async def test_a_repeat_is_recognised_and_its_position_still_counts() -> None:
    handlers, given = Handlers(positioned=True), []
    handlers.on("say", given.append)
    positions = [handlers.take_in(message("say", n, f"p{n}")) for n in (1, 2, 3, 2, 3, 4)]
    handlers.end()
    await handlers.run()
    assert positions == ["p1", "p2", "p3", "p2", "p3", "p4"]
    assert (given, handlers.repeats) == ([1, 2, 3, 4], 2)


def test_the_memory_of_positions_is_bounded() -> None:
    handlers = Handlers(positioned=True)
    for number in range(REMEMBERED + 1):
        handlers.take_in(message("say", f"p{number}"))
    assert len(handlers._seen) == len(handlers._seen_in_order) == REMEMBERED
    handlers.take_in(message("say", "p0"))
    assert handlers.repeats == 0
    handlers.take_in(message("say", f"p{REMEMBERED}"))
    assert handlers.repeats == 1


async def test_plain_messages_have_no_position() -> None:
    handlers, given = Handlers(positioned=False), []
    handlers.on("say", given.append)
    assert handlers.take_in(message("say", "p1")) is None
    assert handlers.take_in(message("say", "p1")) is None
    handlers.end()
    await handlers.run()
    assert given == ["p1", "p1"]


async def test_what_a_handler_raises_and_what_cannot_be_read_is_logged_and_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers, given = Handlers(positioned=True), []
    handlers.on("say", lambda _: 1 / 0)
    handlers.on("say", given.append)
    handlers.take_in(message("say", 1, "p1"))
    handlers.take_in(wire.message(b'{"type":1,"target":"say","arguments":[1e999,"p2"]}'))
    handlers.take_in(message("say", 3, "p3"))
    handlers.end()
    with caplog.at_level(logging.ERROR, "hublog"):
        await handlers.run()
    assert given == [1, 3]
    assert [record.message.split(":")[1].split("'")[0] for record in caplog.records] == [
        " a handler of ",
        " a message for ",
        " a handler of ",
    ]


async def test_a_handler_can_be_taken_away() -> None:
    handlers, given = Handlers(positioned=True), []
    remove = handlers.on("say", given.append)
    handlers.take_in(message("say", 1, "p1"))
    remove()
    remove()
    handlers.take_in(message("other", 2, "p2"))
    handlers.end()
    await handlers.run()
    assert given == []


async def test_reading_pauses_at_the_marks_and_goes_on_when_handlers_catch_up() -> None:
    inbox: Inbox[int] = Inbox()
    awaited = False
    inbox.put(1, READ_ON_BYTES)
    inbox.put(2, 0)
    paused = asyncio.create_task(inbox.room(lambda: awaited))
    await asyncio.sleep(0)
    assert not paused.done()
    awaited = True
    inbox.look_again()
    await asyncio.wait_for(paused, 1)  # a handler may be waiting for the answer: read on

    inbox.put(3, READ_MAX_BYTES)
    paused = asyncio.create_task(inbox.room(lambda: awaited))
    await asyncio.sleep(0)
    assert not paused.done()
    assert [await inbox.take() for _ in range(3)] == [1, 2, 3]
    await asyncio.wait_for(paused, 1)
    assert inbox.bytes == 0
    inbox.put(4)
    assert inbox.bytes == ITEM_BYTES
