"""Puts the API together: every resource's routes, the schema made of them, one dispatcher.

Owns the list of resources. ``service.process`` gives it what it reads from and commands, and listens with
``server.make_runner``.
"""

import msgspec

from projections.read import ReadModel
from service.access.door import Door
from service.api import events, groups, hubs, invocations, nodes, openapi, projections, sessions
from service.api.context import Api
from service.api.ports import HubCommands, LastRenewal
from service.api.routes import Table, get
from service.api.server import BODY_BYTES_MAX, Dispatcher
from service.telemetry.tracing import OFF, Tracing


async def schema(api: Api) -> msgspec.Raw:
    """This document: OpenAPI 3.1 of every route."""
    return api.schema


def make_table() -> Table:
    return Table(
        [
            *hubs.ROUTES,
            *sessions.ROUTES,
            *groups.ROUTES,
            *invocations.ROUTES,
            *events.ROUTES,
            *nodes.ROUTES,
            *projections.ROUTES,
            get("/schema", schema, scope=None),
        ]
    )


def make_app(
    reads: ReadModel,
    commands: HubCommands,
    last_renewal: LastRenewal,
    *,
    version: str = "0",
    body_bytes_max: int = BODY_BYTES_MAX,
    door: Door | None = None,
    tracing: Tracing = OFF,
) -> Dispatcher:
    """The whole API, for :func:`service.api.server.make_runner`. ``door``: who may ask and command."""
    table = make_table()
    document = msgspec.Raw(msgspec.json.encode(openapi.document(table, version)))
    return Dispatcher(
        table,
        Api(reads, commands, last_renewal, document),
        body_bytes_max=body_bytes_max,
        door=door,
        tracing=tracing,
    )
