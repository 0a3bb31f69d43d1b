"""What JetStream answers to a write, and what the headers of a write are.

Owns the codes of the server and what each means to a caller. Unknown ones are never success.
"""

import msgspec

from events import trace
from events.envelope import NewEvent
from events.errors import HublogError, Internal, LogFull, PayloadTooLarge
from service.log.jetstream.replies import NO_LEADER, ApiError

WRONG_LAST_SEQUENCE = 10071
BATCH_HAS_DUPLICATE = 10201
BATCH_INCOMPLETE = 10176
FULL = {10077, 10002, 10023}  # a limit of the stream, of the account, of the server
TOO_LARGE = 10054
SUBJECT_IN_FLIGHT, ID_IN_FLIGHT = 10164, 10158
NOT_NOW = {NO_LEADER, 10167, 10210, SUBJECT_IN_FLIGHT, ID_IN_FLIGHT}  # nothing stored; the same again, a little later


class Ack(msgspec.Struct, frozen=True, gc=False):
    """The answer to a write."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


acks = msgspec.json.Decoder(Ack)


def header_block(event: NewEvent, extra: str = "") -> bytes:
    """The raw headers of one event. A trace context that is none is left out, as its specification says."""
    if event.traceparent is not None and trace.valid(event.traceparent):
        extra = trace.header(event.traceparent) + extra
    return f"NATS/1.0\r\nNats-Msg-Id: {event.id}\r\n{extra}\r\n".encode()


def failure(code: int, error: ApiError) -> HublogError:
    """What a refusal that repeating does not mend means to the caller. Unknown codes are never success."""
    if code in FULL:
        return LogFull(f"JetStream cannot store: {error.description}", err_code=code)
    if code == TOO_LARGE:
        return PayloadTooLarge(error.description, err_code=code)
    return Internal(f"JetStream refused a write: {code} {error.description}", err_code=code)


def event_id(headers: bytes) -> str:
    """The id in a raw header block; empty if there is none."""
    at = headers.find(b"\r\nNats-Msg-Id: ")
    if at < 0:
        return ""
    at += 15
    return headers[at : headers.find(b"\r\n", at)].decode(errors="replace")
