"""The public port of a gateway: negotiate, and the socket that follows.

Owns what a request may ask for when connecting, and the rounds over all connections. Who may ask at all is the door's
to say; sessions and messages are the connection's.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

import msgspec
import structlog
from aiohttp import hdrs, web

from events import session, trace
from events.errors import (
    ConnectionInUse,
    HublogError,
    Internal,
    InvalidQuery,
    NotAdmitted,
    Restarting,
    ShuttingDown,
    TokenUserMismatch,
)
from events.ids import HubName, UserId, parse_hub, parse_name
from events.nesting import NESTING_MAX, too_deep
from service import problems, unrouted
from service.access.claims import METADATA_BYTES_MAX, Claims
from service.access.door import Door, may_connect
from service.gateway import negotiate, tokens
from service.gateway.arrivals import Arrivals
from service.gateway.context import GatewayContext
from service.gateway.peer import Peer, WireOptions, wire_options
from service.gateway.transports import websocket

TICK_S = 1.0
TICK_SLICES = 20  # one round over all connections is spread over this many turns, or it would be felt
DRAIN_BATCH = 100
CLOSINGS_GRACE_S = 5.0
TRACEPARENT = "traceparent"
# All that is read here of a query; whatever else stands there is somebody else's.
PARAMETERS = ("negotiateVersion", "id", "access_token", "user", "meta", "resumable", "resume", "cursor")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger(__name__)
_JSON = "application/json"


class GatewayServer:
    """Negotiation and WebSockets of one process."""

    def __init__(self, context: GatewayContext, door: Door) -> None:
        self.context = context
        self._door = door
        self._in_use: set[str] = set()  # negotiated connections, from before the upgrade is answered to their end
        self.arrivals = Arrivals(context.limits.handshake_s)

    def runner(self) -> web.AppRunner:
        """The public port, for ``service.admin.listening``."""
        return self.arrivals.runner(self.app())

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.arrivals.middleware, self._problems])
        app.router.add_route("POST", "/hubs/{hub}/negotiate", self._negotiate)
        app.router.add_route("OPTIONS", "/hubs/{hub}/negotiate", self._preflight)
        app.router.add_route("GET", "/hubs/{hub}", self._connect)
        return app

    # ---------------------------------------------------------------- requests

    async def _negotiate(self, request: web.Request) -> web.Response:
        headers = self._cors(request)
        try:
            _check_query(request)
            peer = self._peer(request)
            if self.context.draining:
                raise ShuttingDown("this node is going away")
            version = negotiate.version_of(request.query.get("negotiateVersion"))
            grant = tokens.ConnectionGrant(
                peer.hub, peer.connection, time.time(), _user(peer), peer.metadata, peer.wire.traceparent
            )
            body = negotiate.answer(version, peer.connection, tokens.seal_connection(self.context.ring, grant))
        except (NotAdmitted, TokenUserMismatch) as error:
            # By its status: clients that can get another token look there for the reason to.
            return self._refusal(error, request, "negotiate", headers)
        except HublogError as error:
            # Stock clients read the reason from a 200.
            self.context.counters.told(error)
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
        _check_query(request)
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
        """Raises: BadToken, ConnectionInUse, NotAdmitted, TokenUserMismatch."""
        hub = parse_hub(request.match_info["hub"])
        claims = self._admit(request, hub)
        grant = tokens.open_connection(self.context.ring, token, hub, time.time())
        if claims is not None and claims.user != grant.user:
            raise TokenUserMismatch("the connection was negotiated by another user")
        if grant.connection in self._in_use:
            raise ConnectionInUse("the connection token is in use")
        until_s = claims.expires_at_s if claims is not None else math.inf
        return Peer(hub, grant.connection, grant.user, grant.metadata, _options(request, grant.traceparent), until_s)

    def _peer(self, request: web.Request) -> Peer:
        """Who connects, where nothing was negotiated. Raises: InvalidName, InvalidQuery, NotAdmitted."""
        query = request.query
        hub = parse_hub(request.match_info["hub"])
        claims = self._admit(request, hub)
        connection = self.context.author.new_session()  # 16 random bytes serve connections as well
        user = query.get("user")
        if claims is None:
            named = parse_name(user, "user") if user is not None else None
            return Peer(hub, connection, named, _metadata(query.get("meta")), _options(request))
        # Said and not heard would be worse: who believes to be ann would be somebody else.
        if user is not None and user != claims.user:
            raise InvalidQuery("the user is the token's; leave out user")
        if "meta" in query:
            raise InvalidQuery("the metadata is the token's claim `meta`; leave out meta")
        return Peer(hub, connection, claims.user, claims.metadata, _options(request), claims.expires_at_s)

    def _admit(self, request: web.Request, hub: HubName) -> Claims | None:
        """What the token says, None where none is asked for. Raises: NotAdmitted in one of its forms."""
        claims = self._door.claims(request.headers.get(hdrs.AUTHORIZATION), request.query.get("access_token"))
        if claims is not None:
            may_connect(claims, hub)
        return claims

    def _cors(self, request: web.Request) -> dict[str, str]:
        """The headers that let a page read the answer. Raises: OriginRefused."""
        origin = request.headers.get(hdrs.ORIGIN)
        self._door.origins.check(origin, request.host)
        if origin is None:
            return {}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS: "true",
            hdrs.VARY: hdrs.ORIGIN,
        }

    # ---------------------------------------------------------------- refusals

    def _refusal(
        self, error: HublogError, request: web.Request, at: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> web.Response:
        """A problem document. Neither it nor the log has the query of the request: tokens stand there."""
        self._door.refused(error, at=at, remote=request.remote)
        self.context.counters.told(error)
        document = problems.problem(error, request.path)
        return web.Response(
            status=document.status,
            body=problems.encode(document),
            content_type=problems.CONTENT_TYPE,
            headers={**headers, **problems.challenge(error)},
        )

    @web.middleware
    async def _problems(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every refusal of this port is a problem document."""
        at = "negotiate" if request.method != hdrs.METH_GET else "connect"
        try:
            return await handler(request)
        except HublogError as error:
            return self._refusal(error, request, at)
        except web.HTTPException as exc:
            refused = unrouted.refusal(exc, request)
            if refused is None:
                raise
            return self._refusal(refused[0], request, at, refused[1])
        except Exception:  # noqa: BLE001  the port goes on; the log line has the trace
            _log.exception("gateway.request_failed", path=request.path[:256])
            return self._refusal(Internal("the request failed"), request, at)

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


def _check_query(request: web.Request) -> None:
    """What would be read as something else than was meant. Raises: InvalidQuery.

    yarl reads bytes that are no UTF-8 as U+FFFD, and two users of such names would be one. Of a parameter that stands
    twice it gives the first, where a proxy in front may have looked at the last.
    """
    # aiohttp hands out bytes beyond ASCII as surrogates; they were sent, so they are read as the UTF-8 they may be.
    sent = request.rel_url.raw_query_string.encode("utf-8", "surrogateescape")
    try:
        unquote_to_bytes(sent).decode()
    except UnicodeDecodeError as exc:
        raise InvalidQuery("the query is not UTF-8 once decoded") from exc
    for name in PARAMETERS:
        if len(request.query.getall(name, ())) > 1:
            raise InvalidQuery(f"the parameter {name!r} stands twice")


def _options(request: web.Request, traceparent: str | None = None) -> WireOptions:
    """``traceparent``: the context that holds where the request has none. Raises: InvalidQuery."""
    own = request.headers.get(TRACEPARENT)
    return wire_options(request.query, own if own is not None and trace.valid(own) else traceparent)


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
