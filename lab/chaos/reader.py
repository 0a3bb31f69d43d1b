"""Reading the log and the read models over the query API, page by page.

Owns paging and patience. It knows the shape of a list answer, and nothing of what it means.
"""

import asyncio
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from lab.chaos.history import LogEvent, ReadPage

LIMIT = 1_000
REQUEST_TIMEOUT_S = 20.0
PATIENCE_S = 60.0
AGAIN_S = 0.5


class NotRead(Exception):
    """The API did not answer in time; the text says how it failed last."""


class _Events(msgspec.Struct):
    items: list[LogEvent]
    next: str | None
    position: str


class _List(msgspec.Struct):
    items: list[dict[str, object]]
    next: str | None
    position: str


async def read_all(
    http: aiohttp.ClientSession, api: str, hub: str, least: str | None
) -> tuple[list[LogEvent], list[ReadPage]]:
    """First the read models, each page with the position it reflects; then the log, which is at least as long.

    ``least``: the position that everything must reflect. Raises: NotRead.
    """
    base = f"{api}/v1/hubs/{hub}"
    pages: list[ReadPage] = []
    kind: Literal["sessions", "groups", "invocations"]
    for kind in ("sessions", "groups", "invocations"):
        pages += await _lists(http, f"{base}/{kind}", kind, least)
    groups = [str(item["group"]) for page in pages if page.kind == "groups" for item in page.items]
    for group in groups:
        pages += await _lists(http, f"{base}/groups/{quote(group, safe='')}/members", "members", least, group)
    log: list[LogEvent] = []
    after: str | None = None
    while True:
        body = await _get(http, f"{base}/events", {"after": after} if after else {"min_position": least})
        page = msgspec.json.decode(body, type=_Events)
        log += page.items
        if page.next is None:
            return log, pages
        after = page.next


async def _lists(
    http: aiohttp.ClientSession,
    url: str,
    kind: Literal["sessions", "groups", "members", "invocations"],
    least: str | None,
    group: str | None = None,
) -> list[ReadPage]:
    pages: list[ReadPage] = []
    after: str | None = None
    while True:
        body = await _get(http, url, {"min_position": least, "after": after})
        page = msgspec.json.decode(body, type=_List)
        pages.append(ReadPage(kind, page.position, page.items, after, page.next, group))
        if page.next is None:
            return pages
        after = page.next


async def _get(http: aiohttp.ClientSession, url: str, query: dict[str, Any]) -> bytes:
    asked = urlencode({"limit": LIMIT, **{name: value for name, value in query.items() if value is not None}})
    said = "no answer"
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
                    async with http.get(f"{url}?{asked}", timeout=timeout) as answer:
                        body = await answer.read()
                        if answer.status == 200:
                            return body
                        said = f"{answer.status} {body[:300].decode(errors='replace')}"
                except (aiohttp.ClientError, OSError) as exc:
                    said = str(exc) or type(exc).__name__
                await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        raise NotRead(f"{url}: {said}") from None
