"""The JSON format: golden bytes out, and what each wrong record is answered with."""

import json

import pytest

from events.errors import BadHandshake, HublogError, UnsupportedProtocol
from service.gateway.signalr import json_format as wire
from service.gateway.signalr.framing import text_frame
from service.gateway.signalr.json_format import RefusedCall
from service.gateway.signalr.messages import (
    CancelReceived,
    CloseReceived,
    CompletionReceived,
    HandshakeReceived,
    InvocationReceived,
    PingReceived,
)


@pytest.mark.parametrize(
    ("given", "golden"),
    [
        (wire.invocation("say", b'["hi",1]'), b'{"type":1,"target":"say","arguments":["hi",1]}\x1e'),
        (wire.invocation('q"\x1e', b"[]"), b'{"type":1,"target":"q\\"\\u001e","arguments":[]}\x1e'),
        (wire.completion_result("7", b"null"), b'{"type":3,"invocationId":"7","result":null}\x1e'),
        (wire.completion_void("7"), b'{"type":3,"invocationId":"7"}\x1e'),
        (wire.completion_error("é", 'a: "b"'), '{"type":3,"invocationId":"é","error":"a: \\"b\\""}\x1e'.encode()),
        (wire.ping(), b'{"type":6}\x1e'),
        (wire.close(None, allow_reconnect=False), b'{"type":7}\x1e'),
        (wire.close("kicked: x", allow_reconnect=True), b'{"type":7,"error":"kicked: x","allowReconnect":true}\x1e'),
        (wire.handshake_ok(), b"{}\x1e"),
        (wire.handshake_error("bad_handshake: x"), b'{"error":"bad_handshake: x"}\x1e'),
    ],
)
def test_what_we_say_is_spelled_exactly_so(given: bytes, golden: bytes):
    assert given == golden
    assert json.loads(given[:-1]) is not None
    assert given.count(b"\x1e") == 1


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_names_its_length_in_the_shortest_form(size: int, header: bytes):
    assert text_frame(b"x" * size) == header + b"x" * size


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b'{"type":1,"target":"m","arguments":[ 1 ,"\xc3\xa9"]}', InvocationReceived(None, "m", b'[ 1 ,"\xc3\xa9"]')),
        (b' {"arguments":  [],"target":"m","invocationId":"1","type":1} ', InvocationReceived("1", "m", b"[]")),
        (b'{"type":1,"target":"m","arguments":[],"streamIds":[]}', InvocationReceived(None, "m", b"[]")),
        (b'{"type":1,"headers":{"a":"b"},"target":"m","arguments":[]}', InvocationReceived(None, "m", b"[]")),
        (b'{"type":3,"invocationId":"1","result":null}', CompletionReceived("1", b"null", None)),
        (b'{"type":3,"invocationId":"1","result":{"a":[1]}}', CompletionReceived("1", b'{"a":[1]}', None)),
        (b'{"type":3,"invocationId":"1","error":"no"}', CompletionReceived("1", None, "no")),
        (b'{"type":3,"invocationId":"1"}', CompletionReceived("1", None, None)),
        (b'{"type":5,"invocationId":"1"}', CancelReceived("1")),
        (b'{"type":6}', PingReceived()),
        (b'{"type":7}', CloseReceived(None)),
        (b'{"type":7,"error":"bye","allowReconnect":true}', CloseReceived("bye")),
        (b'{"type":2,"invocationId":"1","item":1}', None),
    ],
)
def test_what_clients_say_is_understood(record: bytes, message: object):
    assert wire.decode(record) == message


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (b'{"type":1,"invocationId":"1","arguments":[]}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":7,"arguments":[]}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":"m"}', "invalid_arguments"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":{}}', "invalid_arguments"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":null}', "invalid_arguments"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":["\xff"]}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":[],"x":"\xc3("}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":["\\ud83d"]}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":"\\uDE00m","arguments":[]}', "bad_message"),
        (b'{"type":1,"invocationId":"1","target":"m","arguments":[],"streamIds":["2"]}', "not_available"),
        (b'{"type":4,"invocationId":"1","target":"m","arguments":[]}', "not_available"),
    ],
)
def test_a_wrong_call_with_a_readable_id_is_refused_alone(record: bytes, code: str):
    with pytest.raises(RefusedCall) as refused:
        wire.decode(record)
    assert refused.value.invocation_id == "1"
    assert refused.value.error.code == code


@pytest.mark.parametrize("text", ["\ud83d", "cut: \ude00", "\ud83d and more", "\ude00\ud83d"])
def test_a_text_that_was_cut_inside_a_character_costs_its_call_and_says_so(text: str):
    record = json.dumps({"type": 1, "invocationId": "7", "target": "say", "arguments": [text]}).encode()
    with pytest.raises(RefusedCall, match="half of a surrogate pair") as refused:
        wire.decode(record)
    assert refused.value.invocation_id == "7"


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"type":1,"target":"m","arguments":[]',
        b'{"type":1,"invocationId":"1","target":"m","arguments":["a\nb"]}',
        b'{"type":1,"invocationId":"1","target":"m","arguments":[NaN]}',
        b'{"type":1,"invocationId":"1","target":"m","arguments":["\\ud83d",NaN]}',
        b'{"type":1,"invocationId":"1","target":"m","arguments":["\\ud83d"]',
        b'{"type":1,"invocationId":"\\ud83d","target":"m","arguments":[]}',
        b'{"type":1,"target":"m","arguments":["\\ud83d"]}',
        b'{"type":6,"x":"\\ud83d"}',
        b'{"type":1,"target":"m","arguments":{}}',
        b'{"type":1,"invocationId":1,"target":"m","arguments":[]}',
        b'{"type":1,"invocationId":"1","target":"m","arguments":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"type":"1","target":"m","arguments":[]}',
        b'{"type":0}',
        b'{"type":10}',
        b'{"type":-99999999999999999999999999}',
        b'{"type":8,"sequenceId":1}',
        b'{"type":9,"sequenceId":1}',
        b'{"type":2,"item":1}',
        b'{"type":3,"result":1}',
        b'{"type":3,"invocationId":"1","result":1,"error":"e"}',
        b'{"type":4,"target":"m","arguments":[]}',
        b'{"type":5}',
        b'\xff{"type":6}',
    ],
)
def test_what_cannot_be_answered_singly_ends_the_connection(record: bytes):
    with pytest.raises(HublogError) as refused:  # RefusedCall is none
        wire.decode(record)
    assert refused.value.code in {"bad_message", "invalid_arguments"}


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b'{"protocol":"messagepack","version":1}', UnsupportedProtocol),
        (b'{"protocol":"json","version":3}', UnsupportedProtocol),
        (b'{"protocol":"json","version":0}', UnsupportedProtocol),
        (b'{"protocol":"JSON","version":1}', UnsupportedProtocol),
        (b'{"protocol":"json"}', BadHandshake),
        (b'{"protocol":"json","version":"1"}', BadHandshake),
        (b'{"type":6}', BadHandshake),
        (b"", BadHandshake),
        (b"[" * 5000, BadHandshake),
        (b'{"protocol":"json","version":1,"x":"\xff"}', BadHandshake),
    ],
)
def test_other_handshakes_are_refused_with_their_reason(record: bytes, error: type[Exception]):
    with pytest.raises(error):
        wire.decode_handshake(record)


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_json_are_spoken(version: int):
    record = json.dumps({"protocol": "json", "version": version, "future": [1]}).encode()
    assert wire.decode_handshake(record) == HandshakeReceived("json", version)


def test_decoded_arguments_do_not_keep_the_record_alive():
    record = b'{"type":1,"target":"m","arguments":[1],"headers":{"pad":"' + b"x" * 30_000 + b'"}}'
    message = wire.decode(record)
    assert isinstance(message, InvocationReceived)
    assert type(message.arguments) is bytes
    assert message.arguments == b"[1]"
