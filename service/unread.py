"""Bytes on a port that are no HTTP request: what is said to whoever sent them, which no handler ever sees.

Owns the answer, a problem document like any other, and that neither it nor the log quotes what was sent: a request line
and a header that are too long mostly hold a token. It knows no route.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from events.errors import BadMessage, HublogError, Internal, PayloadTooLarge
from service import problems

SERVER = "hublog"

_log = structlog.get_logger(__name__)


class BadHttp(BadMessage):
    hint = "Send HTTP/1.1 as RFC 9112 has it."


class Protocol(web.RequestHandler):
    """aiohttp's, but for what it says where no handler is reached."""

    __slots__ = ()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Nothing of a body that is not as its headers say: its rest is read, to be thrown away, after the answer."""
        if not isinstance(kw.get("exc_info"), (web.RequestPayloadError, HttpProcessingError)):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  quotes what was sent, at any length
    ) -> web.StreamResponse:
        error: HublogError
        if isinstance(exc, LineTooLong):
            error = PayloadTooLarge("the request line or a header is too long")
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR:
            error = BadHttp("this is not an HTTP request")
        else:
            _log.error("http.failed", exc_info=exc)
            error = Internal("something here is broken; it has been logged")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way already")
        document = problems.problem(error, "")
        response = web.Response(
            status=document.status,
            body=problems.encode(document),
            content_type=problems.CONTENT_TYPE,
            headers={"Server": SERVER},
        )
        response.force_close()
        return response


class Runner(web.AppRunner):
    """Serves an application by that protocol, without an access log."""

    __slots__ = ()

    def protocol(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        """Of a new connection."""
        return Protocol(server, loop=loop, access_log=None)  # type: ignore[arg-type]  # None is off

    @property
    def server(self) -> Callable[[], asyncio.Protocol] | None:  # type: ignore[override]
        """What sites make a protocol with for each connection."""
        server = super().server
        if server is None:
            return None
        loop = asyncio.get_running_loop()
        return lambda: self.protocol(server, loop)
