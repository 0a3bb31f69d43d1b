"""What the client reads and writes, and the errors that it makes of lines."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import every_error
from hublog import wire
from hublog.errors import RETRYABLE_CODES, ServerError

RECORDS = st.lists(st.binary(min_size=1).filter(lambda record: b"\x1e" not in record))


@given(RECORDS, st.lists(st.integers(0, 200)))
def test_records_are_found_however_frames_cut_them(records: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(record + b"\x1e" for record in records)
    ends = sorted(min(cut, len(stream)) for cut in cuts)
    reader, found = wire.Records(), []
    for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == records


def test_a_call_is_a_signalr_invocation() -> None:
    sent = wire.call("7", "hub.invoke", [{"to": "all"}, "say", (1, "é")])
    assert sent.endswith(b"\x1e")
    assert json.loads(sent[:-1]) == {
        "type": 1,
        "invocationId": "7",
        "target": "hub.invoke",
        "arguments": [{"to": "all"}, "say", [1, "é"]],
    }


def test_the_position_is_taken_off_the_arguments() -> None:
    def taken(raw: bytes, *, positioned: bool) -> tuple[list[bytes], str | None]:
        arguments, position = wire.arguments(raw, positioned=positioned)
        return [bytes(argument) for argument in arguments], position

    assert taken(b'[1,{"a":[]},"k7qd.0-9"]', positioned=True) == ([b"1", b'{"a":[]}'], "k7qd.0-9")
    assert taken(b'["k7qd.0-9"]', positioned=True) == ([], "k7qd.0-9")
    assert taken(b'["k7qd.0-9"]', positioned=False) == ([b'"k7qd.0-9"'], None)


@pytest.mark.parametrize("raw", [b"[]", b"[1]", b"{}", b"nothing", b'["\xff"]'])
def test_without_a_position_a_message_cannot_be_counted(raw: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.arguments(raw, positioned=True)


@pytest.mark.parametrize("record", [b"", b"{}", b"[]", b"[6]", b'{"type":"1"}', b"{", b'{"type":3,"error":1}'])
def test_what_is_no_message_is_unreadable(record: bytes) -> None:
    with pytest.raises(wire.Unreadable):
        wire.message(record)


def test_the_answer_to_the_handshake() -> None:
    assert wire.handshake_error(b"{}") is None
    assert wire.handshake_error(b'{"error":"shutting_down: going"}') == "shutting_down: going"
    for record in (b"[]", b'{"type":6}'):
        with pytest.raises(wire.Unreadable):
            wire.handshake_error(record)


def test_every_error_of_the_service_is_read_as_it_was_said() -> None:
    for code, error in every_error().items():
        read = ServerError.from_wire(error("it happened at $.x").wire())
        assert (read.code, read.message, read.hint) == (code, "it happened at $.x", error.hint)
        assert read.retryable == error.retryable, code


def test_the_retryable_codes_are_those_that_the_service_publishes() -> None:
    assert {code for code, error in every_error().items() if error.retryable} == RETRYABLE_CODES


def test_a_line_of_another_form_keeps_its_text() -> None:
    read = ServerError.from_wire("Connection closed with an error.")
    assert (read.code, read.message, read.retryable) == ("internal", "Connection closed with an error.", False)
    assert str(ServerError.from_wire("key_reused: it was. Use another.")) == "key_reused: it was. Use another."


def test_raw_arguments_are_decoded_only_by_their_handler() -> None:
    """A number that no float holds must not end the connections of all who receive it."""
    arguments, position = wire.arguments(b'[1e999,"p"]', positioned=True)
    assert position == "p"
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(arguments[0])
