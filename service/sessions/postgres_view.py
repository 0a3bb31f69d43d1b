"""Global questions, answered by the read models in Postgres.

Owns four statements; each reads the checkpoint in the same snapshot, so that an answer states the position that it
reflects. Nothing is opened before the first question, and nothing is ever written. Delivery never comes here.
"""

from typing import Any, Final, LiteralString

import psycopg

from events.errors import InvalidName, ReadModelUnavailable
from events.ids import Epoch, HubName, Position, SessionId, parse_name
from projections.read.model import ReadModel
from service.sessions.view import AsOf

CONNECTIONS_MAX = 2  # a process asks rarely; questions wait for each other rather than for Postgres' limit

_STATEMENT: LiteralString = "SELECT c.epoch, c.sequence, {} FROM checkpoints c WHERE c.partition = %(partition)s"
_COUNT: Final = _STATEMENT.format("coalesce((SELECT active + detached FROM hubs WHERE hub = %(hub)s), 0)")
_IDS: Final = _STATEMENT.format(
    "ARRAY(SELECT session_id FROM sessions WHERE hub = %(hub)s AND state IN ('active', 'detached') ORDER BY session_id)"
)
_NAMES: Final = _STATEMENT.format("ARRAY(SELECT group_name FROM groups WHERE hub = %(hub)s ORDER BY group_name)")
_SIZE: Final = _STATEMENT.format(
    "coalesce((SELECT size FROM groups WHERE hub = %(hub)s AND group_name = %(group)s), 0)"
)


class PostgresView:
    """``GlobalView`` over the read models: as late as they are, and saying how late."""

    def __init__(self, dsn: str, epoch: Epoch, partitions: int) -> None:
        self._epoch = epoch
        self._model = ReadModel(dsn, partitions, connections_max=CONNECTIONS_MAX)

    async def session_count(self, hub: HubName) -> AsOf[int]:
        return await self._ask(_COUNT, hub)

    async def session_ids(self, hub: HubName) -> AsOf[tuple[SessionId, ...]]:
        found = await self._ask(_IDS, hub)
        return AsOf(tuple(found.value), found.position)

    async def group_names(self, hub: HubName) -> AsOf[tuple[str, ...]]:
        found = await self._ask(_NAMES, hub)
        return AsOf(tuple(found.value), found.position)

    async def group_size(self, hub: HubName, group: str) -> AsOf[int]:
        try:
            parse_name(group, "group")
        except InvalidName:
            group = ""  # what cannot be a name is no group, and Postgres cannot be asked for it
        return await self._ask(_SIZE, hub, group=group)

    async def close(self) -> None:
        await self._model.close()

    async def _ask(self, query: LiteralString, hub: HubName, **values: object) -> AsOf[Any]:
        """Raises: ReadModelUnavailable (no answer, no schema, nothing projected, or the read models of another log)."""
        partition = self._model.partition(hub)
        try:
            rows = await self._model.answer(query, partition, {"hub": hub, **values})
        except psycopg.Error as exc:
            raise ReadModelUnavailable(f"Postgres refuses the question: {exc}") from exc
        epoch, sequence, value = rows[0]
        if epoch != self._epoch:
            raise ReadModelUnavailable(f"the read models are of the log {epoch}, this is {self._epoch}")
        return AsOf(value, Position(Epoch(epoch), partition, sequence))
