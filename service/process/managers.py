"""Which session manager a process uses: the one that ships, or the user's own."""

import importlib

from events.errors import Misconfigured
from events.ids import HubName
from service.log.author import Author
from service.log.jetstream import JetStreamLog
from service.sessions.hubs import Factory
from service.sessions.manager import Manager, session_manager
from service.sessions.view import GlobalView
from service.settings import Settings


def manager_factory(settings: Settings, log: JetStreamLog, author: Author, view: GlobalView) -> Factory:
    """A manager per hub, from ``HUBLOG_SESSION_MANAGER`` where it is set. Raises: Misconfigured."""
    ttl_ms_max = settings.max_age_s * 1_000
    if settings.session_manager is None:

        def make(hub: HubName) -> Manager:
            return session_manager(hub, log, author=author, view=view, ttl_ms_max=ttl_ms_max)

        return make
    module, _, name = settings.session_manager.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise Misconfigured(f"HUBLOG_SESSION_MANAGER={settings.session_manager} cannot be loaded: {exc}") from exc

    def make_own(hub: HubName) -> Manager:
        manager: Manager = factory(hub, log)
        return manager

    return make_own
