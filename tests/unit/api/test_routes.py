"""The route table: raw paths to typed arguments, and what cannot be read is refused by name."""

from typing import Annotated, Any, ClassVar
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import (
    HublogError,
    InvalidBody,
    InvalidName,
    InvalidQuery,
    InvalidSelector,
    MethodNotAllowed,
    NotFound,
    SessionNotFound,
)
from events.ids import GroupName, HubName, SessionId
from events.nesting import NESTING_MAX
from events.selector import Selector
from service.api.routes import Table, delete, get, post, put


class Paging(msgspec.Struct, forbid_unknown_fields=True):
    limit: Annotated[int, msgspec.Meta(ge=1)] = 100
    user: str | None = None


class Say(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    refusals: ClassVar[dict[str, type[HublogError]]] = {"selector": InvalidSelector}
    selector: Selector
    target: str
    arguments: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"[]"))
    ttl_ms: int | None = None


async def members(api: object, hub: HubName, group: GroupName, query: Paging) -> Say: ...
async def join(api: object, hub: HubName, group: GroupName, session: SessionId) -> Say: ...
async def leave(api: object, hub: HubName, group: GroupName, session: SessionId) -> Say: ...
async def say(api: object, hub: HubName, body: Say) -> Say: ...


TABLE = Table(
    [
        get("/v1/hubs/{hub}/groups/{group}/members", members),
        put("/v1/hubs/{hub}/groups/{group}/members/{session}", join),
        delete("/v1/hubs/{hub}/groups/{group}/members/{session}", leave),
        post("/v1/hubs/{hub}/say", say),
    ]
)


def called(method: str, path: str, query: str = "", body: bytes = b"") -> dict[str, Any]:
    return TABLE.match(method, path).arguments(query, body)


def said(body: bytes) -> Any:
    return called("POST", "/v1/hubs/chat/say", body=body)["body"]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=64)


@given(names)
def test_any_name_comes_through_a_path_unchanged(name):
    found = called("GET", f"/v1/hubs/chat/groups/{quote(name, safe='')}/members")
    assert found == {"hub": "chat", "group": name, "query": Paging()}


@given(names)
def test_any_name_comes_through_a_query_unchanged(name):
    found = called("GET", "/v1/hubs/chat/groups/a/members", f"user={quote(name, safe='')}&limit=7")
    assert found["query"] == Paging(7, name)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a b", "a%b", "👋🏽", "%2F", "a?b#c", "x" * 256, "+", "a\nb"])
def test_awkward_names(name):
    assert called("GET", f"/v1/hubs/chat/groups/{quote(name, safe='')}/members")["group"] == name


def test_dots_are_not_resolved_and_case_of_escapes_does_not_matter():
    assert called("GET", "/v1/hubs/chat/groups/../members")["group"] == ".."
    assert called("GET", "/v1/%68ubs/chat/groups/%c3%a9/members")["group"] == "é"


@pytest.mark.parametrize(
    "segment",
    ["%ff", "%", "%zz", "%2", "a%c3", "x" * 257, quote("é" * 129), "a%00b", "\udcff"],
)
def test_what_is_no_name_is_refused(segment):
    with pytest.raises(InvalidName):
        called("GET", f"/v1/hubs/chat/groups/{segment}/members")


def test_a_session_id_that_cannot_be_is_not_found():
    with pytest.raises(SessionNotFound):
        called("PUT", "/v1/hubs/chat/groups/a/members/" + "x" * 257)


@pytest.mark.parametrize("hub", ["Chat", "_sys", "-a", "a" * 33, "ch%C3%A4t", "a.b", "%2e%2e"])
def test_what_is_no_hub_is_refused(hub):
    with pytest.raises(InvalidName):
        called("GET", f"/v1/hubs/{hub}/groups/a/members")


@pytest.mark.parametrize(
    "path", ["/", "", "//", "/v1", "/v1/hubs//groups/a/members", "/v1/hubs/chat/groups//members", "*"]
)
def test_unknown_paths_are_not_found(path):
    with pytest.raises(NotFound):
        TABLE.match("GET", path)


def test_a_trailing_slash_is_not_found_and_the_hint_says_why():
    with pytest.raises(NotFound) as refused:
        TABLE.match("GET", "/v1/hubs/chat/groups/a/members/")
    assert refused.value.code == "not_found"
    assert "trailing slash" in refused.value.hint


def test_head_goes_where_get_goes_and_other_methods_learn_what_is_allowed():
    assert TABLE.match("HEAD", "/v1/hubs/chat/groups/a/members").route.handler is members
    with pytest.raises(MethodNotAllowed) as refused:
        TABLE.match("POST", "/v1/hubs/chat/groups/a/members")
    assert refused.value.details["allow"] == "GET, HEAD"
    with pytest.raises(MethodNotAllowed) as refused:
        TABLE.match("HEAD", "/v1/hubs/chat/groups/a/members/s")
    assert refused.value.details["allow"] == "DELETE, PUT"


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=0",
        "limit=-1",
        "limit=",
        "limit",
        "limit=1&limit=2",
        "limit=1&l%69mit=2",
        "nosuch=1",
        "user=%ff",
        "user=%",
        "user=a%00b",
        "limit=" + "9" * 5000,
        "limit=null",
        "\udcff=1",
        "&".join(f"p{i}=1" for i in range(1000)),
    ],
)
def test_queries_that_cannot_be_read_are_refused(query):
    with pytest.raises(InvalidQuery):
        called("GET", "/v1/hubs/chat/groups/a/members", query)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("lim=1", "unknown parameter 'lim'; this route takes limit, user"),
        ("limit=x", "Expected `int`, got `str` - in `limit`"),
    ],
)
def test_a_query_is_spoken_of_as_one(query, told):
    with pytest.raises(InvalidQuery) as refused:
        called("GET", "/v1/hubs/chat/groups/a/members", query)
    assert refused.value.message == told


def test_queries_that_look_odd_but_are_fine():
    assert called("GET", "/v1/hubs/chat/groups/a/members", "user=null&&")["query"].user == "null"
    assert called("GET", "/v1/hubs/chat/groups/a/members", "user=a+b%2B")["query"].user == "a b+"


def test_a_route_without_a_query_takes_none():
    with pytest.raises(InvalidQuery):
        called("POST", "/v1/hubs/chat/say", "limit=1", b"{}")


def test_arguments_stay_as_they_were_sent():
    body = said(
        b'{"selector":{"to":"all"},"target":"t","arguments":[1.0,  "\xc3\xa9\\u00e9", {"b":1,"a":2}],"ttlMs":5}'
    )
    assert bytes(body.arguments) == b'[1.0,  "\xc3\xa9\\u00e9", {"b":1,"a":2}]'
    assert body.ttl_ms == 5


GOOD = b'{"selector":{"to":"all"},"target":"t","arguments":%s}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        GOOD % b'["\xff"]',
        GOOD % b'["\xed\xa0\x80"]',
        GOOD % b"[NaN]",
        GOOD % b"[1",
        GOOD % (b"[" * 100_000),
        GOOD % (b"[" * 30_000 + b"]" * 30_000),
        GOOD % (b'{"a":' * (NESTING_MAX + 1) + b"1" + b"}" * (NESTING_MAX + 1)),
        b'{"selector":{"to":"all"},"target":7}',
        b'{"selector":{"to":"all"},"target":"\\ud800"}',
        b'{"selector":{"to":"all"},"target":"t","extra":1}',
        b'{"selector":{"to":"all"},"target":"t","ttlMs":"5"}',
        b'{"selector":{"to":"all"},"target":"t"} trailing',
    ],
)
def test_bodies_that_cannot_be_read_are_refused(body):
    with pytest.raises(InvalidBody):
        said(body)


def test_a_text_that_was_cut_inside_a_character_is_named_as_such():
    with pytest.raises(InvalidBody, match="half of a surrogate pair"):
        said(GOOD % b'["cut: \\ud83d"]')


@pytest.mark.parametrize(
    "selector",
    [b"1", b"null", b"{}", b'{"to":"nobody"}', b'{"to":"group"}', b'{"to":"all","x":1}', b'{"to":"group","group":1}'],
)
def test_a_bad_selector_is_refused_as_such(selector):
    with pytest.raises(InvalidSelector):
        said(b'{"selector":%s,"target":"t"}' % selector)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_any_json_is_read_or_refused(value):
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        return
    with pytest.raises((InvalidBody, InvalidSelector)):
        said(encoded)
    assert bytes(said(GOOD % encoded).arguments) == encoded


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_body(raw):
    with pytest.raises((InvalidBody, InvalidSelector)):
        said(raw)


def test_a_handler_that_does_not_fit_its_path_is_refused_at_start():
    with pytest.raises(TypeError):
        Table([get("/v1/{hub}", join)])
    with pytest.raises(ValueError, match="twice"):
        Table([get("/a", nothing), get("/a", nothing)])


async def nothing(api: object) -> Say: ...
