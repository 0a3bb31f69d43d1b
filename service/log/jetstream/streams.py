"""The definitions of the streams, as data; what makes them, and what refuses to go on when they differ.

Owns the names and settings of everything that this service keeps in JetStream. Only :func:`migrate` creates or
changes; every other process calls :func:`verify`. Definitions travel as raw JSON: a client library that does not know
a field would reset it.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from events.envelope import Recorded
from events.errors import LogDrifted, LogMissing, LogUnavailable, Misconfigured
from events.ids import Epoch, epoch, is_epoch
from events.subjects import name_of, stream, token
from service.log.jetstream.answers import Ack
from service.log.jetstream.read import ASK_AGAIN_S, STREAM_MISSING, Reader
from service.log.jetstream.replies import NO_LEADER, ApiError, Replies

LEASES = "KV_hublog_leases"
LEASE_SUBJECT = "$KV.hublog_leases."
VERSION = "1"
MAX_AGE_S = 7 * 24 * 3600
DUPLICATE_WINDOW_S = 120
DUPLICATE_WINDOW_MIN_S = 90  # a write is repeated for PUBLISH_DEADLINE_S, and must meet itself
FOUND_TIMEOUT_S = 20.0
"""Longer than a cluster takes to choose a leader."""
PUT_TIMEOUT_S = 2.0
PUT_AGAIN_S = 0.5
_NS = 1_000_000_000
STORE_TIMEOUT_S = 3.0
STORE_AGAIN_S = 0.1
_NO_STORE = 10049
_NO_CLUSTER, _NO_PEERS = 10074, 10005  # what JetStream says to more replicas than it can keep
_NAME_TAKEN = 10058

# What may change under a living log. Everything else means another log, or a promise taken back.
MENDABLE = {"max_age", "duplicate_window", "num_replicas", "deny_delete", "deny_purge", "metadata.hublog.version"}

Definition = dict[str, Any]


class Shape(msgspec.Struct, frozen=True):
    """What an operator decides about the log."""

    partitions: int = 1
    max_age_s: int = MAX_AGE_S
    duplicate_window_s: int = DUPLICATE_WINDOW_S
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.duplicate_window_s < DUPLICATE_WINDOW_MIN_S:
            raise Misconfigured(
                f"the duplicate window is {self.duplicate_window_s} s, less than {DUPLICATE_WINDOW_MIN_S}"
            )


def partition_definition(shape: Shape, number: int, life: Epoch) -> Definition:
    """Stream ``EV_<number>``."""
    return _definition(
        stream(number),
        f"ev.{number}.>",
        shape.replicas,
        max_age=shape.max_age_s * _NS,
        duplicate_window=shape.duplicate_window_s * _NS,
        deny_purge=True,
        allow_atomic=True,
        republish={"src": f"ev.{number}.>", "dest": f"lv.{number}.>"},
        metadata={"hublog.epoch": life, "hublog.partitions": str(shape.partitions), "hublog.version": VERSION},
    )


def leases_definition(shape: Shape) -> Definition:
    """The bucket of leases: no age, since a lease is judged by who watches it and must survive any outage."""
    return _definition(
        LEASES,
        LEASE_SUBJECT + ">",
        shape.replicas,
        max_msgs_per_subject=1,
        duplicate_window=DUPLICATE_WINDOW_S * _NS,
        allow_rollup_hdrs=True,
        metadata={"hublog.version": VERSION},
    )


def _definition(name: str, subjects: str, replicas: int, **special: object) -> Definition:
    """Every setting that matters, also where it is the server's default: a default that was changed is drift."""
    return {
        "name": name,
        "subjects": [subjects],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "compression": "none",
        "num_replicas": replicas,
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "max_consumers": -1,
        "deny_delete": True,
        "deny_purge": False,
        "allow_direct": True,
        "allow_atomic": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "no_ack": False,
        "sealed": False,
        "mirror": None,
        "sources": None,
        "subject_transform": None,
        "republish": None,
        **special,
    }


def differences(wanted: Definition, found: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Setting → (as defined, as found). The server's own ``_nats.*`` metadata and unknown settings do not count."""
    wrong: dict[str, tuple[Any, Any]] = {}
    for key, value in wanted.items():
        if key == "metadata":
            actual = found.get("metadata") or {}
            wrong |= {f"metadata.{k}": (v, actual.get(k)) for k, v in value.items() if actual.get(k) != v}
        elif (found.get(key) or None) != (value or None):
            wrong[key] = (value, found.get(key))
    return wrong


class _MadeMeanwhile(Exception):
    """Another migration was quicker with a stream, and made it otherwise: of another epoch, if the log is new."""


class _Answer(msgspec.Struct, frozen=True):
    config: dict[str, Any] | None = None
    error: ApiError | None = None


async def _found(replies: Replies, name: str) -> dict[str, Any] | None:
    """Asked again for a while: who starts while a server of a cluster dies asks before there is a leader again."""
    subject, give_up_s = f"$JS.API.STREAM.INFO.{name}", time.monotonic() + FOUND_TIMEOUT_S
    while True:
        raw = await replies.request(subject, b"", timeout_s=FOUND_TIMEOUT_S, again_s=ASK_AGAIN_S)
        answer = msgspec.json.decode(raw, type=_Answer)
        if answer.error is None or answer.error.err_code != NO_LEADER or time.monotonic() > give_up_s:
            break
        await asyncio.sleep(ASK_AGAIN_S)
    if answer.error is not None and answer.error.err_code != STREAM_MISSING:
        raise LogUnavailable(f"JetStream does not tell of {name}: {answer.error.description}")
    return answer.config


async def _put(replies: Replies, verb: str, definition: Definition) -> None:
    payload = msgspec.json.encode({key: value for key, value in definition.items() if value is not None})
    give_up_s = time.monotonic() + STORE_TIMEOUT_S
    while True:
        raw = await replies.request(f"$JS.API.STREAM.{verb}.{definition['name']}", payload)
        answer = msgspec.json.decode(raw, type=_Answer)
        if answer.error is None or answer.error.err_code != _NO_STORE or time.monotonic() > give_up_s:
            break
        # The server removes the files of a deleted stream at its leisure, and they are in the way of a new one.
        await asyncio.sleep(STORE_AGAIN_S)
    if answer.error is not None:
        problem = f"{answer.error.err_code} {answer.error.description}"
        if answer.error.err_code == _NAME_TAKEN:
            raise _MadeMeanwhile(problem)
        if answer.error.err_code == _NO_STORE:
            raise LogUnavailable(f"NATS cannot make a store for {definition['name']} on its disk: {problem}")
        if answer.error.err_code in {_NO_CLUSTER, _NO_PEERS}:
            raise Misconfigured(
                f"NATS cannot keep {definition['num_replicas']} replicas (HUBLOG_NATS_REPLICAS) of "
                f"{definition['name']}: {problem}"
            )
        raise LogDrifted(f"JetStream refuses to {verb.lower()} {definition['name']}: {problem}")


def _epoch_of(configs: Mapping[str, dict[str, Any] | None]) -> Epoch | None:
    """The one epoch that all streams name. Raises: LogDrifted."""
    named = {
        (config.get("metadata") or {}).get("hublog.epoch", "") for config in configs.values() if config is not None
    }
    if not named:
        return None
    if len(named) > 1 or not is_epoch(next(iter(named))):
        raise LogDrifted(f"the streams name the epochs {sorted(named)}; they must share one")
    return Epoch(named.pop())


def _say(name: str, wrong: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(_say_one(name, key, *both) for key, both in sorted(wrong.items()))


_TIMES = frozenset({"max_age", "duplicate_window"})  # in nanoseconds
_TO_CHANGE = ": set it to {found}, or let `hublog migrate` change the stream to {wanted}"
_FROM = {
    "max_age": "HUBLOG_MAX_AGE" + _TO_CHANGE,
    "duplicate_window": "HUBLOG_DUPLICATE_WINDOW" + _TO_CHANGE,
    "num_replicas": "HUBLOG_NATS_REPLICAS: set it to {found}, or let `hublog migrate` move the stream to {wanted}",
    "metadata.hublog.partitions": "HUBLOG_PARTITIONS: set it to {found}; it is fixed for the life of a log",
}
"""Where a setting of a stream comes from, for whoever has to mend one of the two."""


def _say_one(name: str, key: str, wanted: Any, found: Any) -> str:
    if key in _TIMES:
        wanted, found = (f"{time // _NS}s" if isinstance(time, int) else repr(time) for time in (wanted, found))
        said = f"{name}.{key} is {found}, defined {wanted}"
    else:
        said = f"{name}.{key} is {found!r}, defined {wanted!r}"
    if key in _FROM and found is not None and (name != LEASES or key == "num_replicas"):
        said += f" ({_FROM[key].format(found=found, wanted=wanted)})"
    return said


async def migrate(
    replies: Replies, *, partitions: int, max_age_s: int, duplicate_window_s: int, replicas: int, random: bytes
) -> Epoch:
    """Create what is missing, change what may change. ``random`` (3 bytes) names the epoch of a log that is new.

    Several at once make one log: who is later finds what the first has made.

    Raises: LogDrifted (naming every difference that may not change; nothing was changed then), Misconfigured (more
    replicas than NATS can keep), LogUnavailable.
    """
    shape = Shape(partitions, max_age_s, duplicate_window_s, replicas)
    for _ in range(partitions + 1):  # each stream can come from somebody else once
        try:
            return await _migrate(replies, shape, random)
        except _MadeMeanwhile as exc:
            refused = exc
    raise LogDrifted(f"JetStream does not tell of a stream that it says is there: {refused}")


async def _migrate(replies: Replies, shape: Shape, random: bytes) -> Epoch:
    """Raises, beside what :func:`migrate` does: _MadeMeanwhile."""
    partitions = shape.partitions
    configs = {stream(number): await _found(replies, stream(number)) for number in range(partitions)}
    if await _found(replies, stream(partitions)) is not None:
        raise LogDrifted(
            f"there is a stream {stream(partitions)}: the log was made with more than {partitions} partitions"
        )
    life = _epoch_of(configs) or epoch(random)
    definitions = [partition_definition(shape, number, life) for number in range(partitions)] + [
        leases_definition(shape)
    ]
    configs[LEASES] = await _found(replies, LEASES)
    wrong = {d["name"]: differences(d, found) for d in definitions if (found := configs[d["name"]]) is not None}
    fatal = {name: {k: v for k, v in diff.items() if k not in MENDABLE} for name, diff in wrong.items()}
    if any(fatal.values()):
        raise LogDrifted("; ".join(_say(name, diff) for name, diff in fatal.items() if diff))
    for definition in definitions:
        config = configs[definition["name"]]
        if config is None:
            await _put(replies, "CREATE", definition)
        elif wrong[definition["name"]]:
            await _put(replies, "UPDATE", config | definition)
    return life


async def shape_of(replies: Replies) -> Shape:
    """What its operator has decided, as its first stream tells. Raises: LogMissing, LogDrifted, LogUnavailable."""
    found = await _found(replies, stream(0))
    if found is None:
        raise LogMissing(f"missing in JetStream: {stream(0)}")
    partitions = (found.get("metadata") or {}).get("hublog.partitions", "")
    if not partitions.isdecimal():
        raise LogDrifted(f"{stream(0)} does not say how many partitions the log has")
    return Shape(int(partitions), found["max_age"] // _NS, found["duplicate_window"] // _NS, found["num_replicas"])


async def verify(replies: Replies, *, partitions: int, max_age_s: int, duplicate_window_s: int, replicas: int) -> Epoch:
    """What every process but ``migrate`` does at start-up. Raises: LogMissing, LogDrifted (naming every difference)."""
    shape = Shape(partitions, max_age_s, duplicate_window_s, replicas)
    names = [*(stream(number) for number in range(partitions)), LEASES]
    configs = {name: await _found(replies, name) for name in names}
    missing = [name for name, config in configs.items() if config is None]
    if missing:
        raise LogMissing(f"missing in JetStream: {', '.join(missing)}")
    leases = configs.pop(LEASES)
    life = _epoch_of(configs)
    assert life is not None, "no stream is missing"
    configs[LEASES] = leases
    definitions = [partition_definition(shape, number, life) for number in range(partitions)] + [
        leases_definition(shape)
    ]
    wrong = [_say(d["name"], diff) for d in definitions if (diff := differences(d, configs[d["name"]] or {}))]
    if wrong:
        raise LogDrifted("; ".join(wrong))
    return life


class Leases:
    """The bucket of leases: the last value under each key, with the broker's time of it."""

    def __init__(self, replies: Replies, reader: Reader) -> None:
        self._replies = replies
        self._reader = reader

    async def put(self, key: str, value: bytes) -> int:
        """Write a key; returns its revision. Raises: LogUnavailable.

        Sent again until it is answered: a value written twice is the same value, and a lease cannot wait long.
        """
        subject = LEASE_SUBJECT + token(key)
        raw = await self._replies.request(subject, value, timeout_s=PUT_TIMEOUT_S, again_s=PUT_AGAIN_S)
        ack = msgspec.json.decode(raw, type=Ack)
        if ack.error is not None or ack.seq == 0:
            raise LogUnavailable(f"the lease was not written: {ack.error}")
        return ack.seq

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """A key's value and the broker's time of it in microseconds, as the leader knows them."""
        found = await self._reader.get(LEASES, {"last_by_subj": LEASE_SUBJECT + token(key)})
        return None if found is None else (found.payload, found.stored_at_us)

    async def all(self) -> dict[str, tuple[bytes, int]]:
        """Every key. Answered by any replica, and so possibly late by a moment."""
        found: list[Recorded] = await self._reader.last_matching(LEASES, LEASE_SUBJECT + ">")
        return {name_of(r.subject.removeprefix(LEASE_SUBJECT)): (r.payload, r.stored_at_us) for r in found}
