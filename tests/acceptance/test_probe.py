"""``hublog probe``, the script of ``helm test``: it succeeds on a sound install and names the step that fails."""

import asyncio
import json
import sys
from typing import Any

from tests.servers.up import Up

STEPS = ["connect", "join", "send", "send while away", "resume", "ask", "leave"]


async def probe(*arguments: str) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service", "probe", "--json", "--timeout", "20", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    written, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(written)


async def test_a_sound_install(served: Up, gateways: tuple[str, str], hub: str) -> None:
    api = served.entry("api").url or ""
    code, report = await probe("--gateway", gateways[0], "--gateway", gateways[1], "--api", api, "--hub", hub)
    assert (code, report["failed"], report["why"]) == (0, None, None)
    assert [step["name"] for step in report["steps"]] == STEPS
    found = {step["name"]: step["found"] for step in report["steps"]}
    assert found["resume"].startswith(f"on {gateways[1]}, with what was missed at ")
    assert found["leave"] == "the session is closed"


async def test_it_names_what_is_wrong(served: Up, gateways: tuple[str, str], hub: str) -> None:
    api = served.entry("api").url or ""
    (code, swapped), (_, alone) = await asyncio.gather(
        probe("--gateway", api, "--api", api, "--hub", hub),
        probe("--gateway", gateways[0], "--api", "http://127.0.0.1:9", "--hub", hub),
    )
    assert (code, swapped["failed"]) == (1, "connect")
    assert swapped["why"].startswith("negotiate answered 404")
    assert alone["failed"] == "send while away"
    assert [step["name"] for step in alone["steps"]] == STEPS[:3]
