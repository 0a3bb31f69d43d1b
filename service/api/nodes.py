"""Nodes: gateway processes, as the log and their leases tell."""

from projections.read import Page
from projections.read import nodes as read
from projections.read.nodes import Node
from service.api.context import Api
from service.api.pages import Paging
from service.api.routes import get


async def list_nodes(api: Api, query: Paging) -> Page[Node]:
    """Gateway processes, each in its newest incarnation, ascending by name."""
    await api.reach(query)
    return await read.page(api.reads, limit=query.limit, after=query.after, last_renewal=api.last_renewal)


ROUTES = (get("/v1/nodes", list_nodes),)
