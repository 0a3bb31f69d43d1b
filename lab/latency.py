"""Latency: invocations from one gateway to a group on another, at a steady rate."""

import asyncio
import os
import time
from array import array
from collections.abc import Callable

import msgspec

from lab.client import Answer, Crowd, LoadClient, NotOpened, marked_arguments
from lab.install import Install
from lab.ledger import Ledger, percentile_ms
from lab.load import IDLE_MAX_S, TARGET, Progress, new_hub, quiet_collector, require_all_open, until_still
from lab.pacer import Pacer
from lab.proc import cpu_us, family_cpu_us

WARM_UP_MAX = 1000
STUCK_END_S = 2.0
"""Whoever was cut off while it did not read notices within this time of reading again."""
UNANSWERED_MAX = 20_000
"""Calls without an answer at which the sender waits: beyond it the run would measure a queue."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be sent to whom; ``stuck`` more are in the group, beside the receivers, and never read."""

    rate: int
    seconds: float
    receivers: int = 10
    argument_bytes: int = 300
    stuck: int = 0


class Latency(msgspec.Struct, frozen=True):
    """From the sender's write to each receiver's read; ``answered_*`` from the write to the Completion.

    ``cpu_us`` is what each process spent per invocation, with all that went on beside it.
    """

    sync: str
    rate: int
    achieved_per_s: float
    seconds: float
    receivers: int
    argument_bytes: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    answered_p50_ms: float | None
    answered_p99_ms: float | None
    refused: int
    first_refusal: str | None
    lost: int
    duplicated: int
    out_of_order: int
    cpu_us: dict[str, float] = {}
    stuck: int = 0
    stuck_ended: int = 0


async def latency(install: Install, plan: Plan, progress: Progress) -> Latency:
    """An open loop: it does not wait for answers, so a slow service cannot slow down what it is measured with."""
    hub = new_hub()
    near, far, stuck = (
        Crowd(one.url, hub, query=one.query)
        for one in (install.gateways[0], install.gateways[-1], install.gateways[-1])
    )
    warm_up = min(plan.rate, WARM_UP_MAX)
    messages = warm_up + int(plan.rate * plan.seconds)
    ledger = Ledger(plan.receivers, messages, warm_up)
    what = f"{plan.rate}/s, {install.sync}"
    try:
        for crowd, size in ((near, 1), (far, plan.receivers), (stuck, plan.stuck)):
            await crowd.open(size)
            require_all_open(crowd)
        far.listen(ledger)
        for client in (*far.clients, *stuck.clients):
            await client.call("hub.join", TARGET)
        for client in stuck.clients:
            client.stop_reading()
        sender = Sender(near.clients[0], plan, messages)
        with quiet_collector():
            cpu_before = _cpu(install)
            started = time.perf_counter()
            await sender.send_all(lambda done: progress(done, messages, what))
            took = time.perf_counter() - started
            await until_still(lambda: ledger.deliveries + sender.answered, lambda: ledger.complete and sender.complete)
            cpu = {name: (after - cpu_before[name]) / sender.sent for name, after in _cpu(install).items()}
        for client in stuck.clients:
            client.resume_reading()
        await until_still(lambda: len(stuck.ended), lambda: len(stuck.ended) == plan.stuck, idle_s=STUCK_END_S)
        tally = ledger.tally(sender.sent)
        return Latency(
            sync=install.sync,
            rate=plan.rate,
            achieved_per_s=sender.sent / took,
            seconds=took,
            receivers=plan.receivers,
            argument_bytes=plan.argument_bytes,
            p50_ms=percentile_ms(ledger.delays_ns, 50),
            p99_ms=percentile_ms(ledger.delays_ns, 99),
            max_ms=percentile_ms(ledger.delays_ns, 100),
            answered_p50_ms=percentile_ms(sender.answers_ns[warm_up:], 50),
            answered_p99_ms=percentile_ms(sender.answers_ns[warm_up:], 99),
            refused=sender.refused,
            first_refusal=sender.first_refusal,
            lost=max(0, tally.lost - sender.refused * plan.receivers),
            duplicated=tally.duplicated,
            out_of_order=tally.out_of_order,
            cpu_us=cpu,
            stuck=plan.stuck,
            stuck_ended=len(stuck.ended),
        )
    finally:
        await near.close()
        await far.close()
        await stuck.close()


def _cpu(install: Install) -> dict[str, int]:
    return {name: family_cpu_us(pid) for name, pid in install.pids.items()} | {"this bench": cpu_us(os.getpid())}


class Sender:
    """Sends at a rate and times the answers."""

    def __init__(self, client: LoadClient, plan: Plan, messages: int) -> None:
        self._client = client
        self._plan = plan
        self._messages = messages
        self.sent = 0
        self.answered = 0
        self.refused = 0
        self.first_refusal: str | None = None
        self.answers_ns = array("q")

    @property
    def complete(self) -> bool:
        return self.answered == self.sent

    async def send_all(self, on_progress: Callable[[int], None]) -> None:
        """One with each beat, and what is owed if the loop was late; time stamps are taken at the write."""
        owed = shown = 0
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_beats(beats: int) -> None:
            nonlocal owed, shown
            owed += beats
            try:
                while owed and self.sent < self._messages and self.sent - self.answered < UNANSWERED_MAX:
                    owed -= 1
                    self._send_one()
            except NotOpened as exc:
                pacer.stop()
                finished.set_exception(exc)
                return
            if self.sent - shown >= self._plan.rate // 2:
                shown = self.sent
                on_progress(shown)
            if self.sent == self._messages:
                pacer.stop()
                finished.set_result(None)

        pacer = Pacer(self._plan.rate, on_beats)
        pacer.start()
        try:
            # Twice the time that is due, then a bit: a service that answers nothing must not hold the bench for ever.
            async with asyncio.timeout(2 * self._messages / self._plan.rate + IDLE_MAX_S):
                await finished
        except TimeoutError:
            return
        finally:
            pacer.stop()

    def _send_one(self) -> None:
        sent_ns = time.perf_counter_ns()

        def answered(answer: Answer) -> None:
            self.answered += 1
            self.answers_ns.append(time.perf_counter_ns() - sent_ns)
            if answer.error is not None:
                self.refused += 1
                self.first_refusal = self.first_refusal or answer.error

        arguments = marked_arguments(self.sent, sent_ns, self._plan.argument_bytes)
        selector = b'{"to":"group","group":"%s"}' % TARGET.encode()
        self._client.call_with(answered, "hub.invoke", b'[%s,"%s",%s]' % (selector, TARGET.encode(), arguments))
        self.sent += 1
