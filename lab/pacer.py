"""A steady beat from the kernel (timerfd), since an event loop's own timers are no finer than a millisecond.

Owns the timer. At 5,000/s a beat of whole milliseconds would send five at once, and measure its own bursts.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_NS = 1_000_000_000


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


def open_timer(interval_ns: int, first_ns: int, flags: int = 0) -> int:
    """The descriptor of a timer: readable at ``first_ns`` of ``time.monotonic_ns``, and at every interval from then.

    Raises: OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_CLOEXEC | flags)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    setting = _TimerSpec(_TimeSpec(*divmod(interval_ns, _NS)), _TimeSpec(*divmod(first_ns, _NS)))
    if libc.timerfd_settime(timer, _TFD_TIMER_ABSTIME, ctypes.byref(setting), None) < 0:
        os.close(timer)
        raise OSError(ctypes.get_errno(), "timerfd_settime")
    return timer


class Pacer:
    """Calls ``on_beats(n)`` with how many beats passed since the last call; late ones are added up, never dropped."""

    def __init__(self, rate: float, on_beats: Callable[[int], None]) -> None:
        self._interval_ns = max(1, round(_NS / rate))
        self._on_beats = on_beats
        self._timer: int | None = None

    def start(self) -> None:
        """The first beat comes one interval from now."""
        self._timer = open_timer(self._interval_ns, time.monotonic_ns() + self._interval_ns, _TFD_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._timer, self._read)

    def stop(self) -> None:
        if self._timer is not None:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = None

    def _read(self) -> None:
        assert self._timer is not None
        try:
            beats = int.from_bytes(os.read(self._timer, 8), "little")
        except BlockingIOError:  # woken without a beat
            return
        self._on_beats(beats)
