"""The bytes of every tag ever written, kept for ever: they decode to what they meant, and are written the same today.

One file per tag in ``tests/golden``. A tag that is not written any more stays, and its event is what the upcasters
make of it.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events import codec, invocation, node, selector, session
from events.envelope import Envelope, Recorded
from events.ids import EventId

GOLDEN = Path(__file__).parents[2] / "golden"
AT = "2026-11-21T10:00:00.000000Z"
ID = EventId("019a9e2c-7b4a-7c11-9f2e-0a1b2c3d4e5f")
CALL = EventId("019a9e2c-7b4a-7c11-9f2e-000000000001")
META = msgspec.Raw(b'{"name": "Ann",  "n":1.50}')

ACTIVE = session.State(
    status="active",
    resumable=True,
    user="ann",
    metadata=META,
    node="gw-0",
    incarnation="gw-0-1",
    connection="c1",
    generation=1,
)
KNOWN = msgspec.structs.replace(ACTIVE, opened=7)
JOINED = msgspec.structs.replace(KNOWN, groups={"lobby": 9, "Röum": session.OPEN})

EVENTS: dict[str, codec.Event] = {
    "session.opened.v1": session.Opened(
        user="ann", metadata=META, node="gw-0", incarnation="gw-0-1", connection="c1", resumable=True, after=ACTIVE
    ),
    "session.attached.v1": session.Attached(
        node="gw-1",
        incarnation="gw-1-1",
        connection="c2",
        generation=2,
        after=msgspec.structs.replace(KNOWN, node="gw-1", incarnation="gw-1-1", connection="c2", generation=2),
    ),
    "session.detached.v1": session.Detached(
        connection="c1",
        reason="hole",
        last_seen_us=1_795_255_199_000_000,
        rewind=12,
        after=msgspec.structs.replace(KNOWN, status="detached", detached_since_us=session.OPEN),
    ),
    "session.joined.v1": session.Joined(groups=("Röum",), after=JOINED),
    "session.left.v1": session.Left(groups={"lobby": 9}, after=KNOWN),
    "session.carried.v1": session.Carried(after=KNOWN),
    "session.closed.v1": session.Closed(
        reason="client",
        connection="c1",
        groups={"lobby": 9, "Röum": 11},
        after=msgspec.structs.replace(KNOWN, status="closed", reason="client"),
    ),
    "invocation.requested.v1": invocation.Requested(
        target="say",
        arguments=msgspec.Raw('[ "h\\u0000i", {"ü" : 1e3} ]'.encode()),
        selector=selector.Groups(groups=("lobby", "Röum"), without=("s9",)),
        caller="s1",
        ttl_ms=500,
        groups=("lobby", "Röum"),
        without=("s9",),
    ),
    "invocation.answered.v1": invocation.Answered(invocation=CALL, session="s1", result=msgspec.Raw(b"[1, 2]")),
    "invocation.cancelled.v1": invocation.Cancelled(invocation=CALL),
    "invocation.expired.v1": invocation.Expired(invocation=CALL, missing=("s1", "s2")),
    "node.started.v1": node.Started(
        node="gw-0", incarnation="gw-0-2", version="0.1.0", url="http://127.0.0.1:8000", previous="gw-0-1"
    ),
    "node.draining.v1": node.Draining(node="gw-0", incarnation="gw-0-2"),
    "node.lost.v1": node.Lost(node="gw-0", incarnation="gw-0-2", last_renewal_us=1_795_255_199_000_000),
    "node.delivered.v1": node.Delivered(node="gw-0", incarnation="gw-0-2", partition=3, up_to=1523),
    "node.canary.v1": node.Canary(node="gw-0", incarnation="gw-0-2"),
}


def golden(tag: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{tag}.json").read_text(encoding="utf-8"))


def test_every_tag_has_its_bytes() -> None:
    kept = {path.stem for path in GOLDEN.glob("*.v*.json")}
    assert kept == set(codec.TAGS) | set(codec.UPCASTERS)
    assert set(EVENTS) == kept


@pytest.mark.parametrize("tag", EVENTS)
def test_the_bytes_decode_to_what_they_meant(tag: str) -> None:
    payload = golden(tag)["payload"].encode()
    written, event = codec.decode(payload)
    assert event == EVENTS[tag]
    data = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])["data"]
    assert written == Envelope(ID, tag, AT, "user:ann", "corr-1", "cause-1", data)


@pytest.mark.parametrize("tag", [tag for tag in EVENTS if tag in codec.TAGS])
def test_the_same_bytes_are_written_today(tag: str) -> None:
    event = codec.encode(
        EVENTS[tag],
        id=ID,
        at=AT,
        actor="user:ann",
        correlation="corr-1",
        causation="cause-1",
        traceparent="00-ab-cd-01",
    )
    assert event.payload.decode() == golden(tag)["payload"]
    assert (event.id, event.traceparent) == (ID, "00-ab-cd-01")


@pytest.mark.parametrize("tag", [tag for tag in EVENTS if tag.startswith("session.")])
def test_a_session_event_is_the_state(tag: str) -> None:
    recorded = Recorded("ev.0.chat.s.s1.log", 1523, 1_795_255_200_000_000, golden(tag)["payload"].encode())
    assert msgspec.to_builtins(codec.session_state(recorded), builtin_types=(msgspec.Raw,)) == {
        key: msgspec.Raw(value.encode()) if key == "metadata" else value for key, value in golden(tag)["state"].items()
    }
