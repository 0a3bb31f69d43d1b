"""How a held dispatcher becomes live again, and how a lost last message is noticed.

A round asks the leader for its last sequence H, finds out which local subjects moved, reads those up to H, dispatches
merged by sequence, and goes live beyond H with what was collected meanwhile. A group that turns out to be new here is
read in the same round, and checked once more, because it was not heard from the start of the round.

Where only groups are new here, nothing else is in doubt: they alone are read, from the first join on, and what was
found takes its place among what was collected (ADR 0006).
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable

import structlog

from events import codec, session
from events.envelope import Recorded
from events.errors import HublogError, LogUnavailable, Suspended
from service.delivery.feed import BURST_BYTES, Dispatcher
from service.delivery.interest import Chain

RETRY_S = 0.25
TAIL_EVERY_S = 10.0
TAIL_SUBJECTS = 512  # asked about at once
REAP_EVERY_S = 5.0
SAY_EVERY_S = 60.0
READS_AT_ONCE = 16
# One pass over everything is cheaper than many reads by subject, as long as it is this short.
SUBJECTS_READ_SINGLY_MAX = 64
RANGE_READ_WHOLE_MAX = 20_000

_log = structlog.get_logger(__name__)


async def run(dispatcher: Dispatcher) -> None:
    """Keep one dispatcher right: repair, tail check, idle interest. Ends by cancellation."""
    dispatcher.observe()
    async with asyncio.TaskGroup() as group:
        group.create_task(_repair(dispatcher), name=f"repair-{dispatcher.partition}")
        group.create_task(_check_tail(dispatcher), name=f"tail-{dispatcher.partition}")
        group.create_task(_reap(dispatcher), name=f"reap-{dispatcher.partition}")


async def _repair(dispatcher: Dispatcher) -> None:
    said_s = -SAY_EVERY_S
    while True:
        await dispatcher.held()
        try:
            await _until_live(dispatcher)
        except HublogError as error:
            dispatcher.hold("repair failed", None)
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                _log.warning("delivery.repair_waits", partition=dispatcher.partition, code=error.code)
            await asyncio.sleep(RETRY_S)


async def _until_live(dispatcher: Dispatcher) -> None:
    up_to = 0
    full = False
    while True:
        scope = dispatcher.begin_round()
        if scope is None:
            full = True
            up_to = max(up_to, await _read_all(dispatcher))
        else:
            await _read_new(dispatcher, scope)
        since_s = dispatcher.held_since_s
        while dispatcher.settled:
            if dispatcher.go_live(up_to):
                if full:
                    took_ms = round((time.monotonic() - since_s) * 1_000, 1)
                    dispatcher.voice.say("info", "delivery.live", held_ms=took_ms, up_to=up_to)
                return
            await asyncio.sleep(0)


async def _read_new(dispatcher: Dispatcher, scope: set[Chain]) -> None:
    """What was written to groups new here before they were heard; usually nothing.

    Joins among what was collected would each hold the dispatcher once more: their groups are read together with these.
    """
    chains = [*scope, *_awaited(dispatcher.collected())]
    await dispatcher.feed.flush()
    if len(chains) == 1:
        last = await dispatcher.log.last(chains[0].subject)
        lasts = {chains[0].subject: last} if last is not None else {}
    else:
        high = await dispatcher.log.last_sequence(dispatcher.partition)
        lasts = await dispatcher.log.last_many([chain.subject for chain in chains], up_to=high)
    moved = [chain for chain in chains if chain.subject in lasts and lasts[chain.subject].sequence > chain.known]
    found = await _read(dispatcher, moved, max((lasts[chain.subject].sequence for chain in moved), default=0))
    found.sort(key=lambda item: item[1].sequence)
    dispatcher.counters.repaired += len(found)
    dispatcher.insert((chain, event.sequence, event.payload) for chain, event in found)


def _awaited(collected: Iterable[tuple[Chain, int, bytes]]) -> list[Chain]:
    """The groups new here that sessions have joined in what waits to be dispatched; heard from now on."""
    starts = _starts((chain, sequence, payload) for chain, sequence, payload in collected if chain.kind == "log")
    fresh = [chain for chain in starts if chain.kind == "group" and not chain.covered and not chain.members]
    for chain in fresh:
        chain.known = max(chain.known, starts[chain])
        chain.covered, chain.base = True, starts[chain]  # from that join on, once it has been read
    return fresh


async def _read_all(dispatcher: Dispatcher) -> int:
    """One whole round. Returns H. Raises: LogUnavailable and its kin; then nothing was dispatched.

    Sessions come and go while it reads and while it pauses; whoever came is heard from a sequence beyond H.
    """
    log, interest = dispatcher.log, dispatcher.interest
    await dispatcher.feed.flush()
    high = await log.last_sequence(dispatcher.partition)
    if high < dispatcher.position:
        raise LogUnavailable("the stream's leader does not know what was heard already: it is none any more")
    chains = list(interest.chains())
    lasts = await log.last_many([chain.subject for chain in chains], up_to=high) if high else {}
    moved = [chain for chain in chains if chain.subject in lasts and lasts[chain.subject].sequence > chain.known]
    found = await _read(dispatcher, [chain for chain in moved if chain.kind == "log"], high)
    starts = _starts((chain, event.sequence, event.payload) for chain, event in found)
    fresh = {chain for chain in starts if chain not in chains}
    for chain in (*moved, *fresh):
        # Without members, nothing before the first of them matters; without any to come, nothing at all. Never back:
        # what was heard before was others' to receive, and they would be told of a hole.
        if not chain.members:
            chain.known = max(chain.known, starts.get(chain, high))
    rest = [chain for chain in moved if chain.kind != "log"] + list(fresh)
    found += await _read(dispatcher, [chain for chain in rest if chain.known < high], high)
    found.sort(key=lambda item: item[1].sequence)
    forgotten = await log.first_sequence(dispatcher.partition) - 1
    overtaken, burst_bytes = dispatcher.position, 0
    if dispatcher.suspended:
        raise Suspended("the lease ran out during a repair")
    _tell_of_the_forgotten(dispatcher, forgotten)
    for chain, event in found:
        if event.sequence <= chain.known:
            continue
        burst_bytes += len(event.payload)
        if burst_bytes > BURST_BYTES:
            burst_bytes = 0
            await asyncio.sleep(0)
        chain.known = chain.last = event.sequence
        dispatcher.counters.repaired += 1
        act = dispatcher.dispatch if event.sequence > overtaken else dispatcher.dispatch_late
        act(chain, event.sequence, event.payload, event.stored_at_us)
    for chain in (*chains, *fresh):
        chain.known = max(chain.known, high)
    dispatcher.position = max(dispatcher.position, high)
    if fresh:
        dispatcher.hold("new group", fresh)
    return high


def _tell_of_the_forgotten(dispatcher: Dispatcher, up_to: int) -> None:
    """Where nothing was heard for so long that the log has forgotten some of it, nobody can say what is missing."""
    heard = max(dispatcher.position, dispatcher.sure)
    if heard >= up_to:
        return
    for chain in [chain for chain in dispatcher.interest.chains() if chain.kind == "log"]:
        for receiver in list(chain.members.values()):
            # Of one that is still to come, its beginning may be what is forgotten.
            if not receiver.live or max(receiver.since, receiver.delivered) < up_to:
                dispatcher.hole(receiver, heard + 1)


def _starts(found: Iterable[tuple[Chain, int, bytes]]) -> dict[Chain, int]:
    """The chains that local sessions began to be the audience of in these events, each with the first sequence.

    Groups new to this node are heard from now on. What a session did while it was another connection's does not count:
    the ``attached`` that brings it here carries the groups that it is in.
    """
    starts: dict[Chain, int] = {}

    def begin(chain: Chain, sequence: int) -> None:
        starts[chain] = min(sequence, starts.get(chain, sequence))

    for chain, sequence, payload in found:
        hub = chain.hub
        try:
            decoded = codec.event_of(codec.envelope(payload))
        except HublogError:
            continue  # it is counted and said when it is dispatched
        if not isinstance(decoded, session.Event) or decoded.after.connection not in chain.members:
            continue
        if isinstance(decoded, session.Joined):
            for group in decoded.groups:
                begin(hub.hear_group(group), sequence)
        elif isinstance(decoded, session.Opened | session.Attached):
            for group in decoded.after.groups:
                begin(hub.hear_group(group), sequence)
            subjects = [hub.subjects.all(), hub.subjects.many(), hub.subjects.inbox(chain.name)]
            if decoded.after.user is not None:
                subjects.append(hub.subjects.user(decoded.after.user))
            for subject in subjects:
                if subject in hub.chains:
                    begin(hub.chains[subject], sequence)
    return starts


async def _read(dispatcher: Dispatcher, chains: list[Chain], high: int) -> list[tuple[Chain, Recorded]]:
    """What these chains missed, up to ``high``, in no order."""
    if not chains:
        return []
    low = min(chain.known for chain in chains)
    if len(chains) > SUBJECTS_READ_SINGLY_MAX and high - low <= RANGE_READ_WHOLE_MAX:
        by_subject = {chain.subject: chain for chain in chains}
        whole = dispatcher.log.read(f"ev.{dispatcher.partition}.>", low + 1, high)
        return [(by_subject[event.subject], event) async for event in whole if event.subject in by_subject]
    slots = asyncio.Semaphore(READS_AT_ONCE)

    async def one(chain: Chain) -> list[tuple[Chain, Recorded]]:
        async with slots:
            return [(chain, event) async for event in dispatcher.log.read(chain.subject, chain.known + 1, high)]

    parts = await asyncio.gather(*(one(chain) for chain in chains))
    return [item for part in parts for item in part]


async def _check_tail(dispatcher: Dispatcher) -> None:
    """A lost last message has no successor to reveal it: look whether the log has more than was heard."""
    checked = 0
    with contextlib.suppress(HublogError):  # then the first look tells
        # What was stored before anybody was here concerns nobody here, and the log may have forgotten it.
        dispatcher.sure = await dispatcher.log.last_sequence(dispatcher.partition)
    while True:
        await asyncio.sleep(TAIL_EVERY_S / 2)
        if not dispatcher.live or not dispatcher.feed.connected:
            continue
        try:
            high = await dispatcher.log.last_sequence(dispatcher.partition)
            if high != checked:
                chains = [chain for chain in dispatcher.interest.chains() if chain.members]
                # Spread over the interval: all at once would be felt by everybody else on this node.
                pause_s = TAIL_EVERY_S / 2 / (len(chains) // TAIL_SUBJECTS + 1)
                certain = True
                for start in range(0, len(chains), TAIL_SUBJECTS):
                    certain &= await look_behind(dispatcher, chains[start : start + TAIL_SUBJECTS])
                    await asyncio.sleep(pause_s)
                if certain:
                    checked = high
                    if dispatcher.live:
                        dispatcher.sure = high
        except HublogError as error:
            _log.warning("delivery.tail_unchecked", partition=dispatcher.partition, code=error.code)


async def look_behind(dispatcher: Dispatcher, chains: list[Chain]) -> bool:
    """Hold the dispatcher if the log has more of these chains than was heard.

    False: it was held for something else just then, so what waits to be dispatched cannot be told from what is missing.
    Raises: LogUnavailable.
    """
    high = await dispatcher.log.last_sequence(dispatcher.partition)
    lasts = await dispatcher.log.last_many([chain.subject for chain in chains], up_to=high)
    # What was under way while we asked has arrived by now, on one server; a cluster only costs a repair.
    await dispatcher.feed.flush()
    if not dispatcher.live:
        return False
    for chain in chains:
        last = lasts.get(chain.subject)
        gone = not chain.members or chain.hub.chains.get(chain.subject) is not chain
        if last is not None and last.sequence > chain.known and not gone:
            dispatcher.counters.tail_repairs += 1
            dispatcher.hold("tail", None)
            break
    return True


async def _reap(dispatcher: Dispatcher) -> None:
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        if dispatcher.live:  # a repair may have just begun to hear a group whose `joined` it is about to dispatch
            dispatcher.interest.reap(time.monotonic())
