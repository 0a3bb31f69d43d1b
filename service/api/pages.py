"""What questions have in common: how a list is asked for, how to read one's own writes, who commands.

Owns limits and their refusal. What a list answers is ``projections.read.Page``. It knows no resource.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from events.errors import InvalidQuery, LimitTooLarge
from events.ids import Position

LIMIT = 100
LIMIT_MAX = 1_000


class Reaching(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Read your writes."""

    min_position: Annotated[
        str | None,
        Meta(
            description="Wait, for a few seconds, until the answer reflects this position; else 409.",
            examples=["k7qd.0-1523"],
        ),
    ] = None


class Paging(Reaching, forbid_unknown_fields=True, kw_only=True):
    """A page of a list, and where it starts."""

    limit: Annotated[
        int, Meta(ge=1, description="How many items at most.", extra_json_schema={"maximum": LIMIT_MAX})
    ] = LIMIT
    after: Annotated[str | None, Meta(description="`next` of the page before.")] = None

    def __post_init__(self) -> None:
        if self.limit > LIMIT_MAX:
            raise LimitTooLarge(f"limit is {self.limit}")


class Acting(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Who commands. With access tokens it is the token's user."""

    user: Annotated[
        str | None,
        Meta(
            description="Record this user as the actor, in place of `system:api`. With access tokens it is the "
            "token's user, and another one is refused.",
            examples=["ann"],
        ),
    ] = None


def acting(arguments: dict[str, object], user: str | None) -> dict[str, object]:
    """A handler's arguments where a token says who commands. Raises: InvalidQuery where the query says otherwise."""
    query = arguments.get("query")
    if not isinstance(query, Acting):
        return arguments
    if query.user is not None and query.user != user:
        raise InvalidQuery("the user is the token's; leave out user")
    return {**arguments, "query": msgspec.structs.replace(query, user=user)}


class Changed(msgspec.Struct, frozen=True):
    """The position of the event that was appended, or of the last one where it was so already."""

    position: Annotated[str, Meta(examples=["k7qd.0-1523"])]


def changed(position: Position) -> Changed:
    return Changed(str(position))
