"""Groups of a hub and their members; who is in, who is put in, who is taken out."""

from events.errors import Conflict, LogUnavailable, OutcomeUnknown, SessionClosed, TooManyGroups
from events.ids import GroupName, HubName, SessionId
from projections.read import Page
from projections.read import groups as read
from projections.read import members as read_members
from projections.read.groups import Group
from projections.read.members import Member
from service.api.context import Api, actor
from service.api.pages import Acting, Changed, Paging, changed
from service.api.routes import delete, get, put

_MEMBERS = "/v1/hubs/{hub}/groups/{group}/members"


async def list_groups(api: Api, hub: HubName, query: Paging) -> Page[Group]:
    """Groups that have a member, attached or detached, ascending by name."""
    await api.reach(query, hub)
    return await read.page(api.reads, hub, limit=query.limit, after=query.after)


async def list_members(api: Api, hub: HubName, group: GroupName, query: Paging) -> Page[Member]:
    """Members of a group, ascending by session id.

    A group without members is no group: its list is empty, and that is no error.
    """
    await api.reach(query, hub)
    return await read_members.page(api.reads, hub, group, limit=query.limit, after=query.after)


async def put_member(api: Api, hub: HubName, group: GroupName, session: SessionId, query: Acting) -> Changed:
    """Put a session into a group. Being there already is no error: nothing is appended then."""
    return changed(await api.commands.join(hub, session, (group,), actor=actor(query)))


async def delete_member(api: Api, hub: HubName, group: GroupName, session: SessionId, query: Acting) -> Changed:
    """Take a session out of a group. Not being there is no error: nothing is appended then."""
    return changed(await api.commands.leave(hub, session, (group,), actor=actor(query)))


ROUTES = (
    get("/v1/hubs/{hub}/groups", list_groups),
    get(_MEMBERS, list_members),
    put(f"{_MEMBERS}/{{session}}", put_member, SessionClosed, TooManyGroups, Conflict, LogUnavailable, OutcomeUnknown),
    delete(f"{_MEMBERS}/{{session}}", delete_member, Conflict, LogUnavailable, OutcomeUnknown),
)
