"""Which commands are traced, and what is known of them while they run.

Owns the decision, made once, by a countdown, before anything is built: what is not sampled costs a subtraction and
carries nothing. A trace that a client began (``traceparent``, sampled) goes on here, within a budget. Spans are made by
whoever is given (``service.telemetry.spans``); without, contexts are passed on and nothing else.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol

from events import trace

ASKED_PER_S_MAX = 100  # traces that clients may ask for, per process; beyond, they are not traced

Kind = Literal["server", "producer", "consumer"]
Attributes = Mapping[str, str | int]

# What the running task does belongs to this trace; events that it writes carry it.
CURRENT: ContextVar[str | None] = ContextVar("traceparent", default=None)


class Span(Protocol):
    """Something that takes a while, and is one node of a trace. Ended exactly once."""

    @property
    def traceparent(self) -> str:
        """What names it as the parent of others."""
        ...

    def note(self, name: str, value: str | int) -> None: ...

    def end(self, error: str | None = None) -> None:
        """``error``: the code of what it failed with."""
        ...


class Spans(Protocol):
    """Makes spans."""

    def start(
        self, name: str, kind: Kind, parent: str | None, attributes: Attributes, began_ns: int | None = None
    ) -> Span:
        """Begin one; with ``began_ns`` (wall clock) it began earlier. Without ``parent`` it begins a trace."""
        ...


class PassedOn:
    """What is traced by others and not here: its context goes on."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def note(self, name: str, value: str | int) -> None:
        """Nobody collects it."""

    def end(self, error: str | None = None) -> None:
        """Nobody collects it."""


class Tracing:
    """The traces of one process. ``ratio`` of the commands that nobody asked to trace are sampled."""

    def __init__(
        self,
        spans: Spans | None = None,
        ratio: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._spans = spans
        self._ratio = ratio if spans is not None else 0.0
        self._chance = chance
        self._clock = clock
        self._second = 0
        self._asked = 0
        self.refused = 0  # that clients asked for and did not get
        self._left = self._gap()

    @property
    def on(self) -> bool:
        return self._spans is not None

    def due(self) -> bool:
        """Hot path: whether the command that is beginning is one to be traced."""
        self._left -= 1
        if self._left:
            return False
        self._left = self._gap()
        return True

    def command(self, name: str, traceparent: str | None, attributes: Attributes) -> Span | None:
        """Begin a command that is due, or comes with a context of its own. None: it is not traced after all."""
        if traceparent is not None and not trace.valid(traceparent):  # as if there were none
            traceparent = None
            if not self.due():
                return None
        if traceparent is None:
            return self._spans.start(name, "server", None, attributes) if self._spans is not None else None
        if not trace.sampled(traceparent) or not self._within_budget():
            return None
        if self._spans is None:
            return PassedOn(traceparent)
        return self._spans.start(name, "server", traceparent, attributes)

    def child(
        self, name: str, kind: Kind, parent: str, attributes: Attributes, began_ns: int | None = None
    ) -> Span | None:
        """Begin a part of a trace; None where nobody collects it."""
        return self._spans.start(name, kind, parent, attributes, began_ns) if self._spans is not None else None

    def _gap(self) -> int:
        """How many commands it is until the next that is traced: independent of each other, whatever their rhythm."""
        if self._ratio <= 0:
            return 0  # below zero with the first command, and never zero again
        if self._ratio >= 1:
            return 1
        return int(math.log(1.0 - self._chance()) / math.log(1.0 - self._ratio)) + 1

    def _within_budget(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._asked = second, 0
        self._asked += 1
        if self._asked <= ASKED_PER_S_MAX:
            return True
        self.refused += 1
        return False


OFF = Tracing()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """What is done inside belongs to the span: events written there carry it."""
    token = CURRENT.set(span.traceparent)
    try:
        yield
    finally:
        CURRENT.reset(token)
