"""The typed route table: requests become typed arguments, answers become JSON, errors become problems (ADR 0003).

A handler is ``async def name(api, <path parameters>, query: Struct, body: Struct) -> Struct``. Everything that HTTP and
OpenAPI need to know stands in that signature; this module reads it once, when the table is made. It owns matching (on
the *raw* path, so that a name may hold ``%2F``) and decoding. It knows no socket and no resource.
"""

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from events.errors import (
    HublogError,
    InvalidBody,
    InvalidName,
    InvalidQuery,
    MethodNotAllowed,
    NotFound,
    Refused,
    SessionNotFound,
)
from events.ids import EventId, GroupName, HubName, SessionId, parse_hub, parse_name
from events.nesting import NESTING_MAX, too_deep
from events.surrogates import LONE_SURROGATE, cut_inside_a_character
from service.access.claims import READ, WRITE

Handler = Callable[..., Awaitable[object]]
QUERY_PARAMETERS_MAX = 64
POSITION_HEADER = "Hublog-Position"  # of answers that are one item


T = TypeVar("T")


class Reading(msgspec.Struct, Generic[T], frozen=True):
    """An answer and the position of the log that it reflects, for answers with no room to say so."""

    value: T
    position: str


class TrailingSlash(NotFound):
    hint = "Leave out the trailing slash."


class Route(msgspec.Struct, frozen=True):
    """One method of one path. ``refuses``: the errors of its own, for the documentation.

    ``scope``: what a token must hold, None where nobody is asked for one.
    """

    method: str
    path: str
    handler: Handler
    refuses: tuple[type[HublogError], ...] = ()
    scope: str | None = WRITE

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.path.split("/")[1:])


def get(path: str, handler: Handler, *refuses: type[HublogError], scope: str | None = READ) -> Route:
    return Route("GET", path, handler, refuses, scope)


def post(path: str, handler: Handler, *refuses: type[HublogError]) -> Route:
    return Route("POST", path, handler, refuses)


def put(path: str, handler: Handler, *refuses: type[HublogError]) -> Route:
    return Route("PUT", path, handler, refuses)


def delete(path: str, handler: Handler, *refuses: type[HublogError]) -> Route:
    return Route("DELETE", path, handler, refuses)


class Signature(msgspec.Struct, frozen=True):
    """What a handler's annotations say: path parameters and their types, query, body and answer structs."""

    path: Mapping[str, object]
    query: type[msgspec.Struct] | None
    body: type[msgspec.Struct] | None
    answer: object


class Call(msgspec.Struct, frozen=True):
    """A request that met its route: ``params`` as decoded text, by name."""

    route: Route
    signature: Signature
    params: Mapping[str, str]

    def arguments(self, query: str, body: bytes) -> dict[str, object]:
        """The handler's keyword arguments. Raises: Refused in one of the forms of an unreadable request."""
        shape = self.signature
        values: dict[str, object] = {name: PATH_TYPES[kind](self.params[name]) for name, kind in shape.path.items()}
        read = decode_query(query, shape.query)
        if shape.query is not None:
            values["query"] = read
        if shape.body is not None:
            values["body"] = decode_body(body, shape.body)
        return values


class Table:
    """Routes by path. Made once; a template is its segments, ``{name}`` matches any one segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self.signatures = {id(route): signature(route) for route in self.routes}
        self._templates: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in self.routes:
            methods = self._templates.setdefault(route.segments, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is declared twice")
            methods[route.method] = route

    def match(self, method: str, raw_path: str) -> Call:
        """Raises: NotFound, MethodNotAllowed (details: ``allow``), InvalidName (a segment is not UTF-8)."""
        segments = tuple(decode_segment(part) for part in raw_path.split("/")[1:])
        for template, methods in self._templates.items():
            params = _fit(template, segments)
            if params is None:
                continue
            route = methods.get("GET" if method == "HEAD" else method)
            if route is None:
                allow = ", ".join(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
                raise MethodNotAllowed(f"{method[:16]} is not offered here", allow=allow)
            return Call(route, self.signatures[id(route)], params)
        if len(segments) > 1 and segments[-1] == "" and self._fits(segments[:-1]):
            raise TrailingSlash("there is nothing at this path")
        raise NotFound("there is nothing at this path")

    def _fits(self, segments: tuple[str, ...]) -> bool:
        return any(_fit(template, segments) is not None for template in self._templates)


def _fit(template: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    if len(template) != len(segments):
        return None
    params: dict[str, str] = {}
    for expected, found in zip(template, segments, strict=True):
        if expected.startswith("{"):
            if not found:
                return None
            params[expected[1:-1]] = found
        elif expected != found:
            return None
    return params


def signature(route: Route) -> Signature:
    """Raises: TypeError for a handler whose annotations do not say everything, at start-up."""
    hints = typing.get_type_hints(route.handler, include_extras=True)
    names = list(inspect.signature(route.handler).parameters)[1:]
    wanted = {part[1:-1] for part in route.segments if part.startswith("{")}
    path = {name: hints[name] for name in names if name not in ("query", "body")}
    if set(path) != wanted or any(kind not in PATH_TYPES for kind in path.values()):
        raise TypeError(f"{route.path}: parameters {path} do not fit the path")
    return Signature(path, hints.get("query"), hints.get("body"), hints["return"])


def _session_id(text: str) -> SessionId:
    # Never validated against a grammar: an id that cannot exist is an id that does not exist.
    try:
        return SessionId(parse_name(text, "session id"))
    except InvalidName as exc:
        raise SessionNotFound("no session has this id") from exc


def _event_id(text: str) -> EventId:
    try:
        return EventId(parse_name(text, "id"))
    except InvalidName as exc:
        raise NotFound("no event has this id") from exc


# How text in a path becomes each type that a handler may ask for.
PATH_TYPES: Mapping[object, Callable[[str], object]] = {
    HubName: parse_hub,
    GroupName: lambda text: GroupName(parse_name(text, "group")),
    SessionId: _session_id,
    EventId: _event_id,
}


def decode_segment(raw: str) -> str:
    """One percent-decoded segment of a path. Raises: InvalidName."""
    return _percent_decoded(raw, InvalidName, "the path")


def query_pairs(raw: str) -> dict[str, str]:
    """The parameters behind ``?``, decoded, each once. Raises: InvalidQuery."""
    pairs: dict[str, str] = {}
    items = [item for item in raw.split("&") if item]
    if len(items) > QUERY_PARAMETERS_MAX:
        raise InvalidQuery(f"there are {len(items)} parameters")
    for item in items:
        name, _, value = item.partition("=")
        name, value = (_percent_decoded(text.replace("+", " "), InvalidQuery, "the query") for text in (name, value))
        if name in pairs:
            raise InvalidQuery(f"the parameter {name[:64]!r} stands twice")
        if "\0" in value:
            raise InvalidQuery(f"the parameter {name[:64]!r} holds a NUL character")
        pairs[name] = value
    return pairs


def decode_query(raw: str, shape: type[msgspec.Struct] | None) -> msgspec.Struct | None:
    """The query struct, with no parameter unknown. Raises: InvalidQuery."""
    pairs = query_pairs(raw)
    if shape is None:
        if pairs:
            raise InvalidQuery(f"unknown parameter {next(iter(pairs))[:64]!r}; this route takes none")
        return None
    known = shape.__struct_encode_fields__
    unknown = next((name for name in pairs if name not in known), None)
    if unknown is not None:
        raise InvalidQuery(f"unknown parameter {unknown[:64]!r}; this route takes {', '.join(known)}")
    try:
        return msgspec.convert(pairs, shape, strict=False)
    except msgspec.ValidationError as exc:
        raise InvalidQuery(_said(exc).replace(" - at `$.", " - in `")) from exc


def decode_body(raw: bytes, shape: type[msgspec.Struct]) -> msgspec.Struct:
    """The body struct from one JSON object in UTF-8. A struct's ``refusals`` name the error of a field of its own.

    Raises: InvalidBody, and what ``refusals`` names.
    """
    if too_deep(raw):
        raise InvalidBody(f"the body is nested deeper than {NESTING_MAX}")
    try:
        # msgspec.Raw takes bytes that are no UTF-8, and they would go out to sockets that must close on them.
        raw.decode()
        return msgspec.json.decode(raw, type=shape)
    except UnicodeDecodeError as exc:
        raise InvalidBody(f"the body is not UTF-8 at byte {exc.start}") from exc
    except msgspec.ValidationError as exc:
        said = _said(exc)
        for field, refusal in getattr(shape, "refusals", {}).items():
            if f"`$.{field}" in said:
                raise refusal(said) from exc
        raise InvalidBody(said) from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidBody(LONE_SURROGATE if cut_inside_a_character(raw) else f"the body is not JSON: {exc}") from exc


_ESCAPE_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _percent_decoded(raw: str, refusal: type[Refused], where: str) -> str:
    # aiohttp hands out bytes beyond ASCII as surrogates; they were sent, so they are read as the UTF-8 they may be.
    sent = raw.encode("utf-8", "surrogateescape")
    if _ESCAPE_BROKEN.search(sent):
        raise refusal(f"{where} holds a % that is no escape; write it as %25")
    try:
        return unquote_to_bytes(sent).decode()
    except UnicodeDecodeError as exc:
        raise refusal(f"{where} is not UTF-8 once decoded") from exc


def _said(exc: msgspec.ValidationError) -> str:
    return str(exc).replace(" - at `$`", "")
