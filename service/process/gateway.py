"""The root of ``hublog gateway``: one node."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from events.errors import HublogError
from service import VERSION
from service.admin import listening
from service.breaker import Breaker
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.gateway.context import GatewayContext
from service.gateway.kinds import encode
from service.gateway.server import GatewayServer
from service.gateway.signalr.machine import Limits
from service.gateway.tokens import KeyRing
from service.log.author import Author
from service.log.fenced import FencedLog
from service.nodes.lease import Lease
from service.process.access import make_door, measure_door
from service.process.canary import make_canary, measure_canary
from service.process.gateway_measures import measure_gateway
from service.process.health import NatsHealth, circuits, measure_circuits
from service.process.lifecycle import begin, operable
from service.process.managers import global_view, manager_factory
from service.process.measuring import measure_log
from service.process.parts import the_log
from service.process.tracing import traced
from service.sessions.hubs import Hubs
from service.settings import Settings

COLLECTOR_THRESHOLDS = (50_000, 20, 50)
"""Net new objects per young look, young looks per middle one, middle ones per full look (see ``gc.set_threshold``)."""
HELD_MAX_S = 10.0  # that a partition may wait for the log before the node says that it is not ready

_log = structlog.get_logger(__name__)


async def run(settings: Settings, index: int) -> None:
    """Serve until told to stop. Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted."""
    node = settings.node_name(index)
    door = make_door(settings)
    told_to_stop = begin(settings, node)
    port = settings.gateway_port + index
    async with (
        traced(settings, "gateway", node) as traces,
        the_log(settings, node, traces.tracing) as log,
        global_view(settings, log) as view,
    ):
        author = Author()
        lease = Lease(node, VERSION, f"http://{settings.host}:{port}", log, log, author)
        nats = NatsHealth(log)
        fenced = FencedLog(nats.guarded, lease.suspended, lambda: lease.incarnation)
        hubs = Hubs(fenced, manager_factory(settings, fenced, author, view))
        assert settings.secrets is not None
        dispatchers = [Dispatcher(number, log, log, encode, traces.tracing) for number in range(log.partitions)]
        context = GatewayContext(
            node=node,
            incarnation=lease.incarnation,
            author=author,
            hubs=hubs,
            dispatchers=dispatchers,
            limits=Limits(
                record_bytes_max=settings.message_bytes_max,
                ping_s=settings.ping_interval_s,
                silence_s=settings.client_timeout_s,
                handshake_s=settings.handshake_timeout_s,
            ),
            outbox_bytes_max=settings.outbox_bytes_max,
            outbox_age_s=settings.outbox_age_s,
            ring=KeyRing.parse(settings.secrets.reveal()),
            session_ttl_us=int(settings.session_ttl_s * 1e6),
            tracing=traces.tracing,
        )
        server = GatewayServer(context, door)
        _obey(lease, server, dispatchers)
        canary = make_canary(settings, lease, fenced, log, author)
        checks = {
            **nats.checks(),
            "lease": lambda: _unrenewed(lease, nats.breaker),
            "delivery": lambda: _standstill(dispatchers),
        }
        async with (
            operable(
                settings,
                "gateway",
                node,
                offset=index,
                told_to_stop=told_to_stop,
                checks=checks,
                details=lambda: {**circuits(nats.breaker), "canary": canary.shown()},
            ) as metrics,
            _rounds(dispatchers, lease, server, settings.nats_grace_s, nats.job, canary.run),
            listening(server.runner(), settings.host, port, setting="HUBLOG_GATEWAY_PORT"),
        ):
            measure_gateway(metrics, server, lease)
            measure_log(metrics, log)
            measure_door(metrics, door)
            measure_circuits(metrics, nats.breaker)
            measure_canary(metrics, canary)
            traces.measure(metrics)
            _calm_collector()
            await told_to_stop.wait()
            await server.drain(settings.drain_s)
            await _say_goodbye(lease)
        await hubs.shutdown()


@asynccontextmanager
async def _rounds(
    dispatchers: list[Dispatcher],
    lease: Lease,
    server: GatewayServer,
    grace_s: float,
    *jobs: Callable[[], Coroutine[Any, Any, None]],
) -> AsyncIterator[None]:
    """The services of the process, from the lease on; they end together."""
    await lease.start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(repair.run(dispatcher)) for dispatcher in dispatchers]
        tasks += [group.create_task(job()) for job in (lease.keep, server.tick, *jobs)]
        tasks.append(group.create_task(lease.watch(grace_s, lambda: _give_up(server))))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def _obey(lease: Lease, server: GatewayServer, dispatchers: list[Dispatcher]) -> None:
    """What follows from the lease: until when is delivered, and what ends when the node was called lost."""

    def renewed(until_s: float) -> None:
        server.context.incarnation = lease.incarnation
        for dispatcher in dispatchers:
            dispatcher.renewed(until_s)

    lease.on_renewed = renewed
    lease.on_lost = lambda: server.end_all("this node was taken for lost", "node_lost")


def _unrenewed(lease: Lease, nats: Breaker) -> str | None:
    if not lease.suspended():
        return None
    if not nats.closed:
        return "suspended: not renewed"
    return "suspended: not renewed, although NATS answers; if every gateway says so, the disk of NATS may be full"


def _standstill(dispatchers: list[Dispatcher]) -> str | None:
    slowest = max(dispatchers, key=lambda one: one.held_s)
    if slowest.held_s < HELD_MAX_S:
        return None
    return f"partition {slowest.partition} has waited {slowest.held_s:.0f} s for the log"


def _give_up(server: GatewayServer) -> None:
    server.end_all("this node has lost its log for too long", "transport_error")


def _calm_collector() -> None:
    """Let the cyclic collector look less often: a connection is some 100 objects that live long and leave no cycles.

    By default opening 10,000 costs twice the time, and each full look stops delivery for tenths of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


async def _say_goodbye(lease: Lease) -> None:
    try:
        await lease.drain()
    except HublogError as error:
        _log.warning("node.left_silently", node=lease.node, code=error.code)
