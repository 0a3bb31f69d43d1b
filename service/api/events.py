"""The log of a hub, as it was written."""

from typing import Annotated

from msgspec import Meta

from events.errors import EpochMismatch, InvalidPosition
from events.ids import HubName
from projections.read import Page
from projections.read import events as read
from projections.read.events import Event
from service.api.context import Api
from service.api.pages import Paging
from service.api.routes import get


class EventsQuery(Paging, forbid_unknown_fields=True, kw_only=True):
    """Which events."""

    type: Annotated[
        str | None,
        Meta(description="Only events of this tag; without its version, of all.", examples=["invocation.requested"]),
    ] = None
    subject: Annotated[
        str | None, Meta(description="Only events of exactly this subject.", examples=["ev.0.chat.g.lobby"])
    ] = None


async def list_events(api: Api, hub: HubName, query: EventsQuery) -> Page[Event]:
    """Events of a hub, ascending by position: each envelope with its position and subject, its data byte for byte.

    `after` is any position, also one that no event of this hub has.
    """
    await api.reach(query, hub)
    return await read.page(api.reads, hub, type=query.type, subject=query.subject, limit=query.limit, after=query.after)


ROUTES = (get("/v1/hubs/{hub}/events", list_events, InvalidPosition, EpochMismatch),)
