"""The public port of a gateway: negotiate, and the socket that follows.

Owns what a request may ask for when connecting, the origins that may, and the rounds over all connections. Sessions and
messages are the connection's.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec
import structlog
from aiohttp import hdrs, web

from events import session
from events.errors import (
    ConnectionInUse,
    HublogError,
    Internal,
    InvalidQuery,
    MethodNotAllowed,
    NotFound,
    OriginRefused,
    Restarting,
    ShuttingDown,
)
from events.ids import UserId, parse_hub, parse_name
from events.nesting import NESTING_MAX, too_deep
from service import problems
from service.gateway import negotiate, tokens
from service.gateway.connection import Peer, wire_options
from service.gateway.context import GatewayContext
from service.gateway.transports import websocket

METADATA_BYTES_MAX = 2 * 1024
TICK_S = 1.0
TICK_SLICES = 20  # one round over all connections is spread over this many turns, or it would be felt
DRAIN_BATCH = 100
CLOSINGS_GRACE_S = 5.0

_log = structlog.get_logger(__name__)
_JSON = "application/json"


class GatewayServer:
    """Negotiation and WebSockets of one process."""

    def __init__(self, context: GatewayContext, allowed_origins: tuple[str, ...]) -> None:
        self.context = context
        self._in_use: set[str] = set()  # negotiated connections, from before the upgrade is answered to their end
        self._origins = frozenset(allowed_origins)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_problems])
        app.router.add_route("POST", "/hubs/{hub}/negotiate", self._negotiate)
        app.router.add_route("OPTIONS", "/hubs/{hub}/negotiate", self._preflight)
        app.router.add_route("GET", "/hubs/{hub}", self._connect)
        return app

    # ---------------------------------------------------------------- requests

    async def _negotiate(self, request: web.Request) -> web.Response:
        headers = self._cors(request)
        try:
            peer = self._peer(request)
            if self.context.draining:
                raise ShuttingDown("this node is going away")
            version = negotiate.version_of(request.query.get("negotiateVersion"))
            grant = tokens.ConnectionGrant(peer.hub, peer.connection, time.time(), _user(peer), peer.metadata)
            body = negotiate.answer(version, peer.connection, tokens.seal_connection(self.context.ring, grant))
        except HublogError as error:
            # Stock clients read the reason from a 200.
            body = negotiate.refusal(error)
        return web.Response(body=body, content_type=_JSON, headers=headers)

    async def _preflight(self, request: web.Request) -> web.Response:
        headers = self._cors(request)
        if headers:
            asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST"
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"
            if asked is not None:
                headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        return web.Response(status=204, headers=headers)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        self._cors(request)
        if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
            raise InvalidQuery("only WebSockets are served here: the Upgrade header is missing")
        token = request.query.get("id")
        if token is None:
            return await websocket.serve(request, self.context, self._peer(request))
        peer = self._negotiated(request, token)
        self._in_use.add(peer.connection)
        try:
            return await websocket.serve(request, self.context, peer)
        finally:
            self._in_use.discard(peer.connection)

    def _negotiated(self, request: web.Request, token: str) -> Peer:
        """Raises: BadToken, ConnectionInUse."""
        hub = parse_hub(request.match_info["hub"])
        grant = tokens.open_connection(self.context.ring, token, hub, time.time())
        if grant.connection in self._in_use:
            raise ConnectionInUse("the connection token is in use")
        return Peer(hub, grant.connection, grant.user, grant.metadata, wire_options(request.query))

    def _peer(self, request: web.Request) -> Peer:
        """Who connects, where nothing was negotiated. Raises: InvalidName, InvalidQuery."""
        query = request.query
        hub = parse_hub(request.match_info["hub"])
        user = query.get("user")
        return Peer(
            hub,
            self.context.author.new_session(),  # 16 random bytes serve connections as well
            parse_name(user, "user") if user is not None else None,
            _metadata(query.get("meta")),
            wire_options(query),
        )

    def _cors(self, request: web.Request) -> dict[str, str]:
        """The headers that let a page read the answer. Raises: OriginRefused.

        CORS does not protect WebSockets, so the origin is checked for those here as well.
        """
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return {}
        if not _same_host(origin, request.host) and "*" not in self._origins and origin not in self._origins:
            raise OriginRefused(f"pages of {origin[:128]} may not connect")
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS: "true",
            hdrs.VARY: hdrs.ORIGIN,
        }

    # ---------------------------------------------------------------- rounds

    async def tick(self) -> None:
        """Run every connection's timers about once a second. Ends by cancellation."""
        while True:
            connections = list(self.context.coordinator)
            share = len(connections) // TICK_SLICES + 1
            for start in range(0, TICK_SLICES * share, share):
                self.context.coordinator.evaluate(connections[start : start + share], time.monotonic())
                await asyncio.sleep(TICK_S / TICK_SLICES)

    def end_all(self, why: str, reason: session.Closing) -> None:
        """Send everybody elsewhere at once: what this node would tell them may not be true any more."""
        for connection in self.context.coordinator:
            connection.end(Restarting(why), reason)

    async def drain(self, drain_s: float) -> None:
        """Take nobody new, and send everybody to another node: in batches over half of the time, in random order."""
        self.context.draining = True
        connections = list(self.context.coordinator)
        random.shuffle(connections)
        batches = len(connections) // DRAIN_BATCH + 1
        pause_s = min(0.1, drain_s / 2 / batches)
        for start in range(0, len(connections), DRAIN_BATCH):
            for connection in connections[start : start + DRAIN_BATCH]:
                connection.end(Restarting("this node is going away"), "shutdown")
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311  jitter is no secret
        given_up = await self.context.closings.finish(max(drain_s / 2, CLOSINGS_GRACE_S))
        _log.info("gateway.drained", connections=len(connections), sessions_left_open=given_up)


def _same_host(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _user(peer: Peer) -> UserId | None:
    return UserId(peer.user) if peer.user is not None else None


def _metadata(text: str | None) -> msgspec.Raw:
    """Raises: InvalidQuery."""
    if text is None:
        return msgspec.Raw(b"null")
    try:
        raw = text.encode()
        if len(raw) > METADATA_BYTES_MAX:
            raise InvalidQuery(f"meta has {len(raw)} bytes, more than {METADATA_BYTES_MAX}")
        if too_deep(raw):
            raise InvalidQuery(f"meta is nested deeper than {NESTING_MAX}")
        msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidQuery(f"meta is not a JSON object: {exc}") from exc
    return msgspec.Raw(raw)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal of this port is a problem document."""
    try:
        return await handler(request)
    except HublogError as error:
        return _answer(error, request)
    except web.HTTPNotFound:
        return _answer(NotFound(f"there is nothing at {request.path[:256]}"), request)
    except web.HTTPMethodNotAllowed as exc:
        response = _answer(MethodNotAllowed(f"{exc.method} is not served at {request.path[:256]}"), request)
        response.headers[hdrs.ALLOW] = ", ".join(sorted(exc.allowed_methods))
        return response
    except web.HTTPException:
        raise
    except Exception:  # noqa: BLE001  the port goes on; the log line has the trace
        _log.exception("gateway.request_failed", path=request.path[:256])
        return _answer(Internal("the request failed"), request)


def _answer(error: HublogError, request: web.Request) -> web.Response:
    document = problems.problem(error, request.path)
    return web.Response(status=document.status, body=problems.encode(document), content_type="application/problem+json")
