"""Invocations of a hub: what was called, and calling."""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from events.errors import (
    EpochMismatch,
    HublogError,
    InvalidArguments,
    InvalidName,
    InvalidOption,
    InvalidPosition,
    InvalidSelector,
    KeyReused,
    LogUnavailable,
    NotFound,
    OutcomeUnknown,
    TooManyTargets,
)
from events.ids import EventId, HubName
from events.selector import Selector
from projections.read import Page
from projections.read import invocations as read
from projections.read.invocations import Invocation
from service.api.context import Api, actor
from service.api.pages import Acting, Paging, Reaching
from service.api.routes import Reading, get, post
from service.sessions.router import Outcome


def _no_arguments() -> msgspec.Raw:
    return msgspec.Raw(b"[]")


class Invoke(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """A call on the sessions that the selector picks."""

    refusals: ClassVar[dict[str, type[HublogError]]] = {
        "selector": InvalidSelector,
        "key": InvalidOption,
        "ttlMs": InvalidOption,
    }

    selector: Annotated[Selector, Meta(examples=[{"to": "group", "group": "lobby"}])]
    target: Annotated[str, Meta(description="The method of the clients.", examples=["say"])]
    arguments: Annotated[
        msgspec.Raw,
        Meta(
            description="Kept and delivered byte for byte.",
            examples=[["ann", "hello"]],
            extra_json_schema={"type": "array", "default": []},
        ),
    ] = msgspec.field(default_factory=_no_arguments)
    key: Annotated[
        str | None,
        Meta(
            description="Idempotency key, 1 to 128 characters: a repeat answers the first call.",
            examples=["order-17-paid"],
        ),
    ] = None
    ttl_ms: Annotated[
        int | None, Meta(description="Not delivered to who resumes later than this.", examples=[60_000])
    ] = None


async def invoke(api: Api, hub: HubName, query: Acting, body: Invoke) -> Outcome:
    """Call sessions; durable once answered.

    `outcome` is `sent`, `queued` or `not_found` (position null, nothing appended) for one client, as of the call's
    position; `accepted` for every other selector. Selectors relative to a caller are for sessions only.
    """
    return await api.commands.invoke(
        hub,
        body.selector,
        body.target,
        bytes(body.arguments),
        actor=actor(query),
        key=body.key,
        ttl_ms=body.ttl_ms,
    )


async def list_invocations(api: Api, hub: HubName, query: Paging) -> Page[Invocation]:
    """Invocations of a hub, the newest first."""
    await api.reach(query, hub)
    return await read.page(api.reads, hub, limit=query.limit, after=query.after)


async def get_invocation(api: Api, hub: HubName, invocation: EventId, query: Reaching) -> Reading[Invocation]:
    """One invocation."""
    await api.reach(query, hub)
    found = await read.find(api.reads, hub, invocation)
    if found.item is None:
        raise NotFound(f"there is no such invocation in hub {hub}", reflects=found.position)
    return Reading(found.item, found.position)


ROUTES = (
    post(
        "/v1/hubs/{hub}/invocations",
        invoke,
        InvalidArguments,
        InvalidOption,
        InvalidName,
        TooManyTargets,
        KeyReused,
        LogUnavailable,
        OutcomeUnknown,
    ),
    get("/v1/hubs/{hub}/invocations", list_invocations, InvalidPosition, EpochMismatch),
    get("/v1/hubs/{hub}/invocations/{invocation}", get_invocation),
)
