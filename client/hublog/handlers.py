"""From messages to handlers: once, in order, one after the other.

Owns the memory of what was taken in (so that a repeat is recognised), the queue, and the calling. What a handler raises
is logged and stays with that handler. It knows no connection and no session.
"""

import inspect
import logging
from collections import deque
from collections.abc import Callable

import msgspec

from hublog import wire
from hublog.answers import Resync
from hublog.inbox import Inbox

REMEMBERED = 4096
"""Positions kept to recognise a message that the service repeats, about 100 bytes each."""

Handler = Callable[..., object]

_log = logging.getLogger("hublog")


class _Received(msgspec.Struct, frozen=True):
    target: str
    arguments: list[msgspec.Raw]


class Handlers:
    def __init__(self, *, positioned: bool) -> None:
        """``positioned``: each message carries its position as one last argument."""
        self._positioned = positioned
        self._by_target: dict[str, list[Handler]] = {}
        self._on_resync: list[Handler] = []
        self._seen: set[str] = set()
        self._seen_in_order: deque[str] = deque()
        self._stopped = False
        self.inbox: Inbox[_Received | Resync | None] = Inbox()
        self.repeats = 0

    def on(self, target: str, handler: Handler) -> Callable[[], None]:
        return added(self._by_target.setdefault(target, []), handler)

    def on_resync(self, handler: Callable[[Resync], object]) -> Callable[[], None]:
        return added(self._on_resync, handler)

    def take_in(self, message: wire.Message) -> str | None:
        """Queue an invocation, unless it was before; give its position, if it has one. Raises: wire.Unreadable."""
        arguments, position = wire.arguments(message.arguments, positioned=self._positioned)
        if position is not None and not self._is_new(position):
            self.repeats += 1
            return position
        if message.target in self._by_target:
            # Copies: a Raw would keep the whole frame alive while it waits.
            copies = [msgspec.Raw(bytes(argument)) for argument in arguments]
            self.inbox.put(_Received(message.target, copies), len(bytes(message.arguments)))
        return position

    def resync(self, told: Resync) -> None:
        self.inbox.put(told)

    def end(self) -> None:
        """Nothing more will come: :meth:`run` ends once everything is handed over."""
        self.inbox.put(None)

    def stop(self) -> None:
        """Nothing more is handed over; a handler that runs finishes."""
        self._stopped = True

    async def run(self) -> None:
        """Hand over what comes. Ends by cancellation, or as :meth:`end` and :meth:`stop` say."""
        while not self._stopped:
            item = await self.inbox.take()
            if item is None:
                return
            if isinstance(item, Resync):
                for observer in list(self._on_resync):
                    await _run(observer, (item,), "on_resync")
                continue
            try:
                arguments = [msgspec.json.decode(argument) for argument in item.arguments]
            except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
                _log.error("hublog: a message for %r cannot be read and is skipped: %s", item.target, exc)
                continue
            for handler in list(self._by_target.get(item.target, ())):
                await _run(handler, arguments, item.target)

    def _is_new(self, position: str) -> bool:
        if position in self._seen:
            return False
        self._seen.add(position)
        self._seen_in_order.append(position)
        if len(self._seen_in_order) > REMEMBERED:
            self._seen.discard(self._seen_in_order.popleft())
        return True


def added(handlers: list[Handler], handler: Handler) -> Callable[[], None]:
    """Add ``handler``; give a function that takes it away again, which may be called twice."""
    handlers.append(handler)

    def remove() -> None:
        if handler in handlers:
            handlers.remove(handler)

    return remove


async def _run(handler: Handler, arguments: "list[object] | tuple[object, ...]", name: str) -> None:
    try:
        result = handler(*arguments)
        if inspect.isawaitable(result):
            await result
    except Exception:  # noqa: BLE001  one handler's defect is not another's
        _log.exception("hublog: a handler of %r failed", name)
