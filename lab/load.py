"""What all measurements share: hubs of their own, progress, and a quiet collector."""

import asyncio
import contextlib
import gc
import secrets
import time
from collections.abc import Callable, Iterator

from lab.client import Crowd

TARGET = "bench"
"""The client method that every measurement invokes."""
IDLE_MAX_S = 15.0
"""Nothing delivered for this long: what is missing is lost."""

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""


def new_hub() -> str:
    """A hub for one run, so that runs do not meet."""
    return f"bench-{secrets.token_hex(4)}"


def counting(progress: Progress, total: int, what: str) -> Callable[[int], None]:
    """Turns "so many more" into ``progress``."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total, what)

    return more


def require_all_open(crowd: Crowd) -> None:
    if crowd.failures:
        raise RuntimeError(f"{len(crowd.failures)} sessions did not open; the first: {crowd.failures[0]}")


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """Keeps this process's own garbage collection out of the figures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until_still(count: Callable[[], int], complete: Callable[[], bool], *, idle_s: float = IDLE_MAX_S) -> None:
    """Waits until all is there, or ``count`` has not moved for ``idle_s``."""
    before, still_since = count(), time.perf_counter()
    while not complete() and time.perf_counter() - still_since < idle_s:
        await asyncio.sleep(0.02)
        if count() != before:
            before, still_since = count(), time.perf_counter()
