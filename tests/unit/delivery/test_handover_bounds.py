"""What a hand-over holds for a client that does not read: at most its outbox's bound, and nothing is lost by it."""

import asyncio
from collections.abc import Callable

import pytest

from events import selector, session
from events.errors import LogUnavailable
from events.ids import SessionId
from service.delivery import handover, history, repair
from service.delivery.gate import Gate
from service.delivery.handover import Handover, Resumer
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from tests.servers.delivery import HUB, SUBJECTS, World, store_call, turns

ME = SessionId("me")
FRAME_BYTES = 1_000
OUTBOX_BYTES = 40_000
MISSED, LIVE = 500, 300


class Unread(asyncio.WriteTransport):
    """A socket whose peer reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[bytes] = []
        self.read: list[int] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.waiting.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.waiting))

    def take(self, count: int) -> None:
        self.read += [int(frame) for frame in self.waiting[:count]]
        del self.waiting[:count]


def _no_hole(_receiver: Receiver, sequence: int) -> None:
    raise AssertionError(f"nothing was missed at {sequence}")


class Away(World):
    """A session that was opened on another node, and comes back on this one."""

    def __init__(self, slow: Callable[[], None]) -> None:
        super().__init__()
        self.dispatcher._encode = lambda _kind, _target, arguments, _position: arguments[1:-1].rjust(FRAME_BYTES, b"0")
        self.handover = Handover(self.dispatcher)
        self.transport = Unread()
        self.outbox = Outbox(self.transport, OUTBOX_BYTES, slow)
        self.outbox.uncork(b"0")
        self.subject = SUBJECTS.session(ME)
        self.state = session.INITIAL
        self.most = 0
        self.happened(session.Open("n1", "i", "old", None, resumable=True))

    def happened(self, command: session.Command) -> int:
        (event,) = session.decide(self.state, command)
        sequence = self.log.store(self.subject, self.author.write(event, actor="system:test"))
        self.state = session.settle(event, sequence, 0)
        return sequence

    def called(self, count: int) -> None:
        for _ in range(count):
            self.calls += store_call(self.log, self.author, selector.Client(ME), None, self.calls + 1)

    def comes_back(self, on_hole: Callable[[Receiver, int], None] = _no_hole, *, cursor: int | None = None) -> Resumer:
        """With a ``cursor``, what it was then is not known."""
        receiver = Receiver(ME, "new", None, self.outbox, lambda *_: None, on_hole)
        gate = Gate(receiver)
        self.dispatcher.interest.expect(SUBJECTS, receiver, 1)
        before = self.state
        attached = self.happened(session.Attach("n2", "i", "new", before.generation, 0, 1 << 60))
        resumer = Resumer(receiver, gate, cursor or 1, attached, before if cursor is None else None)
        self.handover.begin(HUB, resumer)
        return resumer

    async def look(self, resumer: Resumer, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
            held = self.transport.get_write_buffer_size() + resumer.page_bytes + resumer.gate.size
            self.most = max(self.most, held)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "COLLECT_S", 0.0)
    monkeypatch.setattr(handover, "PACE_S", 0.0)


async def test_a_resumer_that_does_not_read_holds_no_more_than_its_bound_and_gets_all_when_it_reads():
    world = Away(lambda: pytest.fail("the age of what waits is what cuts it off, and it was not asked"))
    world.called(MISSED)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    resumer = world.comes_back()
    await world.look(resumer, 200)
    for _ in range(LIVE):
        world.called(1)
        await world.look(resumer, 5)
    assert world.most > OUTBOX_BYTES * 3 // 4, "nothing was held back: this measures nothing"
    assert world.most <= OUTBOX_BYTES + 2 * FRAME_BYTES
    assert not resumer.gate.is_open
    while not resumer.gate.is_open:  # it reads, and what it had missed meanwhile comes from the log
        world.transport.take(5)
        await world.look(resumer, 20)
        assert world.most <= OUTBOX_BYTES + 2 * FRAME_BYTES
    world.called(1)
    await world.look(resumer, 10)
    world.transport.take(MISSED + LIVE)
    assert world.transport.read == list(range(MISSED + LIVE + 2))
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


async def test_what_the_gate_drops_while_there_is_no_room_for_the_last_of_it_comes_from_the_log():
    world = Away(lambda: pytest.fail("nobody is slow"))
    missed = OUTBOX_BYTES // FRAME_BYTES // 2  # all of it is written, and then it waits for room
    world.called(missed)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    resumer = world.comes_back()
    await world.look(resumer, 200)
    assert not resumer.page
    assert not resumer.gate.is_open
    assert resumer.gate.sent == missed + 1, "it is what the cursor in an answer says"
    world.called(LIVE)
    await world.look(resumer, 20)
    assert resumer.gate.dropped
    while not resumer.gate.is_open:
        world.transport.take(5)
        await world.look(resumer, 20)
    world.transport.take(missed + LIVE)
    assert world.transport.read == list(range(missed + LIVE + 1))
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


async def test_it_reads_no_further_than_its_pages(monkeypatch: pytest.MonkeyPatch):
    """A long absence is not in memory at once."""
    world = Away(lambda: pytest.fail("nobody is slow"))
    world.called(20 * MISSED)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    monkeypatch.setattr("service.delivery.history.PIECE_EVENTS", 100)
    taken: list[int] = []
    read = world.log.read

    async def counted(subject: str, first: int, last: int):  # type: ignore[no-untyped-def]
        async for recorded in read(subject, first, last):
            taken.append(recorded.sequence)
            yield recorded

    monkeypatch.setattr(world.log, "read", counted)
    resumer = world.comes_back()
    await world.look(resumer, 300)
    # Half an outbox and two pages of a quarter each, in pieces of a hundred.
    assert 0 < len(set(taken)) <= 200
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


async def test_a_leader_that_knows_less_than_a_page_went_up_to_is_not_believed(monkeypatch: pytest.MonkeyPatch):
    """It is none any more, and this node has not heard live what its successor told of: only the pages know of it."""
    world = Away(lambda: pytest.fail("nobody is slow"))
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    resumer = world.comes_back()
    world.log.drop_next_live(30)
    world.called(30)
    true, asked = world.log.last_sequence, 0

    async def after_an_election(partition: int) -> int:
        nonlocal asked
        asked += 1
        return resumer.attached if asked in {2, 3} else await true(partition)

    monkeypatch.setattr(handover, "RETRY_S", 0.0)
    monkeypatch.setattr(world.log, "last_sequence", after_an_election)
    while not resumer.gate.is_open:
        world.transport.take(5)
        await world.look(resumer, 5)
    assert world.dispatcher.position == resumer.attached, "nothing else could have told"
    world.called(1)  # that something was not heard is noticed now
    await world.look(resumer, 50)
    world.transport.take(100)
    assert world.transport.read == list(range(32))
    assert asked > 3, "it was asked again until it knew"
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


async def test_a_defect_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    world = Away(lambda: pytest.fail("nobody is slow"))
    world.called(3)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    told: list[int] = []

    async def broken(_partition: int) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(world.log, "first_sequence", broken)
    resumer = world.comes_back(lambda _, sequence: told.append(sequence))
    await world.look(resumer, 50)
    assert told == [2], "it begins again behind its cursor"
    assert not resumer.gate.is_open
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


@pytest.mark.parametrize("read_whole_max", [handover.READ_WHOLE_MAX, 0])
async def test_what_a_session_was_at_its_cursor_is_told_by_its_first_event_behind_it(
    monkeypatch: pytest.MonkeyPatch, read_whole_max: int
):
    """The log has forgotten how it came to be and joined, and not what it missed before its next event."""
    monkeypatch.setattr(handover, "READ_WHOLE_MAX", read_whole_max)
    world = Away(lambda: pytest.fail("nobody is slow"))
    world.happened(session.Join(("red",)))
    world.called(1)  # up to here its client has everything
    cursor = world.log._partitions[0].last
    world.called(1)
    world.calls += store_call(world.log, world.author, selector.Group("red"), None, world.calls + 1)
    world.happened(session.Leave(("red",)))
    world.calls += store_call(world.log, world.author, selector.Group("red"), None, world.calls + 1)
    world.called(1)
    world.log.forget(0, cursor)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    resumer = world.comes_back(cursor=cursor)
    await world.look(resumer, 100)
    assert resumer.gate.is_open
    world.transport.take(10)
    assert world.transport.read == [0, 2, 3, 5]
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)


@pytest.mark.parametrize("failing", [False, True])
async def test_what_is_trimmed_while_it_is_read_is_a_hole_and_no_gap(monkeypatch: pytest.MonkeyPatch, failing: bool):
    monkeypatch.setattr(handover, "RETRY_S", 0.0)
    monkeypatch.setattr(history, "PIECE_EVENTS", 3)
    world = Away(lambda: pytest.fail("nobody is slow"))
    world.called(5)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    read = world.log.read

    async def trimmed(subject: str, first: int, last: int):  # type: ignore[no-untyped-def]
        nonlocal failing
        world.log.forget(0, 4)
        if first > 2 and failing:
            failing = False
            raise LogUnavailable("in the middle of it")
        async for recorded in read(subject, first, last):
            yield recorded

    monkeypatch.setattr(world.log, "read", trimmed)
    told: list[int] = []

    def on_hole(receiver: Receiver, sequence: int) -> None:
        told.append(sequence)
        world.dispatcher.interest.release(receiver)

    await world.look(world.comes_back(on_hole), 100)
    assert told == [2], "it begins again behind its cursor, and is told then what it has lost"
    world.transport.take(10)
    assert world.transport.read == [0], "nothing goes out behind a gap"
    services.cancel()
    await asyncio.gather(services, return_exceptions=True)
