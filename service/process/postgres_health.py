"""Postgres, watched: its circuit, its schema, how old the rows are, and what ``/readyz`` says of them.

Owns the probe. Readiness looks at what that found last, and asks nobody itself. Apart from ``health`` because a gateway
knows no schema.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any, LiteralString

import psycopg

import migrations
from events.errors import ReadModelUnavailable
from projections.read.progress import hang_up
from service.admin import Check
from service.breaker import Breaker, keep

PROBE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 2  # libpq takes no less

# A checkpoint that was only just made is as of 1970: nothing was projected yet, so nothing is late.
_LOOK: LiteralString = """
SELECT (SELECT array_agg(version_num::text) FROM alembic_version),
       (SELECT extract(epoch FROM max(now() - as_of))::float8 FROM checkpoints WHERE as_of > to_timestamp(0))"""


class PostgresHealth:
    """The circuit of Postgres, and what the probe finds there: the schema's revision, how old the rows are.

    The probe has a connection of its own: a pool that is busy is not a server that is away.
    """

    def __init__(self, dsn: str, *, stale_after_s: float) -> None:
        self.breaker = Breaker("postgres")
        self.behind_s: float | None = None  # as of the last answer; None: nothing was ever projected
        self._dsn = dsn
        self._stale_after_s = stale_after_s
        self._known, self._needed = migrations.known(), migrations.head()
        self._revision: str | None = self._needed
        self._answered_s = time.monotonic()
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    def job(self) -> Coroutine[Any, Any, None]:
        return self._watch()

    def checks(self) -> Mapping[str, Check]:
        return {"postgres": self._check, "schema": self._schema}

    def staleness(self) -> str | None:
        """For whoever answers from the rows: whether they are too old to be handed out."""
        if self.behind_s is None:
            return None  # a new installation, in which nothing is late
        behind_s = self.behind_s + time.monotonic() - self._answered_s
        if behind_s <= self._stale_after_s:
            return None
        return f"the read models are {behind_s:.0f} s old, more than {self._stale_after_s:g} s (HUBLOG_STALE_AFTER)"

    def details(self) -> dict[str, object]:
        """What the last answer said, for people."""
        behind_s = None if self.behind_s is None else round(self.behind_s, 1)
        return {"schema": self._revision, "readModelsAgeS": behind_s}

    async def probe(self) -> None:
        """Raises: ReadModelUnavailable."""
        asking = asyncio.create_task(self._ask())
        done, _ = await asyncio.wait((asking,), timeout=PROBE_TIMEOUT_S)
        if not done:
            self._hang_up()
            asking.cancel()
            asking.add_done_callback(_forget)
            raise ReadModelUnavailable(f"Postgres did not answer within {PROBE_TIMEOUT_S:g} s")
        try:
            revisions, self.behind_s = asking.result()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            revisions = None  # it answers; the schema is its own check
        except psycopg.Error as exc:
            self._hang_up()
            raise ReadModelUnavailable(f"Postgres does not answer: {_first_line(exc)}") from exc
        self._revision = revisions[0] if revisions else None
        self._answered_s = time.monotonic()

    async def _watch(self) -> None:
        try:
            await keep(self.breaker, self.probe)
        finally:
            self._hang_up()

    async def _ask(self) -> tuple[list[str] | None, float | None]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="hublog health"
            )
        found = await (await self._connection.execute(_LOOK)).fetchone()
        assert found is not None
        return found[0], found[1]

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            hang_up(connection)

    def _check(self) -> str | None:
        why = self.breaker.why(time.monotonic())
        return None if why is None else f"Postgres (HUBLOG_POSTGRES_DSN): {why}"

    def _schema(self) -> str | None:
        # A revision that this release does not know is one of the next: a rolling upgrade migrates first.
        if self._revision == self._needed or (self._revision is not None and self._revision not in self._known):
            return None
        return f"the schema is at revision {self._revision or 'none'}: run `hublog migrate`"


def _forget(asking: asyncio.Task[Any]) -> None:
    """What becomes of a probe that was given up is nobody's business, but asyncio wants it to be looked at."""
    if not asking.cancelled():
        asking.exception()


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
