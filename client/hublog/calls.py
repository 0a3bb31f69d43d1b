"""Calls that wait for their answers, in the order in which they were made, across connections.

Owns which of them are sent again after a resume: those with a key, which the service does once however often it is
asked, and those never sent. It writes nothing itself; connections are only compared.
"""

import asyncio
import itertools
from collections import deque

import msgspec

from hublog import wire
from hublog.errors import ClientClosed, ConnectionLost, HublogError, OutcomeUnknown, ServerError


class Call:
    """One call. ``sent_on``: the connection that carries it now; ``sent``: some connection has."""

    __slots__ = ("answer", "frame", "key", "number", "sent", "sent_on", "target")

    def __init__(self, number: str, target: str, frame: bytes, key: str | None) -> None:
        self.number = number
        self.target = target
        self.frame = frame
        self.key = key
        self.sent = False
        self.sent_on: object | None = None
        self.answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Calls:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Call] = {}
        self._unsent: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, target: str, parameters: list[object], key: str | None) -> Call:
        number = str(next(self._numbers))
        call = Call(number, target, wire.call(number, target, parameters), key)
        self._waiting[number] = call
        self._unsent.append(call)
        return call

    def forget(self, call: Call) -> None:
        """Nobody waits any more: it is neither sent nor answered."""
        self._waiting.pop(call.number, None)

    def next_for(self, link: object) -> Call | None:
        """The next call that ``link`` has to carry, in order. It is marked as it is given: no link carries it twice."""
        while self._unsent:
            call = self._unsent.popleft()
            if call.number in self._waiting:
                call.sent_on, call.sent = link, True
                return call
        return None

    def answered(self, message: wire.Message) -> Call | None:
        """A Completion came. Gives the call, if somebody waits for it."""
        call = self._waiting.pop(message.invocationId or "", None)
        if call is None or call.answer.done():
            return None
        if message.error is not None:
            call.fail(ServerError.from_wire(message.error))
        else:
            call.answer.set_result(message.result)
        return call

    def lost(self, link: object, *, repeatable: bool) -> None:
        """The link is gone: what it carried is sent again by the next one if it has a key, else it fails."""
        for call in list(self._waiting.values()):
            if call.sent_on is link:
                if repeatable and call.key is not None:
                    call.sent_on = None
                else:
                    self.forget(call)
                    call.fail(ConnectionLost(f"the connection was lost while {call.target} was under way"))
        # What was under way before what was never sent: in the order in which the calls were made.
        self._unsent = deque(call for call in self._waiting.values() if call.sent_on is None)

    def another_session(self) -> None:
        """A key is the session's: what the former one may have done already is not repeated by this one."""
        for call in list(self._waiting.values()):
            if call.sent and call.sent_on is None:
                self.forget(call)
                call.fail(OutcomeUnknown(f"the session was lost while {call.target} was under way", call.key))

    def end(self, message: str, cause: HublogError | None) -> None:
        """The client is over: what was sent may have been done, the rest was not."""
        for call in list(self._waiting.values()):
            error: HublogError = OutcomeUnknown(message, call.key) if call.sent else ClientClosed(message)
            error.__cause__ = cause
            call.fail(error)
        self._waiting.clear()
        self._unsent.clear()
