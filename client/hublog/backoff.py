"""How long to wait before the next attempt: exponential with full jitter, so that a crowd does not come as one wave."""

EXPONENT_MAX = 20  # any cap has long been reached


def delay_s(attempt: int, uniform: float, *, first_s: float, longest_s: float) -> float:
    """Attempts count from 0, ``uniform`` is random in [0, 1); gives [0, first_s * 2**attempt) up to ``longest_s``."""
    return uniform * min(longest_s, first_s * float(1 << min(attempt, EXPONENT_MAX)))
