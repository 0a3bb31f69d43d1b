"""A steady beat from the kernel (timerfd), since an event loop's own timers are no finer than a millisecond.

Owns one timer. At 5,000/s a beat of whole milliseconds would send five at once, and measure its own bursts.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_NS = 1_000_000_000


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("first", _TimeSpec))


class Pacer:
    """Calls ``on_beats(n)`` with how many beats passed since the last call; late ones are added up, never dropped."""

    def __init__(self, rate: float, on_beats: Callable[[int], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._interval_ns = max(1, round(_NS / rate))
        self._on_beats = on_beats
        self._timer: int | None = None

    def start(self) -> None:
        """The first beat comes one interval from now."""
        timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._timer = timer
        beat = _TimeSpec(*divmod(self._interval_ns, _NS))
        if self._libc.timerfd_settime(timer, 0, ctypes.byref(_TimerSpec(beat, beat)), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        asyncio.get_running_loop().add_reader(timer, self._read)

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
