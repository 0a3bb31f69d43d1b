"""Global answers from the real read models: those of the log, at the position that they name."""

import asyncio
from contextlib import suppress

import psycopg
import pytest

from events.errors import ReadModelUnavailable
from events.ids import Epoch, HubName, Position, SessionId
from projections.runner import Projector
from service.log.memory import MemoryEventLog
from service.sessions.manager import session_manager
from service.sessions.postgres_view import PostgresView
from service.sessions.registry import NewSession
from service.sessions.view import LogView
from service.up.postgres import PostgresServer
from tests.servers.postgres import create_database, drop_database
from tests.servers.read_models import checkpoint

CHAT, EMPTY = HubName("chat"), HubName("empty")


@pytest.fixture
async def log() -> MemoryEventLog:
    """Some people in some rooms; some of them gone."""
    log = MemoryEventLog()
    manager = session_manager(CHAT, log)
    for name in ("ann", "bob", "eve", "Zoe"):
        await manager.sessions.register(NewSession(SessionId(name), f"c-{name}", resumable=True))
    await manager.groups.add(SessionId("ann"), "lobby", "ä.b 🎈", "left behind")
    await manager.groups.add(SessionId("bob"), "lobby")
    await manager.groups.add(SessionId("eve"), "attic", "lobby")
    await manager.groups.remove(SessionId("ann"), "left behind")
    await manager.sessions.unregister(SessionId("eve"))
    return log


async def project(log: MemoryEventLog, dsn: str) -> None:
    """Everything that is in the log now."""
    last = await log.last_sequence(0)
    task = asyncio.create_task(Projector(dsn, log, 0).run())
    try:
        async with asyncio.timeout(20):
            while not task.done() and await checkpoint(dsn) < last:  # noqa: ASYNC110  another connection's doing
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_answers_are_those_of_the_log_with_the_checkpoint_as_position(log, database):
    await project(log, database)
    view, truth = PostgresView(database, log.epoch, log.partitions), LogView(log)
    for hub in (CHAT, EMPTY):
        assert await view.session_count(hub) == await truth.session_count(hub)
        assert await view.session_ids(hub) == await truth.session_ids(hub)
        assert await view.group_names(hub) == await truth.group_names(hub)
        for group in ("lobby", "ä.b 🎈", "attic", "left behind", "nowhere", "", "a\0b", "x" * 300, "\ud800"):
            assert await view.group_size(hub, group) == await truth.group_size(hub, group)
    assert (await view.session_ids(CHAT)).value == ("Zoe", "ann", "bob")
    assert (await view.group_names(CHAT)).value == ("lobby", "ä.b 🎈")
    await view.close()


async def test_an_answer_is_as_of_its_position_not_of_now(log, database):
    await project(log, database)
    reached = await log.last_sequence(0)
    view = PostgresView(database, log.epoch, log.partitions)
    manager = session_manager(CHAT, log, view=view)
    await manager.sessions.register(NewSession(SessionId("new"), "c"))
    count = await manager.sessions.count()
    assert (count.value, count.position) == (3, Position(log.epoch, 0, reached))
    await project(log, database)
    assert ((await manager.sessions.count()).value, (await manager.groups.size("lobby")).value) == (4, 2)
    await view.close()


async def test_nothing_is_opened_before_the_first_question_and_nothing_can_be_written(log, database):
    await project(log, database)
    view = PostgresView(database, log.epoch, log.partitions)
    await view.close()
    asked = await asyncio.gather(*(view.session_count(CHAT) for _ in range(10)))
    assert {each.value for each in asked} == {3}
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await view._model.rows("UPDATE hubs SET active = 0 RETURNING 1", {})
    await view.close()


async def test_a_read_model_without_anything_in_it_says_so(log, database):
    view = PostgresView(database, log.epoch, log.partitions)
    with pytest.raises(ReadModelUnavailable, match="no projector has run"):
        await view.session_count(CHAT)
    await view.close()


async def test_a_read_model_of_another_log_is_not_believed(log, database):
    await project(log, database)
    view = PostgresView(database, Epoch("zzzz"), log.partitions)
    with pytest.raises(ReadModelUnavailable, match="of the log mema, this is zzzz"):
        await view.group_names(CHAT)
    await view.close()


async def test_a_database_without_the_schema_says_so(log, empty_database):
    view = PostgresView(empty_database, log.epoch, log.partitions)
    with pytest.raises(ReadModelUnavailable, match="checkpoints"):
        await view.session_ids(CHAT)
    await view.close()


async def test_connections_that_were_cut_are_made_again(log, database):
    await project(log, database)
    view = PostgresView(database, log.epoch, log.partitions)
    for _ in range(3):
        assert (await view.session_count(CHAT)).value == 3
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as administrator:
            await administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hublog read'"
                " AND datname = current_database()"
            )
    assert (await view.session_count(CHAT)).value == 3
    await view.close()


async def test_postgres_away_is_an_error_that_may_pass(log, postgres_server: PostgresServer):
    dsn = await create_database(postgres_server)
    await drop_database(postgres_server, dsn)
    view = PostgresView(dsn, log.epoch, log.partitions)
    with pytest.raises(ReadModelUnavailable) as caught:
        await view.session_count(CHAT)
    assert caught.value.retryable
    await view.close()
