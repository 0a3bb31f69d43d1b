"""The generated document: structurally OpenAPI 3.1, complete, and true of the table that it was made from."""

import re
from typing import Any

import msgspec
import pytest

from events.errors import every_error
from service import problems
from service.api import openapi
from service.api.app import make_table

SCHEMA_WORDS = {
    "$ref", "title", "description", "type", "properties", "required", "additionalProperties", "items", "anyOf", "enum",
    "const", "default", "examples", "discriminator", "format", "pattern", "minimum", "maximum", "minLength",
    "maxLength", "minItems", "maxItems", "prefixItems", "propertyNames",
}  # fmt: skip
TYPES = {"string", "integer", "number", "boolean", "object", "array", "null"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    # Through JSON, as clients get it.
    return msgspec.json.decode(msgspec.json.encode(openapi.document(make_table(), "1.2.3")))


def resolve(document: dict[str, Any], ref: str) -> Any:
    assert ref.startswith("#/")
    found: Any = document
    for part in ref[2:].split("/"):
        found = found[part]
    return found


def check_schema(document: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    assert set(schema) <= SCHEMA_WORDS, where
    if "$ref" in schema:
        resolve(document, schema["$ref"])
    if "type" in schema:
        assert schema["type"] in TYPES, where
    assert set(schema.get("required", ())) <= set(schema.get("properties", {})), where
    for name, inner in schema.get("properties", {}).items():
        check_schema(document, inner, f"{where}.{name}")
    for option in schema.get("anyOf", ()):
        check_schema(document, option, f"{where}|")
    if isinstance(schema.get("items"), dict):
        check_schema(document, schema["items"], f"{where}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        check_schema(document, schema["additionalProperties"], f"{where}{{}}")
    if "discriminator" in schema:
        mapping = schema["discriminator"]["mapping"]
        assert {ref["$ref"] for ref in schema["anyOf"]} == set(mapping.values()), where
        for tag, ref in mapping.items():
            tagged = resolve(document, ref)
            assert tagged["properties"][schema["discriminator"]["propertyName"]]["enum"] == [tag], where


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, one) for path, item in document["paths"].items() for method, one in item.items()]


def test_its_head(document):
    assert set(document) == {"openapi", "info", "servers", "paths", "components"}
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    assert document["info"]["title"] == "hublog"


def test_every_route_is_described(document):
    assert {(path, method.upper()) for path, method, _ in operations(document)} == {
        ("/v1/hubs", "GET"),
        ("/v1/hubs/{hub}/sessions", "GET"),
        ("/v1/hubs/{hub}/sessions/{session}", "GET"),
        ("/v1/hubs/{hub}/sessions/{session}", "DELETE"),
        ("/v1/hubs/{hub}/sessions/{session}/history", "GET"),
        ("/v1/hubs/{hub}/groups", "GET"),
        ("/v1/hubs/{hub}/groups/{group}/members", "GET"),
        ("/v1/hubs/{hub}/groups/{group}/members/{session}", "PUT"),
        ("/v1/hubs/{hub}/groups/{group}/members/{session}", "DELETE"),
        ("/v1/hubs/{hub}/invocations", "GET"),
        ("/v1/hubs/{hub}/invocations", "POST"),
        ("/v1/hubs/{hub}/invocations/{invocation}", "GET"),
        ("/v1/hubs/{hub}/events", "GET"),
        ("/v1/nodes", "GET"),
        ("/v1/projections", "GET"),
        ("/schema", "GET"),
    }


def test_every_operation_is_whole(document):
    seen = set()
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["operationId"] not in seen, where
        seen.add(operation["operationId"])
        in_path = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", path), where
        assert len({(one["in"], one["name"]) for one in operation["parameters"]}) == len(operation["parameters"]), where
        for parameter in operation["parameters"]:
            assert parameter["required"] == (parameter["in"] == "path"), where
            check_schema(document, parameter["schema"], f"{where} {parameter['name']}")
        assert {"200", "500"} <= set(operation["responses"]), where
        for status, response in operation["responses"].items():
            assert response["description"], where
            ((kind, content),) = response["content"].items()
            assert kind == ("application/json" if status == "200" else problems.CONTENT_TYPE), where
            check_schema(document, content["schema"], f"{where} {status}")
        if method == "post":
            assert operation["requestBody"]["required"], where
            check_schema(document, operation["requestBody"]["content"]["application/json"]["schema"], where)


def test_every_error_stands_under_its_status_and_has_an_example(document):
    for path, method, operation in operations(document):
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            (content,) = response["content"].values()
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in content["examples"].items():
                shown = resolve(document, example["$ref"])["value"]
                assert (shown["code"], str(shown["status"])) == (code, status), f"{method} {path}"
                assert code in every_error()


def test_every_change_says_that_the_log_may_not_answer_or_that_nobody_may_know(document):
    for path, method, operation in operations(document):
        if method == "get":
            continue
        codes = {
            code
            for status, response in operation["responses"].items()
            if status != "200"
            for code in response["content"]["application/problem+json"]["examples"]
        }
        # What is unconditional, a call, knows no conflict.
        due = {"log_unavailable", "outcome_unknown"} | ({"conflict"} if method != "post" else set())
        assert due <= codes, f"{method} {path}"


def test_every_component_is_sound_named_plainly_and_used(document):
    text = msgspec.json.encode(document).decode()
    for name, schema in document["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name)
        check_schema(document, schema, name)
        assert f'"#/components/schemas/{name}"' in text, name


def test_bodies_refuse_unknown_fields_and_selectors_are_a_tagged_union(document):
    invoke = document["components"]["schemas"]["Invoke"]
    assert invoke["additionalProperties"] is False
    assert invoke["properties"]["selector"]["discriminator"]["propertyName"] == "to"
    assert set(invoke["properties"]["selector"]["discriminator"]["mapping"]) == {
        "caller", "all", "others", "allExcept", "client", "clients", "group", "groups", "groupExceptCaller",
        "groupsExceptCaller", "user",
    }  # fmt: skip
    for ref in invoke["properties"]["selector"]["discriminator"]["mapping"].values():
        assert resolve(document, ref)["additionalProperties"] is False


def test_lists_say_what_the_design_says(document):
    for path in ("/v1/hubs", "/v1/hubs/{hub}/sessions", "/v1/nodes", "/v1/projections"):
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(resolve(document, answer["$ref"])["properties"]) == {"items", "next", "position", "ageMs"}
    limit = next(
        one for one in document["paths"]["/v1/hubs/{hub}/events"]["get"]["parameters"] if one["name"] == "limit"
    )
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}


def test_single_answers_state_their_position_in_a_header(document):
    single = document["paths"]["/v1/hubs/{hub}/sessions/{session}"]["get"]["responses"]["200"]
    assert set(single["headers"]) == {"Hublog-Position"}
    assert "headers" not in document["paths"]["/v1/hubs/{hub}/sessions"]["get"]["responses"]["200"]


def test_every_operation_names_the_scope_that_it_needs(document: dict[str, Any]):
    (scheme,) = document["components"]["securitySchemes"]
    for route in make_table().routes:
        operation = document["paths"][route.path][route.method.lower()]
        if route.scope is None:
            assert route.path == "/schema"
            assert "security" not in operation
            assert "401" not in operation["responses"]
            continue
        assert route.scope == ("hublog:read" if route.method == "GET" else "hublog:write")
        assert operation["security"] == [{scheme: [route.scope]}]
        assert {"401", "403"} <= set(operation["responses"])
