"""Selectors: as clients write them, and the one subject that each means."""

import msgspec
import pytest

from events import selector
from events.errors import InvalidName, InvalidSelector, TooManyTargets
from events.selector import TARGETS_MAX, Route, parse, resolve

ME = "me"

FORMS = [
    ('{"to":"all"}', selector.All(), Route("all")),
    ('{"to":"caller"}', selector.Caller(), Route("inbox", ME)),
    ('{"to":"others"}', selector.Others(), Route("all", without=(ME,))),
    ('{"to":"allExcept","sessions":["a","b"]}', selector.AllExcept(("a", "b")), Route("all", without=("a", "b"))),
    ('{"to":"client","session":"a"}', selector.Client("a"), Route("inbox", "a")),
    ('{"to":"clients","sessions":["a","b"]}', selector.Clients(("a", "b")), Route("many", sessions=("a", "b"))),
    ('{"to":"group","group":"g"}', selector.Group("g"), Route("group", "g")),
    (
        '{"to":"group","group":"g","except":["a","b"]}',
        selector.Group("g", ("a", "b")),
        Route("group", "g", without=("a", "b")),
    ),
    ('{"to":"groups","groups":["g","h"]}', selector.Groups(("g", "h")), Route("many", groups=("g", "h"))),
    (
        '{"to":"groups","groups":["g","h"],"except":["a"]}',
        selector.Groups(("g", "h"), ("a",)),
        Route("many", groups=("g", "h"), without=("a",)),
    ),
    (
        '{"to":"groupExceptCaller","group":"g"}',
        selector.GroupExceptCaller("g"),
        Route("group", "g", without=(ME,)),
    ),
    (
        '{"to":"groupsExceptCaller","groups":["g","h"]}',
        selector.GroupsExceptCaller(("g", "h")),
        Route("many", groups=("g", "h"), without=(ME,)),
    ),
    ('{"to":"user","user":"ann"}', selector.User("ann"), Route("user", "ann")),
]


@pytest.mark.parametrize(("text", "form", "route"), FORMS, ids=[text for text, _, _ in FORMS])
def test_every_form_is_read_means_one_subject_and_is_written_as_it_was(text, form, route):
    assert parse(text.encode()) == form
    assert resolve(form, ME) == route
    assert msgspec.json.encode(form).decode() == text


def test_the_forms_are_all_there_are():
    assert {type(form) for _, form, _ in FORMS} == set(selector.Selector.__args__)


RELATIVE = (selector.Caller(), selector.Others(), selector.GroupExceptCaller("g"), selector.GroupsExceptCaller(("g",)))


@pytest.mark.parametrize("form", [form for _, form, _ in FORMS])
def test_only_a_session_can_mean_itself(form):
    if isinstance(form, tuple(map(type, RELATIVE))):
        with pytest.raises(InvalidSelector, match="only a session"):
            resolve(form, None)
    else:
        assert resolve(form, None) == resolve(form, ME)


@pytest.mark.parametrize("form", [selector.Clients(()), selector.Groups(()), selector.GroupsExceptCaller(())])
def test_nobody_named_is_nobody_meant(form):
    assert resolve(form, ME) == Route("none")


def test_nobody_excluded_is_everybody():
    assert resolve(selector.AllExcept(()), None) == Route("all")
    assert resolve(selector.Group("g", ()), None) == Route("group", "g")


def test_duplicates_are_removed_and_the_order_is_kept():
    assert resolve(selector.Clients(("b", "a", "b", "a")), None) == Route("many", sessions=("b", "a"))
    assert resolve(selector.Groups(("h", "g", "h"), ("a", "a")), None) == Route(
        "many", groups=("h", "g"), without=("a",)
    )
    assert resolve(selector.AllExcept(("a", "a")), None) == Route("all", without=("a",))


def test_one_target_goes_to_its_own_subject():
    assert resolve(selector.Clients(("a", "a")), None) == Route("inbox", "a")
    assert resolve(selector.Groups(("g", "g"), ("a",)), None) == Route("group", "g", without=("a",))
    assert resolve(selector.GroupsExceptCaller(("g", "g")), ME) == Route("group", "g", without=(ME,))


NAMES = tuple(f"n{number}" for number in range(TARGETS_MAX))


@pytest.mark.parametrize(
    "form",
    [
        selector.Clients,
        selector.Groups,
        selector.GroupsExceptCaller,
        selector.AllExcept,
        lambda names: selector.Group("g", names),
        lambda names: selector.Groups(("g", "h"), names),
    ],
    ids=["clients", "groups", "groupsExceptCaller", "allExcept", "group except", "groups except"],
)
def test_at_most_1000_are_named_duplicates_not_counted(form):
    assert TARGETS_MAX == len(NAMES) == 1_000
    route = resolve(form((*NAMES, *NAMES)), ME)
    assert NAMES in {route.sessions, route.groups, route.without}
    with pytest.raises(TooManyTargets):
        resolve(form((*NAMES, "one more")), ME)


def test_ids_are_looked_up_never_validated():
    for odd in ("a.b", "*", ">", "\0", "x" * 256, "~YQ", "\u2028"):
        assert resolve(selector.Client(odd), None) == Route("inbox", odd)
    assert resolve(selector.AllExcept(("", "x" * 300)), None) == Route("all", without=("", "x" * 300))


@pytest.mark.parametrize("impossible", ["", "x" * 257, "é" * 129])
def test_an_id_that_cannot_be_one_is_unknown_like_any_other(impossible):
    assert resolve(selector.Client(impossible), None) == Route("none")
    assert resolve(selector.Clients((impossible,)), None) == Route("none")
    assert resolve(selector.Clients(("a", impossible)), None) == Route("inbox", "a")
    assert resolve(selector.Clients(("a", impossible, "b")), None) == Route("many", sessions=("a", "b"))


@pytest.mark.parametrize("impossible", ["", "x" * 257, "a\0"])
def test_a_group_or_user_that_cannot_exist_is_refused(impossible):
    for form in (
        selector.Group(impossible),
        selector.Groups((impossible, "g")),
        selector.GroupExceptCaller(impossible),
        selector.GroupsExceptCaller(("g", impossible)),
        selector.User(impossible),
    ):
        with pytest.raises(InvalidName):
            resolve(form, ME)


@pytest.mark.parametrize(
    "form",
    [
        selector.Client("\ud800"),
        selector.Clients(("a", "\ud800")),
        selector.AllExcept(("\ud800",)),
        selector.Group("g", ("\ud800",)),
    ],
)
def test_a_lone_surrogate_is_no_text(form):
    with pytest.raises(InvalidSelector):
        resolve(form, None)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"all"',
        b'{"to":"nobody"}',
        b'{"to":"All"}',
        b'{"to":null}',
        b'{"to":["all"]}',
        b'{"to":"all","to":"others","x":1}',
        b'{"to":"all","sessions":[]}',
        b'{"to":"client"}',
        b'{"to":"client","session":null}',
        b'{"to":"client","session":1}',
        b'{"to":"client","session":["a"]}',
        b'{"to":"client","sessions":["a"]}',
        b'{"to":"clients","sessions":"a"}',
        b'{"to":"clients","sessions":[1]}',
        b'{"to":"clients","sessions":[null]}',
        b'{"to":"group","group":"g","without":["a"]}',
        b'{"to":"group","group":"g","except":"a"}',
        b'{"to":"groupExceptCaller","group":"g","except":["a"]}',
        b'{"to":"client","session":"\xff"}',
        b'{"to":"client","session":"\\ud800"}',
        b'{"to":"all"} x',
        b'{"to":"all"',
        b'{"to":"all","x":' + DEEP + b"}",
        b'{"x":' + DEEP + b',"to":"all"}',
        DEEP,
    ],
)
def test_what_is_no_selector_is_refused(raw):
    with pytest.raises(InvalidSelector):
        parse(raw)
