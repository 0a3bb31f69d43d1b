"""What operators and orchestrators ask a process: ``/livez``, ``/readyz``, ``/metrics``, on a port of its own.

Owns those three routes, serving them from a thread of their own, so that a loop that stands still can be told of, and
serving an application on an address with an error that names the setting. It refuses to know what readiness depends on:
the composition root hands in named checks.
"""

import asyncio
import contextlib
import errno
import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from events.errors import Misconfigured
from service import problems, unread, unrouted
from service.accepting import PacedSite
from service.pulse import Pulse
from service.telemetry import EXPOSITION_TYPE, Metrics

CHECK_TIMEOUT_S = 2.0
HOME_TIMEOUT_S = CHECK_TIMEOUT_S + 1.0
STOP_TIMEOUT_S = 1.0

_log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Check = Callable[[], str | Awaitable[str | None] | None]
"""None when all is well, else what is wrong, in words."""


def admin_app(
    metrics: Metrics,
    checks: Mapping[str, Check],
    *,
    details: Callable[[], Mapping[str, object]] = dict,
    pulse: Pulse | None = None,
) -> web.Application:
    """The three routes, of the loop on which this is called; it may be served on another one (:func:`serving_apart`).

    ``/livez``: whether that loop turns, and where it stands still. ``/readyz`` runs every check and says why not; it
    also says which process answers, since another one may have taken the port, and ``details``, which make nothing
    ready or not.
    """
    home = asyncio.get_running_loop()

    async def livez(_request: web.Request) -> web.Response:
        problem = pulse.problem() if pulse is not None else None
        return web.Response(text="ok\n") if problem is None else web.Response(status=503, text=problem + "\n")

    async def readyz(_request: web.Request) -> web.Response:
        try:
            found = await _at(home, lambda: _run_all(checks, details))
        except TimeoutError:
            where = pulse.where() if pulse is not None else "unknown"
            found = {"ready": False, "checks": {"loop": f"it does not turn; it is in {where}"}}
        found["pid"] = os.getpid()
        return web.Response(
            status=200 if found["ready"] else 503, body=msgspec.json.encode(found), content_type="application/json"
        )

    async def exposition(_request: web.Request) -> web.Response:
        async def read() -> bytes:
            return metrics.exposition()

        try:
            return web.Response(body=await _at(home, read), headers={"Content-Type": EXPOSITION_TYPE})
        except TimeoutError:
            return web.Response(status=503, text="the event loop does not turn\n")

    app = web.Application(middlewares=[_problems])
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return app


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What no route takes is refused as everywhere."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        refused = unrouted.refusal(exc, request)
        if refused is None:
            raise
        document = problems.problem(refused[0], request.path)
        return web.Response(
            status=document.status,
            body=problems.encode(document),
            content_type=problems.CONTENT_TYPE,
            headers={"Server": unread.SERVER, **refused[1]},
        )


async def _at(home: asyncio.AbstractEventLoop, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Ask on the loop where everything is that is asked for. Raises: TimeoutError."""
    if asyncio.get_running_loop() is home:
        return await ask()
    return await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), home)), HOME_TIMEOUT_S)


async def _run_all(checks: Mapping[str, Check], details: Callable[[], Mapping[str, object]]) -> dict[str, object]:
    found = await asyncio.gather(*(_run(check) for check in checks.values()))
    wrong = {name: why for name, why in zip(checks, found, strict=True) if why is not None}
    return {"ready": not wrong, "checks": {name: wrong.get(name, "ok") for name in checks}, **details()}


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
    runner = unread.Runner(app, handle_signals=False, shutdown_timeout=STOP_TIMEOUT_S)
    async with listening(runner, host, port, setting=setting) as taken:
        yield taken


@asynccontextmanager
async def serving_apart(
    app: web.Application, host: str, port: int, *, setting: str, beside: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[int]:
    """``serving`` on a thread and loop of its own, on which ``beside`` runs as well.

    Raises: Misconfigured, as ``listening`` does.
    """
    home = asyncio.get_running_loop()
    started: asyncio.Future[int] = home.create_future()
    ended = asyncio.Event()
    apart: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        told = asyncio.Event()
        apart.append((asyncio.get_running_loop(), told))
        async with serving(app, host, port, setting=setting) as taken, asyncio.TaskGroup() as group:
            helper = group.create_task(beside())
            home.call_soon_threadsafe(started.set_result, taken)
            await told.wait()
            helper.cancel()

    def run() -> None:
        try:
            asyncio.run(serve())
        except Exception as exc:  # noqa: BLE001  raised where it is awaited
            home.call_soon_threadsafe(_fail, started, exc)
        home.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=run, name="admin", daemon=True)
    thread.start()
    try:
        yield await started
    finally:
        for loop, told in apart:
            with contextlib.suppress(RuntimeError):  # it has failed, and is closed
                loop.call_soon_threadsafe(told.set)
        await ended.wait()
        thread.join()


def _fail(started: "asyncio.Future[int]", exc: Exception) -> None:
    if started.done():
        _log.error("admin.failed", exc_info=exc)
    else:
        started.set_exception(exc)
