"""What the API needs of the rest: commands that append events, and what it cannot read from Postgres.

Owns the interfaces only; ``service.sessions`` and ``service.nodes`` implement them, ``service.process`` puts them in.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from events.ids import GroupName, HubName, Position, SessionId
from events.selector import Selector
from service.sessions.router import Outcome


class HubCommands(Protocol):
    """Everything that the API changes, as events that the owning node obeys. ``actor`` is recorded as who did it."""

    async def invoke(
        self,
        hub: HubName,
        selector: Selector,
        target: str,
        arguments: bytes,
        *,
        actor: str,
        caller: SessionId | None = None,
        key: str | None = None,
        ttl_ms: int | None = None,
    ) -> Outcome:
        """Call sessions. Raises: Refused (selector, arguments, options, key), Unavailable, OutcomeUnknown."""
        ...

    async def join(self, hub: HubName, session: SessionId, groups: Sequence[GroupName], *, actor: str) -> Position:
        """Add to groups; the position of the ``joined``, or of the last event if it was a member of all.

        Raises: SessionNotFound, SessionClosed, TooManyGroups, Unavailable.
        """
        ...

    async def leave(self, hub: HubName, session: SessionId, groups: Sequence[GroupName], *, actor: str) -> Position:
        """Take out of groups. Raises: SessionNotFound, Unavailable."""
        ...

    async def kick(self, hub: HubName, session: SessionId, *, actor: str) -> Position:
        """Close as ``kicked``; already closed is already done. Raises: SessionNotFound, Unavailable."""
        ...


# When a node's incarnation last renewed its lease, microseconds since 1970; None: never, or long gone.
LastRenewal = Callable[[str], int | None]
