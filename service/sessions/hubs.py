"""The managers of a process: one per hub, made when first asked for.

Also the commands of the query API, which names the hub with each of them.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

import structlog

from events.errors import SessionNotFound
from events.ids import GroupName, HubName, Position, SessionId
from events.selector import Selector
from events.subjects import HubSubjects
from service.log.port import EventLog
from service.sessions.manager import Manager
from service.sessions.registry import KnownSession
from service.sessions.router import Call, Outcome

IDLE_HUBS_MAX = 1_024  # managers are small, but anybody can name hubs: those without local sessions make room
LOOKS_MAX = 8  # at managers, for one without sessions, for each new hub: all may have some, and there may be thousands

_log = structlog.get_logger(__name__)

Factory = Callable[[HubName], Manager]


class Hubs:
    """Managers by hub. ``factory`` makes one; it is initialised before anybody gets it."""

    def __init__(self, log: EventLog, factory: Factory) -> None:
        self._log = log
        self._factory = factory
        self._managers: dict[HubName, asyncio.Task[Manager]] = {}  # who was needed last is last

    async def manager(self, hub: HubName) -> Manager:
        """The hub's manager. Raises: what its ``initialize`` raises; then the next call tries again."""
        making = self._needed(hub)
        if making is None:
            await self._make_room()
            making = self._needed(hub)
        if making is None:
            making = self._managers[hub] = asyncio.ensure_future(self._make(hub))
        try:
            # Shielded: others wait for the same manager.
            return await asyncio.shield(making)
        except Exception:
            if self._managers.get(hub) is making and making.done():
                del self._managers[hub]
            raise

    async def shutdown(self) -> None:
        """Shut every manager down, one failing or not. Raises: ExceptionGroup of what they raised."""
        managers, self._managers = self._managers, {}
        failures: list[Exception] = []
        for made in await asyncio.gather(*managers.values(), return_exceptions=True):
            if isinstance(made, BaseException):
                continue  # it never came to be, and who asked for it was told
            try:
                await made.shutdown()
            except Exception as exc:  # noqa: BLE001  raised below, when all had their turn
                failures.append(exc)
        if failures:
            raise ExceptionGroup("not every hub did shut down cleanly", failures)

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
        """Call sessions of a hub. ``actor`` (``user:<id>`` or ``system:<role>``) owns the key.

        Raises: InvalidSelector, InvalidArguments, InvalidName, InvalidOption, TooManyTargets, KeyReused, Unavailable,
        OutcomeUnknown.
        """
        manager = await self.manager(hub)
        user = actor.removeprefix("user:") if actor.startswith("user:") else None
        return await manager.router.invoke(
            Call(selector, target, arguments, actor=actor, caller=caller, user=user, key=key, ttl_ms=ttl_ms)
        )

    async def join(self, hub: HubName, session: SessionId, groups: Sequence[GroupName], *, actor: str) -> Position:
        """Add a session to groups, all or none; the position of its last event afterwards.

        Raises: InvalidName, SessionNotFound, SessionClosed, TooManyGroups, Unavailable, OutcomeUnknown.
        """
        manager = await self.manager(hub)
        return self._position(hub, await manager.groups.add(session, *groups, actor=actor))

    async def leave(self, hub: HubName, session: SessionId, groups: Sequence[GroupName], *, actor: str) -> Position:
        """Remove a session from groups; the position of its last event afterwards.

        Raises: SessionNotFound, Unavailable, OutcomeUnknown.
        """
        manager = await self.manager(hub)
        return self._position(hub, await manager.groups.remove(session, *groups, actor=actor))

    async def kick(self, hub: HubName, session: SessionId, *, actor: str) -> Position:
        """Close as ``kicked``; already closed is already done. The position of what closed it.

        Raises: SessionNotFound, Unavailable, OutcomeUnknown.
        """
        manager = await self.manager(hub)
        await manager.sessions.unregister(session, "kicked", actor=actor)
        last = await self._log.last(HubSubjects(hub, self._log.partitions).session(session))
        if last is None:
            raise SessionNotFound(f"there is no session {session}")
        return self._at(hub, last.sequence)

    async def _make(self, hub: HubName) -> Manager:
        manager = self._factory(hub)
        await manager.initialize()
        return manager

    def _needed(self, hub: HubName) -> asyncio.Task[Manager] | None:
        making = self._managers.pop(hub, None)
        if making is not None:
            self._managers[hub] = making
        return making

    async def _make_room(self) -> None:
        """Let go of one that nobody needs, looking first at those that were not needed for longest."""
        if len(self._managers) < IDLE_HUBS_MAX:
            return
        for hub in list(islice(self._managers, LOOKS_MAX)):
            making = self._managers[hub]
            if not making.done() or making.cancelled() or making.exception():
                continue
            idle = making.result()
            if idle.sessions.local_sessions():
                self._needed(hub)
                continue
            del self._managers[hub]
            try:
                await idle.shutdown()
            except Exception:  # noqa: BLE001  of another hub than the one that is asked for
                _log.exception("hub.not_shut_down", hub=hub)
            return

    def _position(self, hub: HubName, known: KnownSession) -> Position:
        return self._at(hub, known.sequence)

    def _at(self, hub: HubName, sequence: int) -> Position:
        return Position(self._log.epoch, HubSubjects(hub, self._log.partitions).partition, sequence)
