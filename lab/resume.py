"""Mass resume: ``kill -9`` of a gateway under traffic, and all of its sessions come back on another at once.

Every session is in one of some groups, which are called in turn, so that it must receive 0, 1, 2 … of its own group,
before the kill and after it, each once and in order. A few who are on the other gateway anyway show what it costs them.
"""

import asyncio
import os
import signal
import time
from array import array
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TypeVar

import msgspec

from lab.client import OPENING_AT_ONCE, Answer, Crowd, LoadClient, marked_arguments
from lab.install import Install
from lab.ledger import Ledger, percentile_ms
from lab.load import TARGET, Progress, counting, new_hub, quiet_collector, require_all_open, until_still
from lab.proc import cpu_us

GROUP_SIZE = 100
LOCALS = 10
BEFORE_S = 3.0
"""Traffic before the kill."""
ROUNDS_MAX = 2_000
BEAT_S = 0.005

T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True):
    """``rate``: invocations per second, each to one group of at most :data:`GROUP_SIZE` sessions."""

    sessions: int
    rate: int = 100
    argument_bytes: int = 300


class Resume(msgspec.Struct, frozen=True):
    """Times run from the moment at which all begin to reconnect, each to its answer ``resumed: true``.

    ``whole_s``: until everybody had everything that was sent until all had resumed. ``locals_*``: deliveries to those
    who were on the other gateway all the time, before the kill and while the others resume; ``bench_lag_ms`` of it may
    be this process's own doing, which was late by as much once.
    """

    sync: str
    sessions: int
    groups: int
    rate: int
    resumed: int
    failed: int
    first_failure: str | None
    p50_s: float | None
    p99_s: float | None
    max_s: float | None
    whole_s: float
    cpu_us_per_resume: float | None
    bench_cpu_s: float
    locals_p99_before_ms: float | None
    locals_p99_ms: float | None
    locals_max_ms: float | None
    bench_lag_ms: float
    invocations: int
    lost: int
    duplicated: int
    out_of_order: int


class Roll:
    """A ledger that keeps the delays of those apart who are not moved. Hot path."""

    def __init__(self, sessions: int, receivers: int) -> None:
        self.ledger = Ledger(receivers, ROUNDS_MAX, ROUNDS_MAX)
        self.locals_ns = array("q")
        self._sessions = sessions

    def note(self, receiver: int, message: int, delay_ns: int) -> None:
        self.ledger.note(receiver, message, delay_ns)
        if receiver >= self._sessions:
            self.locals_ns.append(delay_ns)


class About(msgspec.Struct, rename="camel"):
    """What ``hub.session`` answers, as far as it matters here."""

    session_id: str = ""
    resume_token: str | None = None
    cursor: str = ""
    resumed: bool = False
    resync: str | None = None
    code: str | None = None


async def resume(install: Install, plan: Plan, progress: Progress) -> Resume:
    """Kills gateway 0 of the installation, which must be one made for this."""
    hub, sessions = new_hub(), plan.sessions
    groups = max(1, sessions // GROUP_SIZE)
    roll = Roll(sessions, sessions + LOCALS)
    near, far = install.gateways[0], install.gateways[-1]
    if near.pid is None or far.pid is None:
        raise RuntimeError("a gateway can only be killed where its process can be seen")
    old = Crowd(near.url, hub, query=lambda index: f"resumable=1&user=u{index}", sink=roll)
    local = Crowd(far.url, hub, query=lambda index: f"user=local{index}", sink=roll)
    calling = Crowd(far.url, hub)
    crowds = [old, local, calling]
    try:
        for crowd, size in ((old, sessions), (local, LOCALS), (calling, 1)):
            await crowd.open(size, counting(progress, size, "opening sessions"))
            require_all_open(crowd)
        for client in local.clients:
            client.index += sessions
        everybody = [*old.clients, *local.clients]
        told = dict(await _all(_prepared(client, f"g{client.index % groups}") for client in everybody))
        traffic = Traffic(calling.clients[0], groups, plan)
        with quiet_collector():
            sending = asyncio.ensure_future(traffic.run())
            await asyncio.sleep(BEFORE_S)
            before_ns, roll.locals_ns = roll.locals_ns, array("q")
            progress(0, sessions, "kill -9 of gateway 0")
            os.kill(near.pid, signal.SIGKILL)
            await until_still(lambda: len(old.ended), lambda: len(old.ended) == sessions)
            new = Crowd(far.url, hub, query=_queries(old, told), sink=roll, at_once=sessions)
            crowds.append(new)
            cpu, own_cpu, traffic.lag_s = -cpu_us(far.pid), -cpu_us(os.getpid()), 0.0
            back = Answers(told, counting(progress, sessions, "resuming"))
            await new.open(sessions, on_open=back.ask)
            await until_still(lambda: back.answered, lambda: back.answered == len(new.clients))
            cpu, own_cpu = cpu + cpu_us(far.pid), own_cpu + cpu_us(os.getpid())
            lag_s = traffic.lag_s
            failures = [*back.refusals, *new.failures, *new.ended]
            meanwhile_ns = roll.locals_ns
            traffic.stop()
            await sending
            due = traffic.rounds * (sessions + LOCALS)
            await until_still(lambda: roll.ledger.deliveries, lambda: roll.ledger.deliveries >= due)
            whole_s = (time.perf_counter_ns() - back.began_ns) / 1e9
        if traffic.refused:
            raise RuntimeError(f"{len(traffic.refused)} invocations were refused; the first: {traffic.refused[0]}")
        tally = roll.ledger.tally(traffic.rounds)
        return Resume(
            sync=install.sync,
            sessions=sessions,
            groups=groups,
            rate=plan.rate,
            resumed=len(back.took_ns),
            failed=len(failures),
            first_failure=next(iter(failures), None),
            p50_s=_seconds(back.took_ns, 50),
            p99_s=_seconds(back.took_ns, 99),
            max_s=_seconds(back.took_ns, 100),
            whole_s=whole_s,
            cpu_us_per_resume=cpu / max(1, len(back.took_ns)),
            bench_cpu_s=own_cpu / 1e6,
            locals_p99_before_ms=percentile_ms(before_ns, 99),
            locals_p99_ms=percentile_ms(meanwhile_ns, 99),
            locals_max_ms=percentile_ms(meanwhile_ns, 100),
            bench_lag_ms=lag_s * 1e3,
            invocations=traffic.sent,
            lost=tally.lost,
            duplicated=tally.duplicated,
            out_of_order=tally.out_of_order,
        )
    finally:
        for crowd in crowds:
            await crowd.close()


def _queries(old: Crowd, told: dict[int, About]) -> Callable[[int], str]:
    """With what each session comes back: its token, and the position of the last that its old connection was sent."""
    were = {client.index: client for client in old.clients}

    def query(index: int) -> str:
        about = told[index]
        return f"resumable=1&resume={about.resume_token}&cursor={were[index].cursor or about.cursor}"

    return query


async def _all(preparing: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """All of them, some at once."""
    gate = asyncio.Semaphore(OPENING_AT_ONCE)

    async def one(each: Coroutine[None, None, T]) -> T:
        async with gate:
            return await each

    return await asyncio.gather(*(one(each) for each in preparing))


async def _prepared(client: LoadClient, group: str) -> tuple[int, About]:
    """In its group, and told who it is, which lets its delivery begin."""
    await client.call("hub.join", group)
    return client.index, msgspec.convert(await client.call("hub.session"), About)


class Answers:
    """What those who came back are told about themselves, and when."""

    def __init__(self, told: Mapping[int, About], more: Callable[[int], None]) -> None:
        self._told = told
        self.began_ns = time.perf_counter_ns()
        self._more = more
        self.answered = 0
        self.took_ns = array("q")
        self.refusals: list[str] = []

    def ask(self, client: LoadClient) -> None:
        before = self._told[client.index]

        def on_answer(answer: Answer) -> None:
            self.answered += 1
            about = msgspec.json.decode(answer.result, type=About) if answer.result else About()
            if before.session_id != about.session_id or not about.resumed or about.resync is not None:
                self.refusals.append(answer.error or f"not resumed: {about.code}, resync {about.resync}")
                return
            self.took_ns.append(time.perf_counter_ns() - self.began_ns)
            self._more(1)

        client.call_with(on_answer, "hub.session", b"[]")


class Traffic:
    """Calls the groups in turn at a steady rate, whole rounds only, until it is told to stop."""

    def __init__(self, client: LoadClient, groups: int, plan: Plan) -> None:
        self._client = client
        self._groups = groups
        self._plan = plan
        self._stopped = False
        self.lag_s = 0.0  # by how much a beat was late at most
        self.sent = 0
        self.answered = 0
        self.refused: list[str] = []

    @property
    def rounds(self) -> int:
        """Those that are complete."""
        return self.sent // self._groups

    def stop(self) -> None:
        self._stopped = True

    async def run(self) -> None:
        """Returns with the end of a round, when all is answered. Raises: NotOpened."""
        began_s = beat_s = time.perf_counter()
        while (not self._stopped or self.sent % self._groups) and self.rounds < ROUNDS_MAX:
            due = int((time.perf_counter() - began_s) * self._plan.rate)
            while self.sent < due and (not self._stopped or self.sent % self._groups):
                self._send_one()
            await asyncio.sleep(BEAT_S)
            now_s = time.perf_counter()
            self.lag_s, beat_s = max(self.lag_s, now_s - beat_s - BEAT_S), now_s
        await until_still(lambda: self.answered, lambda: self.answered == self.sent)

    def _send_one(self) -> None:
        def answered(answer: Answer) -> None:
            self.answered += 1
            if answer.error is not None:
                self.refused.append(answer.error)

        number, group = divmod(self.sent, self._groups)
        arguments = marked_arguments(number, time.perf_counter_ns(), self._plan.argument_bytes)
        selector = b'{"to":"group","group":"g%d"}' % group
        self._client.call_with(answered, "hub.invoke", b'[%s,"%s",%s]' % (selector, TARGET.encode(), arguments))
        self.sent += 1


def _seconds(values_ns: "array[int]", percent: float) -> float | None:
    found = percentile_ms(values_ns, percent)
    return None if found is None else found / 1e3
