"""Questions about all sessions of a hub, wherever they are attached.

``GlobalView`` is the port. ``LogView`` answers from the log itself and needs nothing else: right for tests and for a
manager in memory, slow for a large log. A process with Postgres uses ``service.sessions.postgres_view``.
"""

from typing import Generic, Protocol, TypeVar

import msgspec

from events import codec, session
from events.ids import HubName, Position, SessionId
from events.subjects import HubSubjects, parse
from service.log.port import EventLog

Value = TypeVar("Value")


class AsOf(msgspec.Struct, Generic[Value], frozen=True):
    """An answer, and the position that it reflects (everything up to there, nothing beyond)."""

    value: Value
    position: Position


class GlobalView(Protocol):
    """Counts, ids, names and sizes across all nodes. A closed session and a group without members do not exist.

    Every question raises ReadModelUnavailable or LogUnavailable (retryable) where whoever answers it is away.
    """

    async def session_count(self, hub: HubName) -> AsOf[int]:
        """How many sessions are attached or detached."""
        ...

    async def session_ids(self, hub: HubName) -> AsOf[tuple[SessionId, ...]]:
        """The ids of those, ascending."""
        ...

    async def group_names(self, hub: HubName) -> AsOf[tuple[str, ...]]:
        """Names of the groups that have a member, ascending."""
        ...

    async def group_size(self, hub: HubName, group: str) -> AsOf[int]:
        """How many members a group has, attached or detached; 0 for one that does not exist, or cannot."""
        ...

    async def close(self) -> None:
        """Nothing is asked any more."""
        ...


class LogView:
    """The same answers by folding the hub's session subjects up to the leader's last sequence."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def session_count(self, hub: HubName) -> AsOf[int]:
        states = await self._states(hub)
        return AsOf(len(states.value), states.position)

    async def session_ids(self, hub: HubName) -> AsOf[tuple[SessionId, ...]]:
        states = await self._states(hub)
        return AsOf(tuple(sorted(states.value)), states.position)

    async def group_names(self, hub: HubName) -> AsOf[tuple[str, ...]]:
        states = await self._states(hub)
        names = {group for state in states.value.values() for group in state.groups}
        return AsOf(tuple(sorted(names)), states.position)

    async def group_size(self, hub: HubName, group: str) -> AsOf[int]:
        states = await self._states(hub)
        return AsOf(sum(group in state.groups for state in states.value.values()), states.position)

    async def close(self) -> None:
        """Nothing of its own is open."""

    async def _states(self, hub: HubName) -> AsOf[dict[SessionId, session.State]]:
        subjects = HubSubjects(hub, self._log.partitions)
        high = await self._log.last_sequence(subjects.partition)
        states: dict[SessionId, session.State] = {}
        if high:
            async for recorded in self._log.read(f"{subjects.prefix}.s.*.log", 1, high):
                name = parse(recorded.subject).name
                assert name is not None
                states[SessionId(name)] = codec.session_state(recorded)
        living = {name: state for name, state in states.items() if state.status != "closed"}
        return AsOf(living, Position(self._log.epoch, subjects.partition, high))
