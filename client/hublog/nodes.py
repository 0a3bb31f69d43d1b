"""The nodes of a hub, tried in turn: whose turn it is, and what a connection asks of it in its URL."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec


class Nodes:
    """Raises: ValueError for what is no address of a node, or none at all."""

    def __init__(
        self,
        urls: str | Sequence[str],
        hub: str,
        *,
        user: str | None,
        metadata: Mapping[str, Any] | None,
        resumable: bool,
    ) -> None:
        self._hubs = [_hub_url(url, hub) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._hubs:
            raise ValueError("at least one URL is needed")
        self._query: dict[str, str] = {}
        if user is not None:
            self._query["user"] = user
        if metadata is not None:
            self._query["meta"] = msgspec.json.encode(metadata).decode()
        if resumable:
            self._query["resumable"] = "1"
        self._turn = 0  # counted on and on

    def __len__(self) -> int:
        return len(self._hubs)

    def move_on(self) -> None:
        """It is the next one's turn."""
        self._turn += 1

    def url(self, token: str | None, cursor: str) -> str:
        """To connect to the one whose turn it is, and to go on with the session of ``token`` there if it is given."""
        resume = {"resume": token, "cursor": cursor} if token is not None else {}
        hub = self._hubs[self._turn % len(self._hubs)]
        return f"{hub}?{urlencode({**self._query, **resume}, quote_via=quote)}"


def _hub_url(url: str, hub: str) -> str:
    """Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not the address of a node, e.g. http://127.0.0.1:8000")
    return f"{url.rstrip('/')}/hubs/{quote(hub, safe='')}"
