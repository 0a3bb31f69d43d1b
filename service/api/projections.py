"""Projections: how far the read models are behind the log."""

from projections.read import Page
from projections.read import projections as read
from projections.read.projections import Projection
from service.api.context import Api
from service.api.routes import get


async def list_projections(api: Api) -> Page[Projection]:
    """How far each partition is projected, how old that is, and how many of its events could not be read."""
    return await read.page(api.reads)


ROUTES = (get("/v1/projections", list_projections),)
