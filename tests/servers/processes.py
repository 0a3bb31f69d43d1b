"""Waiting on conditions, bounded, and looking at processes."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 20.0
POLL_S = 0.01


async def until(condition: Callable[[], bool], *, what: str = "", timeout_s: float = PATIENCE_S) -> None:
    """Return as soon as ``condition()`` holds; fail when it never does."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, f"never came true within {timeout_s} s: {what or condition}"
        await asyncio.sleep(POLL_S)


def gone(pid: int) -> bool:
    """Ended: no such process, or one that only its parent has still to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
