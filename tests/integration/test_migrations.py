"""The migrations give the tables of the code, from nothing, from any number of processes at once, and only once."""

import asyncio
import sys

import psycopg
import pytest

import migrations
from events.errors import Misconfigured, ReadModelUnavailable
from projections.tables import metadata


async def test_upgrade_makes_the_tables_of_the_code(empty_database: str) -> None:
    assert await asyncio.to_thread(migrations.revision, empty_database) is None
    assert await asyncio.to_thread(migrations.upgrade, empty_database) == migrations.head()
    await asyncio.to_thread(migrations.check, empty_database)
    assert await asyncio.to_thread(migrations.upgrade, empty_database) == migrations.head()
    assert await asyncio.to_thread(migrations.revision, empty_database) == migrations.head()


async def test_check_names_what_differs(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute("ALTER TABLE sessions ADD COLUMN surplus text")
    with pytest.raises(Misconfigured, match="surplus"):
        await asyncio.to_thread(migrations.check, database)


async def test_collations_and_options_match_the_code(database: str) -> None:
    """What Alembic does not compare: every text is in byte order, and the same tables leave room for updates."""
    async with await psycopg.AsyncConnection.connect(database) as connection:
        answer = await connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND table_name <> 'alembic_version' AND data_type IN ('text', 'ARRAY') AND collation_name <> 'C'"
        )
        assert await answer.fetchall() == []
        answer = await connection.execute(
            "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            " AND reloptions IS NOT NULL"
        )
        options = dict(await answer.fetchall())
    coded = {
        name: [f"{key}={value}" for key, value in table.dialect_options["postgresql"]["with"].items()]
        for name, table in metadata.tables.items()
        if table.dialect_options["postgresql"]["with"]
    }
    assert options == coded


async def test_several_upgrades_at_once(empty_database: str) -> None:
    program = f"import migrations; print(migrations.upgrade({empty_database!r}))"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", program, stdout=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    threads = [asyncio.to_thread(migrations.upgrade, empty_database) for _ in range(2)]
    assert await asyncio.gather(*threads) == [migrations.head()] * 2
    outputs = [(await process.communicate())[0].decode().strip() for process in processes]
    assert outputs == [migrations.head()] * 3
    await asyncio.to_thread(migrations.check, empty_database)


async def test_a_newer_schema_is_refused(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured, match="9999"):
        await asyncio.to_thread(migrations.upgrade, database)


async def test_no_postgres_is_said(tmp_path: object) -> None:
    with pytest.raises(ReadModelUnavailable):
        await asyncio.to_thread(migrations.revision, f"postgresql://nobody@/none?host={tmp_path}")
