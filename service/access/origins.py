"""Whose pages may talk to this service: the one rule about the ``Origin`` that browsers send.

CORS does not protect WebSockets, and no page needs it to send a simple POST, so the origin is checked by us. Requests
without one are not from pages and pass.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from events.errors import OriginRefused

ORIGIN_CHARS_SHOWN = 128


class Origins:
    """The pages of the service's own address, and those of a list; ``*`` in it is any."""

    def __init__(self, allowed: Collection[str] = (), *, named_hosts: bool = True) -> None:
        """``named_hosts``: whether "own" may be a name. Without tokens it must not: who owns a name can let it point
        here, and the page that then asks by this name looks like our own (DNS rebinding)."""
        self._allowed = frozenset(allowed)
        self._named_hosts = named_hosts

    def check(self, origin: str | None, host: str) -> None:
        """``origin`` as the header has it, ``host`` as the request was addressed. Raises: OriginRefused."""
        if origin is None or "*" in self._allowed or origin in self._allowed or self._own(origin, host):
            return
        raise OriginRefused(f"pages of {origin[:ORIGIN_CHARS_SHOWN]!r} may not talk to this service")

    def _own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            return parts.netloc == host and (self._named_hosts or _is_address(parts.hostname or ""))
        except ValueError:
            return False


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
