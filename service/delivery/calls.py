"""A call as it comes by in the feed: as much of it as delivery reads, and whom it means of the sessions here.

Whoever is meant is found in the chains, by *effective* membership. Knows no order, and delivers nothing.
"""

import msgspec

from service.delivery.interest import Chain, Receiver

REQUESTED = "invocation.requested.v1"


class Call(msgspec.Struct):
    """As much of ``invocation.Requested`` as delivery needs."""

    target: str
    arguments: msgspec.Raw = msgspec.Raw(b"[]")
    sessions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Written(msgspec.Struct):
    type: str
    data: Call
    at: str = ""


class _Typed(msgspec.Struct):
    type: str


read = msgspec.json.Decoder(Written).decode
_typed = msgspec.json.Decoder(_Typed)


def is_another_event(payload: bytes) -> bool:
    """Whether it is an event, and no call; false where not even that can be read."""
    try:
        return _typed.decode(payload).type != REQUESTED
    except (msgspec.DecodeError, UnicodeError):
        return False


def named(chain: Chain, call: Call) -> dict[str, Receiver]:
    """Each local session that a multi-target call names, once."""
    hub = chain.hub
    chosen: dict[str, Receiver] = {}
    for name in call.sessions:
        receiver = hub.receivers.get(name)
        if receiver is not None:
            chosen[name] = receiver
    for name in call.groups:
        group = hub.group(name)
        if group is not None:
            chosen.update(group.members)
    return chosen


def spared(members: dict[str, Receiver], without: frozenset[str]) -> list[Receiver]:
    """All but those that the call excludes."""
    return [receiver for name, receiver in members.items() if name not in without]


def concerned(chain: Chain, call: Call, sequence: int) -> dict[str, Receiver]:
    """Who was in the audience when ``sequence`` was written, of those still connected here."""
    if chain.kind != "many":
        return _members_at(chain, sequence)
    chosen = {
        name: receiver
        for name in call.sessions
        if (receiver := chain.hub.receivers.get(name)) is not None and receiver.since < sequence
    }
    for name in call.groups:
        group = chain.hub.group(name)
        if group is not None:
            chosen.update(_members_at(group, sequence))
    return chosen


def _members_at(chain: Chain, sequence: int) -> dict[str, Receiver]:
    chosen = {}
    for name, receiver in chain.members.items():
        joined = receiver.groups.get(chain.name, sequence) if chain.kind == "group" else 0
        if max(joined, receiver.since) < sequence:
            chosen[name] = receiver
    for receiver, joined, left in chain.leavers or ():
        if receiver.live and max(joined, receiver.since) < sequence < left:
            chosen[receiver.session] = receiver
    return chosen
