"""Fan-out: one invocation to every session of a gateway, again and again."""

import asyncio
import time
from array import array
from collections.abc import Callable

import msgspec

from lab.client import Answer, Crowd, LoadClient, marked_arguments
from lab.install import Gateway
from lab.ledger import Ledger, percentile_ms
from lab.load import IDLE_MAX_S, TARGET, Progress, counting, new_hub, quiet_collector, require_all_open
from lab.proc import cpu_us

IN_FLIGHT = 2
"""Enough that the gateway never waits for the bench, and no queue of any length."""


class Fanout(msgspec.Struct, frozen=True):
    """``last_*`` is the time from the sender's write until the last session has read it."""

    sessions: int
    invocations: int
    argument_bytes: int
    seconds: float
    deliveries_per_s: float
    cpu_us_per_delivery: float | None
    last_p50_ms: float | None
    last_p99_ms: float | None
    lost: int
    duplicated: int
    out_of_order: int


class Rounds:
    """A ledger that also knows when a message has reached the last of its receivers."""

    def __init__(self, receivers: int, messages: int, warm_up: int) -> None:
        self.ledger = Ledger(receivers, messages, warm_up)
        self.last_ns = array("q")
        self.slots = asyncio.Semaphore(IN_FLIGHT)
        self.refusals: list[str] = []
        self._missing = [receivers] * messages

    def note(self, receiver: int, message: int, delay_ns: int) -> None:
        """One delivery. Hot path."""
        self.ledger.note(receiver, message, delay_ns)
        missing = self._missing[message] - 1
        self._missing[message] = missing
        if missing == 0:
            if message >= self.ledger.measured_from:
                self.last_ns.append(delay_ns)
            self.slots.release()

    def answered(self, answer: Answer) -> None:
        if answer.error is not None:
            self.refusals.append(answer.error)
            self.slots.release()


async def fanout(gateway: Gateway, sessions: int, rounds: int, size: int, progress: Progress) -> Fanout:
    """Invokes ``all`` on ``sessions`` sessions ``rounds`` times; the sender is one of them."""
    crowd = Crowd(gateway.url, new_hub(), query=gateway.query)
    try:
        await crowd.open(sessions, counting(progress, sessions, "opening sessions"))
        require_all_open(crowd)
        warm_up = max(2, rounds // 10)
        heard = Rounds(sessions, warm_up + rounds, warm_up)
        crowd.listen(heard)
        with quiet_collector():
            await _send(crowd.clients[0], heard, range(warm_up), size, lambda _: None)
            cpu_before = cpu_us(gateway.pid) if gateway.pid is not None else None
            before, started = heard.ledger.deliveries, time.perf_counter()
            more = counting(progress, rounds, f"fanning out to {sessions}")
            await _send(crowd.clients[0], heard, range(warm_up, warm_up + rounds), size, more)
            seconds = time.perf_counter() - started
            delivered = heard.ledger.deliveries - before
            cpu = cpu_us(gateway.pid) - cpu_before if gateway.pid and cpu_before is not None else None
        tally = heard.ledger.tally()
        return Fanout(
            sessions=sessions,
            invocations=rounds,
            argument_bytes=size,
            seconds=seconds,
            deliveries_per_s=delivered / seconds,
            cpu_us_per_delivery=cpu / max(1, delivered) if cpu is not None else None,
            last_p50_ms=percentile_ms(heard.last_ns, 50),
            last_p99_ms=percentile_ms(heard.last_ns, 99),
            lost=tally.lost,
            duplicated=tally.duplicated,
            out_of_order=tally.out_of_order,
        )
    finally:
        await crowd.close()


async def _send(sender: LoadClient, heard: Rounds, messages: range, size: int, more: Callable[[int], None]) -> None:
    """Returns when all have arrived, or nothing moves any more: then the tally says what is missing."""
    try:
        for message in messages:
            async with asyncio.timeout(IDLE_MAX_S):
                await heard.slots.acquire()
            if heard.refusals:
                raise RuntimeError(f"an invocation was refused: {heard.refusals[0]}")
            arguments = marked_arguments(message, time.perf_counter_ns(), size)
            sender.call_with(heard.answered, "hub.invoke", b'[{"to":"all"},"%s",%s]' % (TARGET.encode(), arguments))
            more(1)
        async with asyncio.timeout(IDLE_MAX_S):
            for _ in range(IN_FLIGHT):
                await heard.slots.acquire()
    except TimeoutError:
        return
    for _ in range(IN_FLIGHT):
        heard.slots.release()
