"""Postgres for tests: one server, and a database per test copied from a migrated template."""

import secrets
from pathlib import Path

import psycopg
from psycopg import sql

from service.up.postgres import PostgresServer

TEMPLATE = "hublog_template"


async def start_postgres(folder: Path) -> PostgresServer:
    """A running server of one's own in ``folder``, without fsync; the caller stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PostgresServer(folder / "postgres", log_file=folder / "postgres.log", durable=False)
    await server.start()
    return server


async def create_database(server: PostgresServer, *, name: str | None = None, template: str | None = None) -> str:
    """The DSN of a new database."""
    name = name or f"t_{secrets.token_hex(6)}"
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template1")
    )
    await _administer(server, statement)
    return server.dsn_of(name)


async def drop_database(server: PostgresServer, dsn: str) -> None:
    """Also under connections that a failed test left open."""
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    await _administer(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))


async def _administer(server: PostgresServer, statement: sql.Composed) -> None:
    async with await psycopg.AsyncConnection.connect(server.dsn_of("postgres"), autocommit=True) as connection:
        await connection.execute(statement)
