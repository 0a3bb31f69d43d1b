"""Questions to the API of a running ``hublog up``."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import aiohttp
import msgspec

PATIENCE_S = 20.0


class Api:
    """``async with Api(url, hub) as api``. Paths are below ``/v1/hubs/{hub}``, or whole where they begin with ``/``."""

    def __init__(self, url: str, hub: str) -> None:
        self._base = url
        self.hub = hub

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def raw(self, method: str, path: str, body: bytes | None = None, **query: Any) -> tuple[int, bytes]:
        whole = path if path.startswith("/") else f"/v1/hubs/{self.hub}/{path}"
        async with self._session.request(method, f"{self._base}{whole}", params=query, data=body) as answer:
            return answer.status, await answer.read()

    async def call(self, method: str, path: str, body: object = None, **query: Any) -> Any:
        """What was asked for, which must succeed."""
        sent = None if body is None else msgspec.json.encode(body)
        status, answer = await self.raw(method, path, sent, **query)
        assert status == 200, f"{method} {path}: {status} {answer.decode()}"
        return msgspec.json.decode(answer)

    async def get(self, path: str, **query: Any) -> Any:
        return await self.call("GET", path, **query)

    async def items(self, path: str, **query: Any) -> list[Any]:
        """All items of a list, page by page."""
        found: list[Any] = []
        while True:
            page = await self.get(path, **query)
            found += page["items"]
            if page["next"] is None:
                return found
            query["after"] = page["next"]

    async def until(self, path: str, condition: Callable[[list[Any]], bool], **query: Any) -> list[Any]:
        """The items of a list (of one page) as soon as they are as wanted: asked again whenever something was added."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                page = await self.get(path, **query, limit=1_000)
                if condition(page["items"]):
                    items: list[Any] = page["items"]
                    return items
                # Returns when the read models have more, and after a few seconds in any case.
                head, _, sequence = page["position"].rpartition("-")
                await self.raw("GET", "events", min_position=f"{head}-{int(sequence) + 1}", limit=1)

    async def closed_history(self, session: str) -> list[Any]:
        """A session's history once it has ended: what the end of a connection appends has no answer to wait for."""
        own = f"ev.0.{self.hub}.s.{session}.log"
        await self.until("events", lambda events: len(events) > 0, type="session.closed", subject=own)
        return await self.items(f"sessions/{session}/history")

    async def refused(self, method: str, path: str, body: bytes | None = None, **query: Any) -> tuple[int, str]:
        """Status and code of what must fail."""
        status, answer = await self.raw(method, path, body, **query)
        assert status >= 400, f"{method} {path}: {status} {answer.decode()}"
        return status, msgspec.json.decode(answer)["code"]
