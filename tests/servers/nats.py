"""NATS servers for tests, started by the modules that ``hublog up`` uses."""

import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats

from service.up.nats_server import NatsServer, Sync

MakeNats = Callable[..., Awaitable[NatsServer]]
"""The fixture ``fresh_nats``: ``await fresh_nats()`` or ``await fresh_nats(sync="always")``."""


async def start_nats(folder: Path, *, sync: Sync = "relaxed") -> NatsServer:
    """A running server of one's own in ``folder``; the caller stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = NatsServer(folder / "nats", log_file=folder / "nats.log", sync=sync)
    await server.start()
    return server


def may_write(server: NatsServer, limit: int | None) -> None:
    """How long a file of the server's may become, None for any length: with 0 it fails at every write, as on a full
    disk, and what it reads does not."""
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


async def delete_all_streams(url: str) -> None:
    """Streams, and with them key-value buckets, of whoever used the server before."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        manager = client.jsm()
        for stream in await manager.streams_info():
            await manager.delete_stream(stream.config.name)
    finally:
        await client.close()
