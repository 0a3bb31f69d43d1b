"""The sessions that are attached to this process, and the newest state of each that was seen here.

Fed by both: the answers to this process's own commands, and the feed. It never decides anything; a stale state here
only costs a read on the leader.
"""

from events import session
from events.ids import SessionId
from service.log.commands import Known


class LocalSessions:
    """Newest known states by session id, with an index by group."""

    def __init__(self) -> None:
        self._known: dict[SessionId, Known[session.State]] = {}
        self._groups: dict[str, set[SessionId]] = {}

    def learn(self, session_id: SessionId, known: Known[session.State]) -> None:
        """Take in a state that is newer than what is known; what is closed or detached is not attached here: forgotten.

        Also makes a session known that was not, so: only of sessions whose connection is here.
        """
        before = self._known.get(session_id)
        if before is not None and before.sequence >= known.sequence:
            return
        state = known.state
        if state.status != "active":
            self.forget(session_id)
            return
        old = before.state.groups.keys() if before is not None else set()
        for group in old - state.groups.keys():
            self._leave(group, session_id)
        for group in state.groups.keys() - old:
            self._groups.setdefault(group, set()).add(session_id)
        self._known[session_id] = known

    def forget(self, session_id: SessionId) -> None:
        """The session is not attached here any more."""
        known = self._known.pop(session_id, None)
        for group in known.state.groups if known is not None else ():
            self._leave(group, session_id)

    def get(self, session_id: SessionId) -> Known[session.State] | None:
        """What is known of a session that is attached here, and of which sequence; None for any other."""
        return self._known.get(session_id)

    def ids(self) -> tuple[SessionId, ...]:
        """In the order in which they came."""
        return tuple(self._known)

    def members(self, group: str) -> tuple[SessionId, ...]:
        """In no particular order; none for a group without members here."""
        return tuple(self._groups.get(group, ()))

    def __len__(self) -> int:
        return len(self._known)

    def _leave(self, group: str, session_id: SessionId) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.discard(session_id)
            if not members:
                del self._groups[group]
