"""What the shared fixtures promise to every other test."""

import time

import nats
import psycopg
import pytest

from service.up.nats_server import NatsServer


@pytest.mark.parametrize("turn", [1, 2])
async def test_clean_nats_is_empty_each_time(clean_nats: NatsServer, turn: int) -> None:
    client = await nats.connect(clean_nats.url)
    assert await client.jsm().streams_info() == []
    await client.jsm().add_stream(name="S", subjects=["s.>"])
    await client.close()


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_database_of_its_own(database: str, turn: int) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute("CREATE TABLE only_mine ()")
        found = await connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'only_mine'")
        assert await found.fetchone() == (1,)


async def test_blocking_the_loop_is_noticed(blocking_calls: list[str]) -> None:
    time.sleep(0)  # noqa: ASYNC251 it is the point
    assert [call.split()[0] for call in blocking_calls] == ["sleep"]
    blocking_calls.clear()
