"""Hubs: which there are, and how many sessions each has."""

from projections.read import Page
from projections.read import hubs as read
from projections.read.hubs import Hub
from service.api.context import Api
from service.api.pages import Paging
from service.api.routes import get


async def list_hubs(api: Api, query: Paging) -> Page[Hub]:
    """Hubs that have an event, ascending by name.

    With several partitions `position` is null: each hub has its own. `next` is opaque.
    """
    await api.reach(query)
    return await read.page(api.reads, limit=query.limit, after=query.after)


ROUTES = (get("/v1/hubs", list_hubs),)
