"""What a process says of itself on its admin port: ready or not and why, its numbers."""

import asyncio
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.processes import POLL_S


async def readiness(admin_url: str | None) -> tuple[bool, dict[str, str]]:
    """Whether it is ready, and what each check says; nothing where nobody answers."""
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{admin_url}/readyz") as answer:
            found: dict[str, Any] = await answer.json()
    except aiohttp.ClientError:
        return False, {}
    return found["ready"], found["checks"]


async def wait_ready(admin_url: str | None, *, timeout_s: float = 30.0) -> None:
    await _wait(admin_url, ready=True, timeout_s=timeout_s)


async def wait_unready(admin_url: str | None, *, timeout_s: float) -> dict[str, str]:
    """Gives what is wrong."""
    checks = await _wait(admin_url, ready=False, timeout_s=timeout_s)
    return {name: why for name, why in checks.items() if why != "ok"}


async def _wait(admin_url: str | None, *, ready: bool, timeout_s: float) -> dict[str, str]:
    checks: dict[str, str] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found, checks = await readiness(admin_url)
                if found is ready and checks:
                    return checks
                await asyncio.sleep(POLL_S * 10)
    except TimeoutError as exc:
        raise AssertionError(f"after {timeout_s:g} s {admin_url} said last: {checks or 'nothing'}") from exc


async def number(admin_url: str | None, name: str) -> float:
    """The sum of one metric over its labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    values = [float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name]
    assert values, f"{name} is not among the metrics"
    return sum(values)


async def labelled(admin_url: str | None, name: str, **labels: str) -> float:
    """The one series of a metric with these labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{admin_url}/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    (value,) = (
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return value
