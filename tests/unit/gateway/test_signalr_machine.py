"""The machine of one connection: phases, joining and splitting of records, limits, timers."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import HublogError, Internal, Restarting
from service.gateway.signalr import json_format as wire
from service.gateway.signalr.machine import HubMachine, Limits, Phase
from service.gateway.signalr.messages import (
    CloseReceived,
    HandshakeReceived,
    Incoming,
    InvocationReceived,
    PingDue,
    PingReceived,
    Refusal,
)

HANDSHAKE = b'{"protocol":"json","version":1}\x1e'
CALL = b'{"type":1,"invocationId":"1","target":"hub.session","arguments":[]}\x1e'
PING = b'{"type":6}\x1e'


def ready(limits: Limits | None = None) -> HubMachine:
    machine = HubMachine(0.0, limits or Limits())
    assert machine.receive(HANDSHAKE, 0.0) == [HandshakeReceived("json", 1)]
    assert machine.accept(0.0) == b"{}\x1e"
    return machine


def only_refusal(found: list[Incoming]) -> Refusal:
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    return found[0]


def said(reply: bytes) -> dict[str, object]:
    assert reply.endswith(b"\x1e")
    return dict(json.loads(reply[:-1]))


def test_a_connection_shakes_hands_then_calls():
    machine = ready()
    assert machine.receive(CALL + PING, 1.0) == [InvocationReceived("1", "hub.session", b"[]"), PingReceived()]


def test_text_may_come_as_str():
    call = CALL.decode().replace("[]", '["é🎈"]')
    found = ready().receive(call, 1.0)
    assert found == [InvocationReceived("1", "hub.session", '["é🎈"]'.encode())]


def test_a_lone_surrogate_in_a_str_is_refused():
    call = CALL.decode().replace("[]", '["\ud800"]')
    refusal = only_refusal(ready().receive(call, 1.0))
    assert not refusal.fatal
    assert said(refusal.reply)["invocationId"] == "1"


def test_a_record_split_over_frames_is_joined_even_inside_a_character():
    call = CALL.replace(b"[]", '["é"]'.encode())
    middle = call.index(b"\xc3") + 1
    machine = ready()
    assert machine.receive(call[:middle], 1.0) == []
    assert machine.receive(call[middle:], 2.0) == [InvocationReceived("1", "hub.session", '["é"]'.encode())]


def test_the_first_message_must_be_a_handshake():
    machine = HubMachine(0.0)
    refusal = only_refusal(machine.receive(CALL, 0.0))
    assert refusal.fatal
    assert str(said(refusal.reply)["error"]).startswith("bad_handshake: ")
    assert machine.receive(HANDSHAKE, 1.0) == []


def test_messagepack_is_refused_in_the_handshake():
    refusal = only_refusal(HubMachine(0.0).receive(b'{"protocol":"messagepack","version":1}\x1e', 0.0))
    assert refusal.error.code == "unsupported_protocol"
    assert set(said(refusal.reply)) == {"error"}


def test_a_refused_call_leaves_the_connection_open():
    machine = ready()
    stream = CALL.replace(b'"type":1', b'"type":4')
    first, second = machine.receive(stream + CALL, 1.0)
    assert isinstance(first, Refusal)
    assert not first.fatal
    answer = said(first.reply)
    assert answer["type"] == 3
    assert answer["invocationId"] == "1"
    code, _, text = str(answer["error"]).partition(": ")
    assert code == "not_available"
    assert text
    assert isinstance(second, InvocationReceived)


def test_an_unreadable_message_ends_the_connection_after_what_came_before_it():
    machine = ready()
    found = machine.receive(CALL + b"junk\x1e" + CALL, 1.0)
    assert isinstance(found[0], InvocationReceived)
    refusal = found[1]
    assert isinstance(refusal, Refusal)
    assert refusal.fatal
    assert said(refusal.reply)["type"] == 7
    assert "allowReconnect" not in said(refusal.reply)
    assert len(found) == 2
    assert machine.phase is Phase.DONE
    assert machine.receive(CALL, 2.0) == []


def test_the_size_limit_counts_the_separator():
    fits = CALL.replace(b"[]", b'["' + b"x" * 200 + b'"]')
    assert isinstance(ready(Limits(record_bytes_max=len(fits))).receive(fits, 1.0)[0], InvocationReceived)
    refusal = only_refusal(ready(Limits(record_bytes_max=len(fits) - 1)).receive(fits, 1.0))
    assert refusal.error.code == "message_too_large"
    assert refusal.fatal


def test_an_endless_record_is_cut_off_at_the_limit():
    machine = ready(Limits(record_bytes_max=1000))
    for _ in range(9):
        assert machine.receive(b"x" * 100, 1.0) == []
    assert only_refusal(machine.receive(b"x" * 100, 1.0)).error.code == "message_too_large"
    assert machine._partial is None


def test_many_small_records_in_one_large_frame_are_fine():
    found = ready(Limits(record_bytes_max=100)).receive(PING * 1000, 1.0)
    assert found == [PingReceived()] * 1000


def test_nothing_is_read_after_close():
    machine = ready()
    assert machine.receive(b'{"type":7}\x1e' + CALL, 1.0) == [CloseReceived(None)]
    assert machine.end(None) == b""


def test_ending_before_the_session_is_open_is_a_handshake_error():
    machine = HubMachine(0.0)
    machine.receive(HANDSHAKE, 0.0)
    assert set(said(machine.end(Restarting("this node stops")))) == {"error"}
    assert machine.accept(1.0) == b""


def test_ending_an_open_session_is_a_close_said_once():
    machine = ready()
    closed = said(machine.end(Restarting("this node stops")))
    assert closed["type"] == 7
    assert closed["allowReconnect"] is True
    assert str(closed["error"]).startswith("shutdown: this node stops. ")
    assert machine.end(Internal("x")) == b""


def test_accepting_without_a_handshake_is_a_defect_of_the_shell():
    with pytest.raises(RuntimeError):
        HubMachine(0.0).accept(0.0)


def test_what_ends_the_connection_in_the_handshakes_own_frame_is_never_accepted():
    machine = HubMachine(0.0)
    shake, refusal = machine.receive(HANDSHAKE + b"junk\x1e", 0.0)
    assert isinstance(shake, HandshakeReceived)
    assert isinstance(refusal, Refusal)
    assert machine.accept(0.0) == b""
    assert set(said(refusal.reply)) == {"error"}


# ------------------------------------------------------------------------------------------------ timers


def test_a_ping_is_due_after_silence_of_ours():
    machine = ready()
    machine.receive(PING, 14.0)
    assert machine.tick(14.9) is None
    assert machine.tick(15.0) == PingDue(wire.PING)
    machine.sent(15.0)
    machine.receive(PING, 29.0)
    assert machine.tick(29.9) is None
    assert machine.tick(30.0) == PingDue(wire.PING)


def test_a_silent_client_is_dropped_reconnectably():
    machine = ready()
    machine.receive(PING, 1.0)
    machine.last_sent_s = 30.0
    assert machine.tick(30.9) is None
    due = machine.tick(31.0)
    assert isinstance(due, Refusal)
    assert due.error.code == "client_timeout"
    assert said(due.reply)["allowReconnect"] is True
    assert machine.tick(32.0) is None


def test_a_handshake_must_come_in_time_and_no_ping_goes_before_it():
    machine = HubMachine(100.0)
    machine.receive(b'{"protocol"', 110.0)
    assert machine.tick(114.9) is None
    due = machine.tick(115.0)
    assert isinstance(due, Refusal)
    assert due.error.code == "handshake_timeout"
    assert set(said(due.reply)) == {"error"}


def test_while_the_session_is_being_opened_no_ping_goes_out():
    machine = HubMachine(0.0)
    machine.receive(HANDSHAKE, 14.0)
    assert machine.tick(29.0) is None
    assert isinstance(machine.tick(44.0), Refusal)


# ------------------------------------------------------------------------------------------------ properties

RECORDS = st.lists(
    st.one_of(
        st.sampled_from([CALL, PING, b'{"type":5,"invocationId":"1"}\x1e', b'{"type":2,"invocationId":"1"}\x1e']),
        st.sampled_from([CALL.replace(b'"type":1', b'"type":4'), b"\x1e", b"{}\x1e", b'{"type":7}\x1e', b"\xff\x1e"]),
        st.lists(st.text(max_size=20), max_size=4).map(
            lambda words: b'{"type":1,"target":"t","arguments":' + json.dumps(words).encode() + b"}\x1e"
        ),
        st.binary(max_size=40),
    ),
    max_size=12,
).map(lambda records: HANDSHAKE + b"".join(records))


def outcome(message: Incoming) -> object:
    """A refusal's reply depends on whether the handshake was answered yet; which error and how grave does not."""
    return (type(message.error), message.fatal) if isinstance(message, Refusal) else message


def drive(frames: list[bytes]) -> list[object]:
    machine = HubMachine(0.0, Limits(record_bytes_max=200))
    found: list[object] = []
    for frame in frames:
        for message in machine.receive(frame, 1.0):
            if isinstance(message, HandshakeReceived):
                machine.accept(1.0)
            found.append(outcome(message))
    return found


@given(RECORDS, st.lists(st.integers(0, 600), max_size=12))
def test_however_a_stream_is_cut_into_frames_it_says_the_same(stream: bytes, cuts: list[int]):
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert drive(frames) == drive([stream])


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_garbage_is_an_error_and_never_a_crash(frames: list[bytes], shaken: bool):
    machine = ready(Limits(record_bytes_max=100)) if shaken else HubMachine(0.0, Limits(record_bytes_max=100))
    for frame in frames:
        for message in machine.receive(frame + b"\x1e", 1.0):
            if isinstance(message, Refusal):
                assert isinstance(message.error, HublogError)
                assert said(message.reply)["error"] == message.error.wire()
    assert machine._partial is None


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["type", "invocationId", "target", "arguments", "result", "error"]), JSONS))
def test_any_json_object_is_answered_or_understood(record: dict[str, object]):
    machine = ready()
    found = machine.receive(json.dumps(record).encode() + b"\x1e", 1.0)
    assert len(found) <= 1
    if found and isinstance(found[0], InvocationReceived):
        assert json.loads(found[0].arguments) == record["arguments"]


def test_a_connection_at_rest_holds_no_buffers():
    machine = ready()
    machine.receive(CALL[:10], 1.0)
    machine.receive(CALL[10:], 1.0)
    assert machine._partial is None
    assert not hasattr(machine, "__dict__")
