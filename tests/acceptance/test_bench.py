"""``hublog bench`` on real processes, small: it starts an installation, measures it, and leaves nothing behind."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

BENCH = [sys.executable, "-P", "-m", "service", "bench"]


async def bench(data: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")}
    child = await asyncio.create_subprocess_exec(
        *BENCH,
        *arguments,
        "--json",
        "--data-dir",
        str(data),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        said, problems = await child.communicate()
    assert child.returncode == 0, problems.decode()
    return dict(json.loads(said))


@pytest.mark.parametrize(
    ("arguments", "measure"),
    [
        (("connect", "--sessions", "60"), "connect"),
        (("fanout", "--sessions", "60", "--rounds", "10"), "fanout"),
        (("latency", "--rate", "200", "--seconds", "1", "--sync", "relaxed"), "latency"),
        (("resume", "--sessions", "60"), "resume"),
    ],
)
async def test_a_small_bench_finds_every_message_once(tmp_path: Path, arguments: tuple[str, ...], measure: str):
    (found,) = (await bench(tmp_path, *arguments))[measure]
    if measure == "connect":
        assert (found["sessions"], found["failed"], found["ended_early"]) == (60, 0, 0)
        assert found["kib_each"] is not None
    else:
        assert found.get("failed", 0) == 0
        assert (found["lost"], found["duplicated"], found["out_of_order"]) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []
