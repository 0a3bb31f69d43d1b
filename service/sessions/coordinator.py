"""The connections of one node and the sessions that they serve, with where each stands on its way.

    connecting ─► authenticating ─► active ─► detached | closed ─► (removed)

Owns the map and the moments: who came, who moved, who is due. It decides nothing about sessions, that is
``events.session``; and it knows no transport: anything with timers and an id can be coordinated.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, Literal, Protocol, TypeVar

import structlog

from events.ids import SessionId

Standing = Literal["connecting", "authenticating", "active", "detached", "closed"]

_log = structlog.get_logger(__name__)


class Coordinated(Protocol):
    """A connection, as far as the coordinator knows it."""

    @property
    def id(self) -> str: ...

    @property
    def session_id(self) -> SessionId:
        """Empty until there is a session."""
        ...

    @property
    def ended(self) -> bool: ...

    def tick(self, now_s: float) -> None:
        """Run its timers; it ends itself where they say so."""
        ...

    def fail(self) -> None:
        """A defect met its timers: end it at once, whatever it was doing."""
        ...


C = TypeVar("C", bound=Coordinated)
# (connection, where it stood (None: nowhere yet), where it stands (None: it is gone)). Called synchronously, in order.
Observer = Callable[[C, Standing | None, Standing | None], None]


class Coordinator(Generic[C]):
    """Connections by id and by session; for one process, on its loop."""

    def __init__(self) -> None:
        self.by_connection: dict[str, C] = {}
        self._by_session: dict[SessionId, C] = {}
        self._standing: dict[str, Standing] = {}
        self._observers: list[Observer[C]] = []
        self.counts: Counter[Standing] = Counter()

    def observe(self, observer: Observer[C]) -> None:
        """Hear every move from now on. An observer that fails is logged and does not stop the others."""
        self._observers.append(observer)

    def create(self, connection: C) -> None:
        """A connection has come. Raises: ValueError when its id is taken."""
        if connection.id in self.by_connection:
            raise ValueError(f"connection {connection.id} is there already")
        self.by_connection[connection.id] = connection
        self._enter(connection, None, "connecting")

    def move(self, connection: C, standing: Standing) -> None:
        """A connection moved on; also called when an active one takes another session over."""
        before = self._standing.get(connection.id)
        if before is None:
            return  # removed meanwhile
        if standing == "active":
            self._by_session[connection.session_id] = connection
        if standing != before:
            self._enter(connection, before, standing)

    def remove(self, connection: C) -> None:
        """A connection is gone."""
        if self.by_connection.get(connection.id) is not connection:
            return
        del self.by_connection[connection.id]
        self.forget_session(connection, connection.session_id)
        before = self._standing.pop(connection.id)
        self.counts[before] -= 1
        self._tell(connection, before, None)

    def forget_session(self, connection: C, session_id: SessionId) -> None:
        """The connection has let go of a session for another one."""
        if self._by_session.get(session_id) is connection:
            del self._by_session[session_id]

    def find(self, connection_id: str) -> C | None:
        return self.by_connection.get(connection_id)

    def serving(self, session_id: SessionId) -> C | None:
        """The connection that serves a session here."""
        return self._by_session.get(session_id)

    def standing(self, connection_id: str) -> Standing | None:
        return self._standing.get(connection_id)

    def __iter__(self) -> Iterator[C]:
        """Those who are here now; may change while it is gone through."""
        return iter(list(self.by_connection.values()))

    def __len__(self) -> int:
        return len(self.by_connection)

    def evaluate(self, connections: list[C], now_s: float) -> None:
        """Run the timers of some connections (heartbeats, silence, age); never touches the log itself."""
        for connection in connections:
            if connection.ended:
                continue
            try:
                connection.tick(now_s)
            except Exception:  # noqa: BLE001  a defect ends its own connection, not everybody's timers
                _log.exception("connection.tick_failed", session_id=connection.session_id)
                connection.fail()

    def _enter(self, connection: C, before: Standing | None, standing: Standing) -> None:
        self._standing[connection.id] = standing
        if before is not None:
            self.counts[before] -= 1
        self.counts[standing] += 1
        self._tell(connection, before, standing)

    def _tell(self, connection: C, before: Standing | None, standing: Standing | None) -> None:
        for observer in self._observers:
            try:
                observer(connection, before, standing)
            except Exception:  # noqa: BLE001  one observer's defect is not the others'
                _log.exception("coordinator.observer_failed", session_id=connection.session_id)
