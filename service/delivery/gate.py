"""The gate before one resumed session's outbox: what is delivered live waits here until what was missed has gone out.

Owns the bound on it. It keeps frames only while they fit into a share of what the outbox may hold; beyond that it keeps
nothing, and says so: the log has them all, and the hand-over reads it again.
"""

from collections import deque

from service.delivery.interest import Receiver

SHARE = 4
"""A hand-over holds half of an outbox's bound in the outbox, and one share each in its page and in the gate."""


class Gate:
    """Keeps back what is delivered to one receiver, in order, until it may go out.

    ``dropped``: something was not kept since the last ``restart``. ``sent``: the last sequence that went out past it.
    """

    __slots__ = ("_bytes_max", "_frames", "_receiver", "_size", "dropped", "handed_over", "is_open", "sent")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._bytes_max = receiver.outbox.bytes_max // SHARE
        self._frames: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self.dropped = False
        self.handed_over = False  # a hand-over has begun, or is over
        self.is_open = False
        self.sent = 0
        receiver.deliver = self._keep

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return self._size

    def restart(self) -> None:
        """Forget what was kept, and keep what comes from now on."""
        self._frames.clear()
        self._size, self.dropped = 0, False

    def pop(self, beyond: int) -> tuple[int, bytes] | None:
        """The first that is kept from beyond a sequence, with its own."""
        while self._frames:
            sequence, frame = self._frames.popleft()
            self._size -= len(frame)
            if sequence > beyond:
                return sequence, frame
        return None

    def open(self) -> None:
        """Deliver what was kept, and from now on directly."""
        self.is_open = True
        if self._receiver.hub is None:
            return  # its connection has ended
        outbox = self._receiver.outbox
        self._receiver.deliver = outbox.write
        while (kept := self.pop(0)) is not None:
            outbox.write(kept[1])

    def _keep(self, frame: bytes) -> None:
        if self.dropped:
            return
        self._frames.append((self._receiver.delivered, frame))
        self._size += len(frame)
        if self._size > self._bytes_max:
            self._frames.clear()
            self._size, self.dropped = 0, True
