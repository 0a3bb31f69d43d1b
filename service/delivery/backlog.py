"""What came by while nothing could be delivered: kept in order, within bounds, until it may be dispatched.

Owns the bounds. Beyond them it keeps nothing, and says so: the log has it all, and is read instead. Whether a message
is still new to anybody is the dispatcher's to judge.
"""

from collections import deque
from collections.abc import Iterable

from service.delivery.interest import Chain

MESSAGES_MAX = 50_000
BYTES_MAX = 64 * 1024 * 1024


class Backlog:
    """``waiting``: (chain, sequence, the one before it on its subject, payload), ascending; ``size`` of the payloads.

    Who takes from ``waiting`` takes from ``size``. ``overflowed``: it was too much, and nothing is kept.
    """

    __slots__ = ("overflowed", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Chain, int, int, bytes]] = deque()
        self.size = 0
        self.overflowed = False

    def add(self, chain: Chain, sequence: int, previous: int, payload: bytes) -> None:
        """One more, behind the others, as it was heard."""
        if self.overflowed:
            return
        self.waiting.append((chain, sequence, previous, payload))
        self.size += len(payload)
        if len(self.waiting) > MESSAGES_MAX or self.size > BYTES_MAX:
            self.waiting.clear()
            self.size = 0
            self.overflowed = True

    def insert(self, found: Iterable[tuple[Chain, int, bytes]]) -> None:
        """What was read, in its place. Of what was both read and heard, the second is to be passed over as known."""
        more = [(chain, sequence, 0, payload) for chain, sequence, payload in found]
        if more:
            self.waiting = deque(sorted([*self.waiting, *more], key=lambda item: item[1]))
            self.size += sum(len(item[3]) for item in more)

    def messages(self) -> list[tuple[Chain, int, bytes]]:
        """A copy, without what came before each."""
        return [(chain, sequence, payload) for chain, sequence, _, payload in self.waiting]
