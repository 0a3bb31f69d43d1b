"""What the judge and the sweeper ask the read models, as ports, and Postgres behind them.

Answers may be late. Raise ReadModelUnavailable, psycopg.Error.
"""

from collections.abc import Sequence
from typing import Protocol

from projections.forget import close_forgotten
from projections.read import ReadModel, sweeping
from projections.read.sweeping import Life, LostLife, Owed


class Lives(Protocol):
    """What the log says of incarnations; see ``projections.read.sweeping.lives``."""

    async def lives(self, leased: list[str]) -> list[Life]: ...


class Rows(Protocol):
    """What the read models know; see ``projections.read.sweeping``. Lists end with an empty page."""

    async def lost(self, after: int) -> list[LostLife]: ...

    async def attached(self, partition: int, incarnations: list[str], after: Owed | None) -> list[Owed]: ...

    async def overdue(self, partition: int, before_us: int, after: Owed | None) -> list[Owed]: ...

    async def ageing(self, partition: int, up_to: int, after: Owed | None) -> list[Owed]: ...

    async def sequence_before(self, partition: int, before_us: int) -> int: ...

    async def forget(self, partition: int, sessions: Sequence[Owed]) -> int: ...


class StoredRows:
    """``Lives`` and ``Rows`` of Postgres."""

    def __init__(self, model: ReadModel, dsn: str) -> None:
        self._model = model
        self._dsn = dsn

    async def lives(self, leased: list[str]) -> list[Life]:
        return await sweeping.lives(self._model, leased)

    async def lost(self, after: int) -> list[LostLife]:
        return await sweeping.lost(self._model, after)

    async def attached(self, partition: int, incarnations: list[str], after: Owed | None) -> list[Owed]:
        return await sweeping.attached(self._model, partition, incarnations, after)

    async def overdue(self, partition: int, before_us: int, after: Owed | None) -> list[Owed]:
        return await sweeping.overdue(self._model, partition, before_us, after)

    async def ageing(self, partition: int, up_to: int, after: Owed | None) -> list[Owed]:
        return await sweeping.ageing(self._model, partition, up_to, after)

    async def sequence_before(self, partition: int, before_us: int) -> int:
        return await sweeping.sequence_before(self._model, partition, before_us)

    async def forget(self, partition: int, sessions: Sequence[Owed]) -> int:
        return await close_forgotten(self._dsn, partition, sessions)
