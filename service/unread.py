"""Bytes on a public port that are no HTTP request: what is said to whoever sent them, which no handler ever sees.

Owns the answer, a problem document like any other, and that neither it nor the log quotes what was sent: a request line
and a header that are too long mostly hold a token. It knows no route.
"""

from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from events.errors import BadMessage, HublogError, Internal, PayloadTooLarge
from service import problems

SERVER = "hublog"

_log = structlog.get_logger(__name__)


class BadHttp(BadMessage):
    hint = "Send HTTP/1.1 as RFC 9112 has it."


class Protocol(web.RequestHandler):
    """aiohttp's, but for what it says where no handler is reached."""

    __slots__ = ()

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
