"""How deep JSON may go before it enters the log.

Readers of the log decode recursively, each from its own depth of stack: what one process just manages to read, another
cannot, and an event that cannot be read is parked. So the bound is far below any of their limits.
"""

import re

NESTING_MAX = 64

_BRACKETS_AND_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def too_deep(raw: bytes) -> bool:
    """Whether the brackets of a JSON text go deeper than ``NESTING_MAX``; those inside strings do not count."""
    if raw.count(b"[") + raw.count(b"{") <= NESTING_MAX:  # hot path: nearly everything ends here
        return False
    depth = 0
    for found in _BRACKETS_AND_STRINGS.finditer(raw):
        first = found[0][:1]
        if first in b"[{":
            depth += 1
            if depth > NESTING_MAX:
                return True
        elif first in b"]}":
            depth -= 1
    return False
