"""A collector of traces: takes OTLP over HTTP from real processes, and keeps what they sent."""

import gzip
from typing import Any, Self

import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Span(msgspec.Struct, frozen=True):
    """One span as it arrived. Ids are hexadecimal; ``parent`` is empty for the first of a trace."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    instance: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    failed: bool


class Collector:
    """``async with Collector() as collector``: listens at ``collector.endpoint``; ``spans`` in order of arrival."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.endpoint = ""
        self.headers: list[dict[str, str]] = []

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        self.headers.append(dict(request.headers))
        told = ExportTraceServiceRequest.FromString(body)
        for resource in told.resource_spans:
            named = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(span, named) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(span: Any, named: dict[str, Any]) -> Span:
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        service=named["service.name"],
        instance=named["service.instance.id"],
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        failed=span.status.code == 2,
    )
