"""One gateway over a log in memory, on the loop of production.

The two event loops differ where a transport is gone, and that is where connections are interesting.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
import uvloop

from service.access.door import Door
from service.access.origins import Origins
from service.admin import listening
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.gateway import server as gateway_server
from service.gateway.context import GatewayContext
from service.gateway.kinds import encode
from service.gateway.server import GatewayServer
from service.gateway.signalr.machine import Limits
from service.gateway.tokens import KeyRing
from service.log.author import Author
from service.sessions.hubs import Factory, Hubs
from service.sessions.manager import session_manager
from tests.servers.gateway import GatedLog, MakeNode, Node


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def make_node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeNode]:
    """``await make_node(limits=Limits(…), …)``: a gateway that ends with the test."""
    monkeypatch.setattr(gateway_server, "TICK_S", 0.02)
    async with AsyncExitStack() as stack:

        async def make(
            *,
            limits: Limits = Limits(),  # noqa: B008  frozen
            outbox_bytes_max: int = 1 << 20,
            outbox_age_s: float = 10.0,
            origins: tuple[str, ...] = (),
            door: Door | None = None,
            factory: Callable[[GatedLog, Author], Factory] | None = None,
        ) -> Node:
            log, author = GatedLog(), Author()
            made = factory(log, author) if factory is not None else _factory(log, author)
            ring = KeyRing([secrets.token_bytes(32)])
            context = GatewayContext(
                node="n",
                incarnation="i",
                author=author,
                hubs=Hubs(log, made),
                dispatchers=[Dispatcher(0, log, log, encode)],
                limits=limits,
                outbox_bytes_max=outbox_bytes_max,
                outbox_age_s=outbox_age_s,
                ring=ring,
                session_ttl_us=1_800_000_000,
            )
            server = GatewayServer(context, door or Door(origins=Origins(origins, named_hosts=False)))
            for part in (repair.run(context.dispatchers[0]), server.tick()):
                stack.push_async_callback(_stop, asyncio.ensure_future(part))
            port = await stack.enter_async_context(listening(server.runner(), "127.0.0.1", 0, setting="-"))
            return Node(log, server, ring, f"http://127.0.0.1:{port}")

        yield make


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    return await make_node()


def _factory(log: GatedLog, author: Author) -> Factory:
    return lambda hub: session_manager(hub, log, author=author)


async def _stop(task: "asyncio.Future[None]") -> None:
    """Whatever ran for the whole test must still be running."""
    assert not task.done(), f"a service of the process ended: {task.exception()!r}"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
