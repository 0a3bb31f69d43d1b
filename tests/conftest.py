"""Fixtures that every test may use: real servers, one of each per session, and the rule that nothing blocks the loop.

* ``nats_server``: the session's server (relaxed), with whatever streams other tests left. Use ``unique_hub`` with it.
* ``clean_nats``: the same server without any stream or bucket. ``fresh_nats``: a factory of servers of one's own.
* ``postgres_server``, and ``database``: the DSN of a migrated database of one's own.

``await server.kill()`` is SIGKILL; ``await server.restart()`` keeps port, password and data.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

import migrations
from service.up.nats_server import NatsServer, Sync
from service.up.postgres import PostgresServer
from tests.servers import loop_guard
from tests.servers.nats import MakeNats, delete_all_streams, start_nats
from tests.servers.postgres import TEMPLATE, create_database, drop_database, start_postgres

# How long an example takes says something about the machine, not about the code. In CI the examples are always the
# same: what is found by chance is found at home.
settings.register_profile("home", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "home")


@pytest.fixture(autouse=True)
def blocking_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test in which the event loop's thread slept, resolved a name, or waited for a server or process."""
    noticed = loop_guard.watch(monkeypatch)
    yield noticed
    assert not noticed, f"the event loop was blocked: {noticed}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    server = await start_nats(tmp_path_factory.mktemp("nats"))
    yield server
    await server.stop()


@pytest.fixture
async def clean_nats(nats_server: NatsServer) -> NatsServer:
    await delete_all_streams(nats_server.url)
    return nats_server


@pytest.fixture
async def fresh_nats(tmp_path: Path) -> AsyncIterator[MakeNats]:
    """``await fresh_nats()`` or ``await fresh_nats(sync="always")``: a server that ends with the test."""
    async with AsyncExitStack() as stack:
        made = 0

        async def make(sync: Sync = "relaxed") -> NatsServer:
            nonlocal made
            made += 1
            server = await start_nats(tmp_path / f"nats-{made}", sync=sync)
            stack.push_async_callback(server.stop)
            return server

        yield make


@pytest.fixture
def unique_hub() -> str:
    """A hub name that no other test uses."""
    return f"t-{secrets.token_hex(6)}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    server = await start_postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _template(postgres_server: PostgresServer) -> str:
    """A database with today's schema, made once and copied for each test."""
    dsn = await create_database(postgres_server, name=TEMPLATE)
    await asyncio.to_thread(migrations.upgrade, dsn)
    return TEMPLATE


@pytest.fixture
async def database(postgres_server: PostgresServer, _template: str) -> AsyncIterator[str]:
    dsn = await create_database(postgres_server, template=_template)
    yield dsn
    await drop_database(postgres_server, dsn)


@pytest.fixture
async def empty_database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """Without a schema, for tests of the migrations themselves."""
    dsn = await create_database(postgres_server)
    yield dsn
    await drop_database(postgres_server, dsn)
