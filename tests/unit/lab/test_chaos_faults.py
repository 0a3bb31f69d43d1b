"""The schedule repeats with its seed; the proxy fails as told, and only where told."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lab.chaos.cli import app, kinds_named
from lab.chaos.faults import KINDS, LASTING_S, OF_CLUSTER, OF_ONE_NATS, Planned, possible, schedule
from lab.chaos.proxy import FaultProxy
from lab.chaos.site import Site
from lab.install import Install
from lab.nats_cluster import NatsCluster

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


def site(tmp_path: Path, *, cluster: bool) -> Site:
    made = Site(Install([], "relaxed", str(tmp_path)), "", tmp_path / "processes.json", own=True)
    made.cluster = NatsCluster(tmp_path, size=3, proxied=True, advertise=False) if cluster else None
    return made


def test_a_cluster_has_leaders_to_kill_instead_of_one_server(tmp_path: Path) -> None:
    alone, several = (set(possible(site(tmp_path, cluster=cluster), ())) for cluster in (False, True))
    assert several - alone == set(OF_CLUSTER)
    assert alone - several == set(OF_ONE_NATS)


async def test_a_fault_may_be_named_several_times_in_a_round(tmp_path: Path) -> None:
    asked = kinds_named("kill-leader*3, wipe-node")
    assert asked == ("kill-leader", "kill-leader", "kill-leader", "wipe-node")
    allowed = possible(site(tmp_path, cluster=True), asked)
    async with aclosing(schedule(1, allowed)) as planned:
        first_round = [(await anext(planned)).kind for _ in allowed]
    assert sorted(first_round) == sorted(asked)
    with pytest.raises(typer.BadParameter, match="how often"):
        kinds_named("kill-leader*many")


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


def test_the_help_names_every_fault():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert not [kind for kind in KINDS if kind not in shown.output]
