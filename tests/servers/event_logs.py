"""Event logs under test, of every kind, with the same handles on what goes wrong."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from events.envelope import NewEvent
from events.ids import EventId
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.log.memory import MemoryEventLog
from tests.servers.proxy import Proxy, proxy_to

PARTITIONS = 2
WAIT_S = 10.0

AnyLog = JetStreamLog | MemoryEventLog


def event(payload: bytes = b"{}", *, id: str | None = None, traceparent: str | None = None) -> NewEvent:  # noqa: A002
    """An event nobody has to understand."""
    return NewEvent(EventId(id or secrets.token_hex(16)), payload, traceparent)


def numbered(count: int) -> Iterator[NewEvent]:
    for number in range(count):
        yield event(str(number).encode())


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait, bounded, for what other tasks bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 — any condition, not only an event
            await asyncio.sleep(0.002)


class MemoryBench:
    """One memory log; a second process is the same object."""

    def __init__(self) -> None:
        self.log = MemoryEventLog(PARTITIONS)

    async def another(self) -> AnyLog:
        return self.log

    def cut(self) -> None:
        self.log.disconnect()

    def heal(self) -> None:
        self.log.reconnect()


class JetStreamBench:
    """A log over a proxy that can be cut; a second process has its own connection, past the proxy."""

    def __init__(self, url: str, proxy: Proxy, log: JetStreamLog, replicas: int, stack: AsyncExitStack) -> None:
        self.url = url
        self.replicas = replicas
        self.proxy = proxy
        self.log = log
        self._stack = stack

    async def another(self) -> JetStreamLog:
        log = await jetstream_log(self.url, name="another", partitions=PARTITIONS, replicas=self.replicas)
        self._stack.push_async_callback(log.close)
        return log

    def cut(self) -> None:
        self.proxy.cut()

    def heal(self) -> None:
        self.proxy.heal()


Bench = MemoryBench | JetStreamBench


@asynccontextmanager
async def jetstream_bench(url: str, replicas: int = 1) -> AsyncIterator[JetStreamBench]:
    """On a server without streams, or with the right ones; with ``replicas`` one of a cluster."""
    parts = urlsplit(url)
    async with AsyncExitStack() as stack:
        await migrate_log(url, random=os.urandom(3), partitions=PARTITIONS, replicas=replicas)
        proxy = await stack.enter_async_context(proxy_to(parts.hostname or "", parts.port or 0))
        log = await jetstream_log(proxy.url(url), name="test", partitions=PARTITIONS, replicas=replicas)
        stack.push_async_callback(log.close)
        yield JetStreamBench(url, proxy, log, replicas, stack)
