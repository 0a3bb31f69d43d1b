"""The schedule repeats with its seed; the proxy fails as told, and only where told."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from lab.chaos.faults import KINDS, LASTING_S, Planned, schedule
from lab.chaos.proxy import FaultProxy

PATIENCE_S = 5.0


async def first(count: int, seed: int) -> list[Planned]:
    planned = []
    async with aclosing(schedule(seed, KINDS)) as one_by_one:
        async for one in one_by_one:
            planned.append(one)
            if len(planned) == count:
                break
    return planned


async def test_a_seed_repeats_the_schedule_and_another_does_not() -> None:
    assert await first(40, 1) == await first(40, 1)
    assert await first(40, 1) != await first(40, 2)


async def test_every_kind_comes_once_in_each_round() -> None:
    planned = await first(2 * len(KINDS), 3)
    assert sorted(one.kind for one in planned[: len(KINDS)]) == sorted(KINDS)
    assert sorted(one.kind for one in planned[len(KINDS) :]) == sorted(KINDS)
    for one in planned:
        shortest, longest = LASTING_S.get(one.kind, (0.0, 0.0))
        assert shortest <= one.seconds <= longest


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echoing() -> AsyncIterator[FaultProxy]:
    """A proxy in front of a server that says everything again."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := await reader.read(1024):
                writer.write(said)
        except OSError:
            pass  # cut: what the tests are about
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1])
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
        server.close()


async def connect(proxy: FaultProxy) -> Ends:
    ends = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_again(ends, b"hello") == b"hello"
    return ends


async def said_again(ends: Ends, text: bytes) -> bytes:
    ends[1].write(text)
    async with asyncio.timeout(PATIENCE_S):
        return await ends[0].readexactly(len(text))


async def test_a_cut_resets_its_share_and_new_connections_pass() -> None:
    async with echoing() as proxy:
        ends = [await connect(proxy) for _ in range(4)]
        assert proxy.cut(0.5, random.Random(1)) == 2
        outcomes = await asyncio.gather(*(said_again(one, b"there?") for one in ends), return_exceptions=True)
        assert sum(isinstance(one, OSError | asyncio.IncompleteReadError) for one in outcomes) == 2
        assert outcomes.count(b"there?") == 2
        for one in [*ends, await connect(proxy)]:
            one[1].close()


@pytest.mark.parametrize("directions", [(0,), (1,), (0, 1)])
async def test_a_stall_holds_back_and_a_heal_loses_nothing(directions: tuple[int, ...]) -> None:
    async with echoing() as proxy:
        stalled = await connect(proxy)
        assert proxy.stall(1.0, random.Random(1), directions) == 1
        other = await connect(proxy)  # came later: not stalled
        stalled[1].write(b"late")
        assert await said_again(other, b"first") == b"first"
        answer = asyncio.ensure_future(stalled[0].readexactly(4))
        assert await said_again(other, b"second") == b"second"
        assert not answer.done()
        proxy.heal()
        async with asyncio.timeout(PATIENCE_S):
            assert await answer == b"late"
        for one in (stalled, other):
            one[1].close()
