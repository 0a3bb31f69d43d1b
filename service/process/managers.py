"""Which session manager a process uses, the one that ships or the user's own; and what answers global questions."""

import importlib
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from events.errors import Misconfigured
from events.ids import HubName
from service.log.author import Author
from service.log.port import EventLog
from service.sessions.hubs import Factory
from service.sessions.manager import Manager, SessionManager, session_manager
from service.sessions.postgres_view import PostgresView
from service.sessions.view import GlobalView, LogView
from service.settings import Settings


@asynccontextmanager
async def global_view(settings: Settings, log: EventLog) -> AsyncIterator[GlobalView]:
    """Postgres where there is one, opened on first use; else the log itself."""
    dsn = settings.postgres_dsn
    view: GlobalView = LogView(log) if dsn is None else PostgresView(dsn.reveal(), log.epoch, log.partitions)
    try:
        yield view
    finally:
        await view.close()


def manager_factory(settings: Settings, log: EventLog, author: Author, view: GlobalView) -> Factory:
    """A manager per hub, from ``HUBLOG_SESSION_MANAGER`` where it is set.

    A factory of one's own is called as :func:`service.sessions.manager.session_manager` is, for each hub that is used:
    ``factory(hub, log, author=…, view=…, ttl_ms_max=…)``, and returns a ``SessionManager`` that is not yet initialised.
    It shares the loop with every connection: nothing in it may block.

    Raises: Misconfigured (it cannot be loaded, or cannot be called so); the factory made here raises it, too, for
    something that is no manager.
    """
    name = settings.session_manager
    make_manager = session_manager if name is None else _load(name)

    def make(hub: HubName) -> Manager:
        made: Manager = make_manager(hub, log, author=author, view=view, ttl_ms_max=settings.max_age_s * 1_000)
        if not isinstance(made, SessionManager):
            raise Misconfigured(f"HUBLOG_SESSION_MANAGER={name} made a {type(made).__name__}, not a SessionManager")
        return made

    return make


def _load(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as exc:  # whatever the user's own module raises while it is imported
        raise Misconfigured(f"HUBLOG_SESSION_MANAGER={name} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    try:
        inspect.signature(factory).bind("hub", None, author=None, view=None, ttl_ms_max=None)
    except (TypeError, ValueError) as exc:
        raise Misconfigured(
            f"HUBLOG_SESSION_MANAGER={name} cannot be called as factory(hub, log, author=, view=, ttl_ms_max=): {exc}"
        ) from exc
    return factory  # type: ignore[no-any-return]
