"""What is nested too deeply is refused at every entry, and does not stop a reader should it be there."""

import pytest

from events import codec, invocation
from events.errors import InvalidArguments, UnreadableEvent
from events.nesting import NESTING_MAX, too_deep


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[" * NESTING_MAX + b"]" * NESTING_MAX, False),
        (b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1), True),
        (b'{"a":[' * 33 + b"1" + b"]}" * 33, True),
        (b'["' + b"[" * 100 + b'"]', False),
        (b'["\\"' + b"[" * 100 + b'"]', False),
        (b'["\\\\",' + b"[" * 100 + b"]" * 101, True),
        (b"[" + b"[]," * 100 + b"[]]", False),
        (b'["' + b"[" * 100, False),  # no JSON: somebody else's to refuse
    ],
)
def test_brackets_outside_strings_count(text, deep):
    assert too_deep(text) == deep


def test_a_call_with_arguments_nested_too_deeply_is_refused():
    invocation.check_arguments(b"[" * NESTING_MAX + b"]" * NESTING_MAX)
    with pytest.raises(InvalidArguments):
        invocation.check_arguments(b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1))


def test_an_event_nested_beyond_the_recursion_limit_is_unreadable_and_no_more():
    deep = b"[" * 50_000 + b"]" * 50_000
    payload = b'{"id":"1","type":"invocation.requested.v1","at":"x","actor":"a","data":{"arguments":%s}}' % deep
    with pytest.raises(UnreadableEvent):
        codec.decode(payload)
