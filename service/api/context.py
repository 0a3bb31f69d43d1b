"""What every handler is given: the read models, the commands, the leases; and the two questions all of them ask."""

import msgspec

from events.errors import InvalidPosition
from events.ids import HubName, parse_name, parse_position
from projections.read import ReadModel
from service.api.pages import Acting, Reaching
from service.api.ports import HubCommands, LastRenewal

WAIT_S = 5.0  # how long `min_position` may wait


class Api(msgspec.Struct, frozen=True):
    """``schema`` is the OpenAPI document, encoded once."""

    reads: ReadModel
    commands: HubCommands
    last_renewal: LastRenewal
    schema: msgspec.Raw

    async def reach(self, query: Reaching, hub: HubName | None = None) -> None:
        """Read your writes: return when the read model covers what the query asks for.

        Raises: InvalidPosition (also one of another partition than the hub's), EpochMismatch, PositionNotReached.
        """
        if query.min_position is None:
            return
        position = parse_position(query.min_position)
        if hub is not None and position.partition != self.reads.partition(hub):
            raise InvalidPosition(f"{position} is not of the partition of hub {hub}")
        if position.partition >= self.reads.partitions:
            raise InvalidPosition(f"{position} is of a partition that this log does not have")
        await self.reads.wait_for(position, WAIT_S)


def actor(query: Acting) -> str:
    """Who is recorded as doing it. Raises: InvalidName."""
    return "system:api" if query.user is None else f"user:{parse_name(query.user, 'user')}"
