"""The OpenAPI 3.1 document, generated from the route table: what is described is what runs.

Owns the shape of the document. Types come from the handlers' annotations, words from their docstrings, errors from what
a signature can meet plus what its route names. It knows no resource by name.
"""

import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from events.errors import (
    EpochMismatch,
    HubForbidden,
    HublogError,
    Internal,
    InvalidBody,
    InvalidName,
    InvalidPosition,
    InvalidQuery,
    LimitTooLarge,
    NotFound,
    OriginRefused,
    PayloadTooLarge,
    PositionNotReached,
    ReadModelUnavailable,
    ScopeMissing,
    SessionNotFound,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from events.ids import NAME_BYTES_MAX, EventId, GroupName, HubName, SessionId
from service import problems
from service.api.routes import POSITION_HEADER, Reading, Route, Signature, Table

OPENAPI = "3.1.0"
ABOUT = """\
Answers come from read models and say which position of the log they reflect; changes are made by appending events.

Every error is a problem document (RFC 9457) with a stable `code`, a `hint`, and whether a retry may help. Positions are
opaque: send them back as they were given. Lists are `{items, next, position, ageMs}`; `next` goes into `after`.

Where the service asks for access tokens (`HUBLOG_AUTH=jwt`), an operation needs the scope that it names; with a token
whose claim `hubs` names hubs, it answers about those only."""
_BEARER = "accessToken"

_REF = "#/components/schemas/{name}"
_PATH_SCHEMAS: dict[object, dict[str, Any]] = {
    HubName: {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,31}$", "examples": ["chat"]},
    GroupName: {
        "type": "string",
        "minLength": 1,
        "maxLength": NAME_BYTES_MAX,
        "description": f"1 to {NAME_BYTES_MAX} bytes of UTF-8, percent-encoded, `/` as `%2F`.",
        "examples": ["lobby"],
    },
    SessionId: {"type": "string", "examples": ["b0yv3yQkZk2l1V0m9a8o1g"]},
    EventId: {"type": "string", "examples": ["019aa5f0-7b6e-7cc0-8f7e-2b6a3f0d9c11"]},
}
_PATH_ERRORS: dict[object, type[HublogError]] = {
    HubName: InvalidName,
    GroupName: InvalidName,
    SessionId: SessionNotFound,
    EventId: NotFound,
}
_QUERY_ERRORS: dict[str, tuple[type[HublogError], ...]] = {
    "limit": (LimitTooLarge,),
    "min_position": (InvalidPosition, EpochMismatch, PositionNotReached),
}


def document(table: Table, version: str) -> dict[str, Any]:
    """The whole document, as plain JSON types."""
    types: list[Any] = [problems.Problem]
    for shape in table.signatures.values():
        types += [kind for kind in (shape.query, shape.body, content(shape.answer)) if kind is not None]
    refs, components = _components(types)
    schema_of = dict(zip(types, refs, strict=True))
    paths: dict[str, Any] = {}
    for route in table.routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, table.signatures[id(route)], schema_of, components
        )
    for shape in table.signatures.values():
        if shape.query is not None:  # spelt out as parameters
            components.pop(_name(schema_of[shape.query]), None)
    met = {error.code: error for route in table.routes for error in _errors(route, table.signatures[id(route)])}
    return {
        "openapi": OPENAPI,
        "info": {"title": "hublog", "version": version, "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {_BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": components,
            "examples": {code: {"value": _example(error)} for code, error in sorted(met.items())},
        },
    }


def _components(types: list[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Schemas under names that a client generator can use: ``SessionPage`` for ``Page[Session]``, and the last module
    in front where two shapes share a name (``SelectorGroup``)."""
    refs, components = msgspec.json.schema_components(types, ref_template=_REF)
    text = msgspec.json.encode([refs, components]).decode()
    for name in components:
        text = text.replace(f'/{name}"', f'/{_short(name)}"')
    renamed, schemas = msgspec.json.decode(text, type=tuple[list[dict[str, Any]], dict[str, Any]])
    return renamed, {_short(name): _described(_short(name), schema) for name, schema in schemas.items()}


def _described(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Docstrings are written for Python's readers; this is Markdown."""
    said = (
        {"description": " ".join(schema["description"].replace("``", "`").split())} if "description" in schema else {}
    )
    return {**schema, "title": name, **said}


def _short(name: str) -> str:
    *modules, last = re.sub(r"\bPage_(\w+)_$", r"\1Page", name).split(".")
    return modules[-1].capitalize() + last if modules else last


def content(answer: Any) -> Any:
    """The struct inside ``Reading[...]``, or the answer itself."""
    return typing.get_args(answer)[0] if typing.get_origin(answer) is Reading else answer


def _name(ref: dict[str, Any]) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _operation(
    route: Route, shape: Signature, schema_of: dict[Any, dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    summary, _, rest = (inspect.getdoc(route.handler) or "").partition("\n")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[kind]}
        for name, kind in shape.path.items()
    ]
    if shape.query is not None:
        parameters += _query_parameters(components[_name(schema_of[shape.query])])
    operation: dict[str, Any] = {
        "operationId": getattr(route.handler, "__name__", "").removesuffix("_"),
        "summary": summary.rstrip("."),
        "tags": [getattr(route.handler, "__module__", "").rpartition(".")[2]],
        "parameters": parameters,
    }
    if route.scope is not None:
        operation["security"] = [{_BEARER: [route.scope]}]
    if rest.strip():
        operation["description"] = " ".join(rest.split())
    if shape.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of[shape.body]}},
        }
    operation["responses"] = {
        "200": _answered(shape.answer, schema_of),
        **_problems(_errors(route, shape), schema_of[problems.Problem]),
    }
    return operation


def _answered(answer: Any, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": "As asked.",
        "content": {"application/json": {"schema": schema_of[content(answer)]}},
    }
    if content(answer) is not answer:
        described["headers"] = {
            POSITION_HEADER: {"description": "The position that the answer reflects.", "schema": {"type": "string"}}
        }
    return described


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A query struct, field by field; what has no default and no null is required."""
    parameters = []
    for name, field in schema["properties"].items():
        described = dict(field)
        # A parameter is there or not; null is how the handler sees its absence.
        options = [option for option in described.pop("anyOf", []) if option != {"type": "null"}]
        if options:
            described |= options[0] if len(options) == 1 else {"anyOf": options}
        if described.get("default", ...) is None:
            del described["default"]
        parameter = {"name": name, "in": "query", "required": name in schema["required"]}
        if "description" in described:
            parameter["description"] = described.pop("description")
        parameters.append({**parameter, "schema": described})
    return parameters


def _errors(route: Route, shape: Signature) -> list[type[HublogError]]:
    found: list[type[HublogError]] = [_PATH_ERRORS[kind] for kind in shape.path.values()]
    found.append(InvalidQuery)
    for field in shape.query.__struct_fields__ if shape.query is not None else ():
        found += _QUERY_ERRORS.get(field, ())
    if shape.body is not None:
        found += [InvalidBody, PayloadTooLarge, *getattr(shape.body, "refusals", {}).values()]
    found.append(ReadModelUnavailable if route.method == "GET" else OriginRefused)
    if route.scope is not None:
        found += [TokenMissing, TokenInvalid, TokenExpired, HubForbidden, ScopeMissing]
    return [*found, *route.refuses, Internal]


def _problems(errors: Iterable[type[HublogError]], schema: dict[str, Any]) -> dict[str, Any]:
    """Responses by status; one status may stand for several codes."""
    by_status: dict[int, list[type[HublogError]]] = {}
    for error in dict.fromkeys(errors):
        by_status.setdefault(problems.POLICIES[error.code].status, []).append(error)
    return {
        str(status): {
            "description": ", ".join(f"`{error.code}`" for error in group),
            "content": {
                problems.CONTENT_TYPE: {
                    "schema": schema,
                    "examples": {error.code: {"$ref": f"#/components/examples/{error.code}"} for error in group},
                }
            },
        }
        for status, group in sorted(by_status.items())
    }


def _example(error: type[HublogError]) -> dict[str, Any]:
    shown = problems.problem(error("What happened, in words."), "/v1/hubs/chat")
    return typing.cast("dict[str, Any]", msgspec.to_builtins(shown))
