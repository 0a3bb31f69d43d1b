"""Opening sessions: how fast, and what each one weighs."""

import asyncio
import time

import msgspec

from lab.client import Crowd
from lab.install import Gateway
from lab.load import Progress, counting, new_hub
from lab.proc import cpu_us, rss_bytes

SETTLE_S = 2.0
"""After opening, before memory is read: what opening needed is gone by then."""


class Connect(msgspec.Struct, frozen=True):
    """Sessions opened on one gateway process; ``kib_each`` is its growth in resident memory.

    Figures of the process are None where it cannot be seen.
    """

    sessions: int
    failed: int
    ended_early: int
    seconds: float
    opens_per_s: float
    cpu_us_per_open: float | None
    rss_before_mib: float | None
    kib_each: float | None
    first_failure: str | None


async def connect(gateway: Gateway, sessions: int, progress: Progress) -> Connect:
    """Opens ``sessions``, each for a user of its own, and weighs them."""
    users = "user-" if gateway.token is None else None  # else all are the token's
    crowd = Crowd(gateway.url, new_hub(), users=users, query=gateway.query)
    rss_before = rss_bytes(gateway.pid) if gateway.pid is not None else None
    cpu_before = cpu_us(gateway.pid) if gateway.pid is not None else None
    try:
        started = time.perf_counter()
        await crowd.open(sessions, counting(progress, sessions, "opening sessions"))
        seconds = time.perf_counter() - started
        opened = len(crowd.clients)
        cpu_each = (
            (cpu_us(gateway.pid) - cpu_before) / max(1, opened) if gateway.pid and cpu_before is not None else None
        )
        await asyncio.sleep(SETTLE_S)
        live = opened - len(crowd.ended)
        grown = rss_bytes(gateway.pid) - rss_before if gateway.pid and rss_before is not None else None
        return Connect(
            sessions=live,
            failed=len(crowd.failures),
            ended_early=len(crowd.ended),
            seconds=seconds,
            opens_per_s=opened / seconds,
            cpu_us_per_open=cpu_each,
            rss_before_mib=rss_before / 2**20 if rss_before is not None else None,
            kib_each=grown / 1024 / max(1, live) if grown is not None else None,
            first_failure=next(iter([*crowd.failures, *crowd.ended]), None),
        )
    finally:
        await crowd.close()
