"""Calls: what may be in one, and when two are the same."""

import msgspec
import pytest

from events import codec, selector
from events.errors import InvalidArguments, InvalidName, InvalidOption
from events.ids import EventId
from events.invocation import KEY_CHARACTERS_MAX, TTL_MS_MAX, check_arguments, check_key, requested, same_call

TO = selector.Groups(("g", "h"), ("a",))
ROUTE = selector.resolve(TO, None)


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b"[1,2.50,1e400]",
        '["é🎈\u2028"]'.encode(),
        b'[ {"a" : [ ] } ]',
        b'["\\u0000"]',
        b"[123456789012345678901]",
    ],
)
def test_arguments_reach_the_reader_byte_for_byte(raw):
    event = requested(ROUTE, TO, "say", raw)
    new = codec.encode(event, id=EventId("e"), at="2026-11-21T10:00:00.000000Z", actor="session:x")
    _, read = codec.decode(new.payload)
    assert read == event
    assert bytes(read.arguments) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"null",
        b'"["',
        b" [1]",
        b"\xef\xbb\xbf[]",
        b"[",
        b"[1",
        b"[1,]",
        b"[oops]",
        b"[1] [2]",
        b'[1],"actor":"system:admin"',
        b"[NaN]",
        b'["\n"]',
        b'["\xff"]',
        b'["\xed\xa0\x80"]',
        b'["\xc0\xaf"]',
    ],
)
def test_anything_but_one_array_in_utf_8_is_refused(raw):
    with pytest.raises(InvalidArguments):
        check_arguments(raw)
    with pytest.raises(InvalidArguments):
        requested(ROUTE, TO, "say", msgspec.Raw(raw))


def test_an_event_keeps_nothing_of_the_frame_it_came_from():
    frame = bytearray(b'["x"]')
    event = requested(ROUTE, TO, "say", bytes(frame))
    frame[2] = ord("y")
    assert bytes(event.arguments) == b'["x"]'


def test_what_a_selector_meant_is_in_the_event():
    event = requested(ROUTE, TO, "say", b"[]", caller="me")
    assert (event.selector, event.groups, event.sessions, event.without) == (TO, ("g", "h"), (), ("a",))
    assert event.caller == "me"


@pytest.mark.parametrize("target", ["", "x" * 257, "a\0", "hub.cursor", "hub.answered"])
def test_a_target_is_a_name(target):
    with pytest.raises(InvalidName, match="target"):
        requested(ROUTE, TO, target, b"[]")


@pytest.mark.parametrize("ttl_ms", [1, 500, 1_000])
def test_a_time_to_live_within_the_age_of_the_log(ttl_ms):
    assert requested(ROUTE, TO, "say", b"[]", ttl_ms=ttl_ms, ttl_ms_max=1_000).ttl_ms == ttl_ms


@pytest.mark.parametrize("ttl_ms", [0, -1, 1_001, 10**30])
def test_a_time_to_live_beyond_it_is_refused(ttl_ms):
    with pytest.raises(InvalidOption, match="not within 1 and 1000"):
        requested(ROUTE, TO, "say", b"[]", ttl_ms=ttl_ms, ttl_ms_max=1_000)


def test_without_an_age_a_time_to_live_is_still_a_number_that_all_can_read():
    assert requested(ROUTE, TO, "say", b"[]", ttl_ms=TTL_MS_MAX).ttl_ms == TTL_MS_MAX
    for ttl_ms in (0, TTL_MS_MAX + 1, 1 << 70):
        with pytest.raises(InvalidOption):
            requested(ROUTE, TO, "say", b"[]", ttl_ms=ttl_ms)


def test_keys_have_1_to_128_characters():
    assert check_key("k") == "k"
    assert check_key("é" * KEY_CHARACTERS_MAX) == "é" * 128
    for key in ("", "k" * 129, "\ud800"):
        with pytest.raises(InvalidOption, match="key"):
            check_key(key)


def test_the_same_call_is_the_same_request_from_whichever_session():
    one = requested(ROUTE, TO, "say", b"[1]", caller="a", ttl_ms=5)
    assert same_call(one, requested(ROUTE, TO, "say", b"[1]", caller="b", ttl_ms=5))
    for other in (
        requested(ROUTE, TO, "shout", b"[1]", ttl_ms=5),
        requested(ROUTE, TO, "say", b"[2]", ttl_ms=5),
        requested(ROUTE, TO, "say", b"[1]", ttl_ms=6),
        requested(ROUTE, TO, "say", b"[1]"),
        requested(ROUTE, selector.Groups(("g", "h")), "say", b"[1]", ttl_ms=5),
        requested(ROUTE, selector.All(), "say", b"[1]", ttl_ms=5),
    ):
        assert not same_call(one, other)
