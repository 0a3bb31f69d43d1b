"""Sessions of a hub: who is there, where and since when; what happened to each; and the end of one."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from events.errors import Conflict, EpochMismatch, InvalidPosition, LogUnavailable, OutcomeUnknown, SessionNotFound
from events.ids import HubName, SessionId
from projections.read import Page
from projections.read import events as read_events
from projections.read import sessions as read
from projections.read.events import Event
from projections.read.sessions import Session, State
from service.api.context import Api, actor
from service.api.pages import Acting, Changed, Paging, Reaching, changed
from service.api.routes import Reading, delete, get


class SessionsQuery(Paging, forbid_unknown_fields=True, kw_only=True):
    """Which sessions."""

    state: Annotated[State | UnsetType, Meta(description="Only sessions in this state.")] = UNSET
    user: Annotated[str | None, Meta(description="Only sessions of this user.", examples=["ann"])] = None
    group: Annotated[str | None, Meta(description="Only members of this group.", examples=["lobby"])] = None
    node: Annotated[str | None, Meta(description="Only sessions that this node serves, or served last.")] = None


async def list_sessions(api: Api, hub: HubName, query: SessionsQuery) -> Page[Session]:
    """Sessions of a hub, ascending by id.

    Closed sessions are listed too, unless `state` says otherwise. `lastSeenAt` of an active session is when its node
    renewed its lease; its own heartbeats never touch the log.
    """
    await api.reach(query, hub)
    return await read.page(
        api.reads,
        hub,
        state=None if query.state is UNSET else query.state,
        user=query.user,
        group=query.group,
        node=query.node,
        limit=query.limit,
        after=query.after,
        last_renewal=api.last_renewal,
    )


async def get_session(api: Api, hub: HubName, session: SessionId, query: Reaching) -> Reading[Session]:
    """One session, open or closed."""
    await api.reach(query, hub)
    found = await read.find(api.reads, hub, session, last_renewal=api.last_renewal)
    if found.item is None:
        raise SessionNotFound(f"there is no such session in hub {hub}", reflects=found.position)
    return Reading(found.item, found.position)


async def list_session_history(api: Api, hub: HubName, session: SessionId, query: Paging) -> Page[Event]:
    """Everything that happened to a session itself, ascending by position: its life and its memberships."""
    await api.reach(query, hub)
    page = await read_events.history(api.reads, hub, session, limit=query.limit, after=query.after)
    if not page.items and query.after is None:
        raise SessionNotFound(f"there is no such session in hub {hub}", reflects=page.position)
    return page


async def kick_session(api: Api, hub: HubName, session: SessionId, query: Acting) -> Changed:
    """Close a session as `kicked`.

    The node that serves it obeys the event and closes the connection. A closed session stays closed: done already.
    """
    return changed(await api.commands.kick(hub, session, actor=actor(query)))


ROUTES = (
    get("/v1/hubs/{hub}/sessions", list_sessions),
    get("/v1/hubs/{hub}/sessions/{session}", get_session),
    delete("/v1/hubs/{hub}/sessions/{session}", kick_session, Conflict, LogUnavailable, OutcomeUnknown),
    get("/v1/hubs/{hub}/sessions/{session}/history", list_session_history, InvalidPosition, EpochMismatch),
)
