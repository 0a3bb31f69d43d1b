"""Subjects: the encoding of names is injective and reversible, and only what is built here is parsed."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import subjects
from events.ids import NAME_BYTES_MAX, HubName, parse_name, partition_of
from events.subjects import CALL_BUCKETS, CONDITIONAL, HubSubjects, Subject, name_of, parse, token

NASTY = [
    "a.b", "a b", " ", "~", "~YQ", "*", ">", "g.>", "a.*.b", "é", "e\u0301", "\u2028", "🎈", "👩‍👩‍👧", "\r\n", "\t",
    "\x7f", "a" * 256, "\U0010ffff" * 64, "-", "_", ".", "..", "/", "%2e", "log", "all", "many", "\uff21\uff22",
    "\u200b",
]  # fmt: skip
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256).filter(
    lambda name: len(name.encode()) <= NAME_BYTES_MAX
)
hubs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}\Z", fullmatch=True).map(HubName)

SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_~-]+\Z")


def nasty(test):
    for name in NASTY:
        test = example(name)(test)
    return test


@nasty
@given(names)
def test_a_name_survives_its_token(name):
    assert parse_name(name, "group") == name
    assert name_of(token(name)) == name


@nasty
@given(names)
def test_a_token_is_one_plain_token_that_no_wildcard_or_separator_can_enter(name):
    assert SUBJECT_TOKEN.match(token(name))
    assert len(token(name)) <= 1 + (NAME_BYTES_MAX * 4 + 2) // 3


@given(names, names)
@example("e\u0301", "é")
@example("~YQ", "a")
@example("a", "A")
@example("x" * 255, "x" * 256)
def test_different_names_have_different_tokens(one, other):
    assert (token(one) == token(other)) == (one == other)


def test_all_nasty_names_have_tokens_of_their_own():
    assert len({token(name) for name in NASTY}) == len(set(NASTY)) == len(NASTY)


@pytest.mark.parametrize("plain", ["lobby", "A-b_9", "0", "-", "_"])
def test_a_plain_name_spells_itself(plain):
    assert token(plain) == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~",
        "a.b",
        "é",
        "a b",
        "~YQ",  # "a" is plain: only one spelling
        "~w6",  # not canonical: stray bits
        "~w6k=",
        "~w6 k",
        "~_w",  # not UTF-8
        "~7aCA",  # a surrogate, which UTF-8 does not have
        "~é",
        "~~",
    ],
)
def test_other_spellings_are_no_tokens(text):
    with pytest.raises(ValueError, match=r".+"):
        name_of(text)


@given(hubs, names, st.integers(1, 64))
def test_what_is_built_is_parsed_back(hub, name, partitions):
    number = partition_of(hub, partitions)
    built = HubSubjects(hub, partitions)
    assert built.partition == number
    assert parse(built.session(name)) == Subject(number, hub, "session", name)
    assert parse(built.inbox(name)) == Subject(number, hub, "inbox", name)
    assert parse(built.group(name)) == Subject(number, hub, "group", name)
    assert parse(built.user(name)) == Subject(number, hub, "user", name)
    assert parse(built.room(name)) == Subject(number, hub, "room", name)
    assert parse(built.all()) == Subject(number, hub, "all")
    assert parse(built.many()) == Subject(number, hub, "many")
    call = parse(built.call(name))
    assert (call.partition, call.hub, call.kind) == (number, hub, "call")
    assert call.name is not None
    assert 0 <= int(call.name) < CALL_BUCKETS
    assert parse(subjects.node(name)) == Subject(0, "_sys", "node", name)
    assert parse(subjects.canary(name, number)) == Subject(number, "_sys", "canary", name)


@given(hubs, names)
def test_subjects_of_different_things_never_meet(hub, name):
    built = HubSubjects(hub, 1)
    made = [
        built.session(name),
        built.inbox(name),
        built.group(name),
        built.user(name),
        built.room(name),
        built.call(name),
        built.all(),
        built.many(),
        subjects.node(name),
        subjects.canary(name, 0),
    ]
    assert len(set(made)) == len(made)
    for subject in made:
        assert subjects.partition(subject) == parse(subject).partition
        assert subjects.stream(subjects.partition(subject)) == "EV_0"


@given(hubs, names)
def test_stored_and_live_are_inverse(hub, name):
    subject = HubSubjects(hub, 8).group(name)
    assert subjects.live(subject) == "lv" + subject[2:]
    assert subjects.stored(subjects.live(subject)) == subject
    with pytest.raises(ValueError, match="not a subject"):
        parse(subjects.live(subject))


def test_sessions_and_rooms_are_written_conditionally_and_nothing_else():
    assert {"session", "room"} == CONDITIONAL


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "ev",
        "ev.0",
        "ev.0.chat",
        "ev.0.chat.",
        "ev.0.chat.s",
        "ev.0.chat.s.x",
        "ev.0.chat.s.x.other",
        "ev.0.chat.s.x.log.more",
        "ev.0.chat.s..log",
        "ev.0.chat.s.*.log",
        "ev.0.chat.g.>",
        "ev.0.chat.g.a.b",
        "ev.0.chat.g.~YQ",
        "ev.0.chat.g.~",
        "ev.0.chat.g.\u00e9",
        "ev.0.chat.ALL",
        "ev.0.chat.all.x",
        "ev.0.chat.x.y",
        "ev.0.Chat.all",
        "ev.0..all",
        "ev.0.-chat.all",
        "ev.0.chat\n.all",
        "ev.0._sys.all",
        "ev.0._sys.g.x",
        "ev.0._sys.s.x.log",
        "ev.1._sys.node.x",
        "ev.1._sys.canary",
        "ev.1._sys.canary.x.log",
        "ev.0.chat.canary.x",
        "ev.0.chat.node.x",
        "ev.00.chat.all",
        "ev.+0.chat.all",
        "ev. 0.chat.all",
        "ev.1_0.chat.all",
        "ev.-1.chat.all",
        "ev.\u0661.chat.all",
        "ev.x.chat.all",
        "ev..chat.all",
        "ev.0.chat.call.256",
        "ev.0.chat.call.-1",
        "ev.0.chat.call.007",
        "ev.0.chat.call.x",
        "ev.0.chat.call.~w6k",
        "ev.0.chat.all\n",
        "lv.0.chat.all",
        "EV.0.chat.all",
        "$JS.API.INFO.x",
    ],
)
def test_what_is_not_built_here_is_refused(subject):
    with pytest.raises(ValueError, match=r".+"):
        parse(subject)


@given(st.text(max_size=40) | st.from_regex(r"ev\.[0-9+ ]{1,3}\.[a-z_]{0,4}\.[sgur]\.[~a-zA-Z0-9_-]{0,9}(\.log)?"))
def test_parse_refuses_or_is_the_inverse_of_building(text):
    try:
        parsed = parse(text)
    except ValueError:
        return
    kind, name = parsed.kind, parsed.name or ""
    if kind == "node":
        assert subjects.node(name) == text
        return
    if kind == "canary":
        assert subjects.canary(name, parsed.partition) == text
        return
    built = HubSubjects(HubName(parsed.hub), 1)
    built.prefix = f"ev.{parsed.partition}.{parsed.hub}"
    if kind == "call":
        assert f"{built.prefix}.call.{name}" == text
    elif kind in {"all", "many"}:
        assert getattr(built, kind)() == text
    else:
        assert getattr(built, kind)(name) == text
