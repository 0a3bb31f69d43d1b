"""The HTTP server of the API: one dispatcher over the route table, every failure a problem document.

Owns sockets, limits, headers and the log line of each command. It uses aiohttp's protocol server without its router:
that one matches decoded paths, and its own errors are plain text (ADR 0003). It knows no resource by name.
"""

import asyncio
import time
from http import HTTPStatus

import msgspec
import structlog
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from events import trace
from events.errors import (
    HublogError,
    Internal,
    InvalidBody,
    InvalidQuery,
    MethodNotAllowed,
    PayloadTooLarge,
)
from service import problems, unread
from service.access.claims import Claims
from service.access.door import OURS, Door, may_ask
from service.api.pages import acting
from service.api.routes import POSITION_HEADER, Call, Reading, Table, query_pairs
from service.telemetry import Buckets
from service.telemetry.tracing import OFF, Span, Tracing, within

BODY_BYTES_MAX = 64 * 1024
BODY_S = 30.0
TOOK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
JSON = "application/json"
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

log = structlog.get_logger(__name__)


class Dispatcher:
    """From a request to its answer. ``api`` is handed to every handler; ``door``: who may ask, open if it is None."""

    def __init__(
        self,
        table: Table,
        api: object,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        door: Door | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self._table = table
        self._api = api
        self._body_bytes_max = body_bytes_max
        self._door = door or Door()
        self._tracing = tracing
        # For whoever measures: answers by status, errors by code, and how long it took.
        self.answered: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.took = Buckets(TOOK_S)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        started = time.monotonic()
        path, _, query = _target(request)
        call: Call | None = None
        claims: Claims | None = None
        answer: object = None
        error: HublogError | None = None
        span: Span | None = None
        try:
            await _continue_if_expected(request)
            if request.method not in SAFE:  # a page cannot read the answers to the others
                self._door.origins.check(request.headers.get("Origin"), request.headers.get("Host", ""))
            call = self._table.match(request.method, path)
            claims = self._admit(request, call)
            body = await self._read(request) if call.signature.body is not None else b""
            arguments = call.arguments(query, body)
            if claims is not None:
                arguments = acting(arguments, claims.user)
            span = self._begin(request, call)
            if span is None:
                answer = await call.route.handler(self._api, **arguments)
            else:
                with within(span):
                    answer = await call.route.handler(self._api, **arguments)
            response = answered(answer)
        except HublogError as exc:
            error = exc
        except Exception as exc:
            log.exception("api.failed", method=request.method, path=path[:256], exc_info=exc)
            error = Internal("something here is broken; it has been logged")
        if error is not None:
            self._door.refused(error, at="api", remote=request.remote)
            self.errors[error.code] = self.errors.get(error.code, 0) + 1
            response = problem_response(error, path)
        if span is not None:
            span.end(error.code if error is not None else None)
        self.took.add(time.monotonic() - started)
        self.answered[response.status] = self.answered.get(response.status, 0) + 1
        # The door has lines of its own, and a bound to them: strangers could fill the log.
        if call is not None and request.method not in SAFE and not isinstance(error, OURS):
            log.info(
                "api.command",
                method=request.method,
                route=call.route.path,
                **call.params,
                user=claims.user if claims is not None else _user(query),
                position=getattr(answer, "position", None),
                status=response.status,
                code=error.code if error is not None else None,
                ms=round((time.monotonic() - started) * 1000, 1),
                **_traced(span),
            )
        return response

    def _begin(self, request: web.BaseRequest, call: Call) -> Span | None:
        """A command may begin a trace, or belong to that of whoever sends it."""
        if request.method in SAFE:
            return None
        traceparent = request.headers.get("traceparent")
        if traceparent is None and not self._tracing.due():
            return None
        name = f"{request.method} {call.route.path}"
        return self._tracing.command(name, traceparent, {f"hublog.{key}": value for key, value in call.params.items()})

    async def _read(self, request: web.BaseRequest) -> bytes:
        said = request.content_length
        if said is not None and said > self._body_bytes_max:
            raise PayloadTooLarge(f"the body has {said} bytes; at most {self._body_bytes_max} are taken")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > self._body_bytes_max:
                        raise PayloadTooLarge(f"the body has more than {self._body_bytes_max} bytes")
        except TimeoutError as exc:
            raise InvalidBody(f"the body did not arrive within {BODY_S:g} s") from exc
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as exc:
            raise InvalidBody("the body ended early, or is not as its headers say") from exc
        return bytes(body)

    def _admit(self, request: web.BaseRequest, call: Call) -> Claims | None:
        """Raises: NotAdmitted in one of its forms."""
        scope = call.route.scope
        claims = self._door.claims(request.headers.get("Authorization")) if scope is not None else None
        if claims is not None and scope is not None:
            may_ask(claims, call.params.get("hub"), scope)
        return claims


def _traced(span: Span | None) -> dict[str, str]:
    return {"trace_id": trace.trace_id(span.traceparent)} if span is not None else {}


def answered(answer: object) -> web.Response:
    headers = {"Server": unread.SERVER}
    if isinstance(answer, Reading):
        headers[POSITION_HEADER] = answer.position
        answer = answer.value
    return web.Response(body=msgspec.json.encode(answer), content_type=JSON, charset="utf-8", headers=headers)


def problem_response(error: HublogError, path: str) -> web.Response:
    document = problems.problem(error, path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:1024])
    headers = {"Server": unread.SERVER, **problems.challenge(error)}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = str(error.details.get("allow", ""))
    if document.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(problems.RETRY_AFTER_S)
    return web.Response(
        body=problems.encode(document), status=document.status, content_type=problems.CONTENT_TYPE, headers=headers
    )


def _target(request: web.BaseRequest) -> tuple[str, str, str]:
    """The raw path and query: aiohttp's own are normalised and decoded, which loses ``%2F`` and dots."""
    raw = request.raw_path.partition("#")[0]
    if not raw.startswith("/"):  # the absolute form that proxies use
        rest = raw.partition("://")[2]
        raw = "/" + rest.partition("/")[2] if "/" in rest else "/" + raw
    return raw.partition("?")


def _user(query: str) -> str | None:
    """Who the query says is acting, for the log; a query that cannot be read says nobody."""
    try:
        return query_pairs(query).get("user")
    except InvalidQuery:
        return None


async def _continue_if_expected(request: web.BaseRequest) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


class _Server(web.Server):
    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher)

    def __call__(self) -> web.RequestHandler:
        return unread.Protocol(self, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]  # None is off


def make_runner(dispatcher: Dispatcher, *, shutdown_timeout_s: float = 5.0) -> web.ServerRunner:
    """What ``web.TCPSite`` takes. Call ``setup()``, then start sites; ``cleanup()`` lets requests under way finish."""
    return web.ServerRunner(_Server(dispatcher), shutdown_timeout=shutdown_timeout_s)
