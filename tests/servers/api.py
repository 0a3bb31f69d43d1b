"""An API server on a free port of loopback, and a raw HTTP exchange with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from service.api.server import Dispatcher, make_runner


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Raw:
    """Requests by bytes, as clients with other manners than a library's may send them."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def exchange(self, sent: bytes, *, head: bool = False) -> Answer:
        """Send, and read one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            async with asyncio.timeout(10):
                return await _read(reader, head=head)
        finally:
            writer.close()

    async def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        """One request with a raw target (percent-encoded or not, as given) on a connection of its own."""
        lines = [f"{method} {target} HTTP/1.1", "Host: api", "Connection: close"]
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        sent = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")
        return await self.exchange(sent + body, head=method == "HEAD")

    async def get(self, target: str) -> Answer:
        return await self.request("GET", target)


async def _read(reader: asyncio.StreamReader, *, head: bool) -> Answer:
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    headers: dict[str, str] = {}
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    if status == 100:
        return await _read(reader, head=head)
    body = b"" if head else await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status, headers, body)


@asynccontextmanager
async def serving(dispatcher: Dispatcher) -> AsyncIterator[Raw]:
    runner = make_runner(dispatcher, shutdown_timeout_s=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Raw(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def is_problem(answer: Answer) -> bool:
    """Whether this is a whole problem document that agrees with its status line."""
    document = answer.json
    return (
        answer.headers["content-type"].startswith("application/problem+json")
        and document["status"] == answer.status
        and all(document[field] != "" for field in ("type", "title", "detail", "code", "hint"))
        and isinstance(document["retryable"], bool)
    )
