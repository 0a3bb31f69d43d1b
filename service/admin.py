"""What operators and orchestrators ask a process: ``/livez``, ``/readyz``, ``/metrics``, on a port of its own.

Owns those three routes, and serving an application on an address with an error that names the setting. It refuses to
know what readiness depends on: the composition root hands in named checks.
"""

import asyncio
import errno
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
from aiohttp import web

from events.errors import Misconfigured
from service.accepting import PacedSite
from service.telemetry import EXPOSITION_TYPE, Metrics

CHECK_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 1.0

Check = Callable[[], str | Awaitable[str | None] | None]
"""None when all is well, else what is wrong, in words."""


def admin_app(
    metrics: Metrics, checks: Mapping[str, Check], *, details: Callable[[], Mapping[str, object]] = dict
) -> web.Application:
    """The three routes. ``/livez`` answers as long as the loop turns; ``/readyz`` runs every check and says why not.

    ``/readyz`` also says which process answers, since another one may have taken the port, and ``details``, which make
    nothing ready or not.
    """

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        found = await asyncio.gather(*(_run(check) for check in checks.values()))
        wrong = {name: why for name, why in zip(checks, found, strict=True) if why is not None}
        body = {
            "ready": not wrong,
            "checks": {name: wrong.get(name, "ok") for name in checks},
            "pid": os.getpid(),
            **details(),
        }
        return web.Response(
            status=503 if wrong else 200, body=msgspec.json.encode(body), content_type="application/json"
        )

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": EXPOSITION_TYPE})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return app


async def _run(check: Check) -> str | None:
    try:
        found = check()
        return await asyncio.wait_for(found, CHECK_TIMEOUT_S) if inspect.isawaitable(found) else found
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    except Exception as exc:  # noqa: BLE001 a check that fails is an answer too
        return f"{type(exc).__name__}: {exc}"


@asynccontextmanager
async def listening(runner: web.BaseRunner, host: str, port: int, *, setting: str) -> AsyncIterator[int]:
    """Serve until left; gives the port, chosen by the system where ``port`` is 0.

    Raises: Misconfigured naming ``setting`` when the address cannot be had.
    """
    await runner.setup()
    try:
        site = PacedSite(runner, host, port)
        try:
            await site.start()
        except OSError as exc:
            what = "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be had ({exc.strerror})"
            raise Misconfigured(f"port {port} on {host} {what}; free it, or set {setting}") from exc
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int, *, setting: str) -> AsyncIterator[int]:
    """``listening`` for an application."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_TIMEOUT_S)
    async with listening(runner, host, port, setting=setting) as taken:
        yield taken
