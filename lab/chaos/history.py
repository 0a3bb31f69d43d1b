"""What happened, line by line: an append-only file of JSON lines, written while it happens.

Owns the shape of the records and the file. A record is known by its line, from 1. It judges nothing.
"""

import time
from pathlib import Path
from typing import IO, Literal, TypeAlias

import msgspec

FLUSH_LINES = 500


class _Record(
    msgspec.Struct, tag_field="what", tag=str.lower, rename="camel", omit_defaults=True, kw_only=True, frozen=True
):
    """``t``: seconds since the run began."""

    t: float = 0.0


class Began(_Record, frozen=True):
    """``at``: UTC. ``own``: the installation was started for this run."""

    seed: int
    hub: str
    command: str
    at: str
    own: bool = True
    options: dict[str, object] = {}


class Dialled(_Record, frozen=True):
    """A client connects. ``connection`` is the service's name for it; ``session`` what it resumes, from ``cursor``."""

    conn: int
    connection: str
    client: int
    gateway: int
    resumable: bool
    user: str | None = None
    session: str | None = None
    cursor: str | None = None


class Resume(_Record, frozen=True):
    """``hub.resume`` is called on a fresh connection: it takes ``session`` over."""

    conn: int
    session: str
    cursor: str


class Greeted(_Record, frozen=True):
    """The service said which session this connection serves (``hub.session`` or ``hub.resume``)."""

    conn: int
    session: str
    cursor: str
    resumed: bool = False
    resync: str | None = None
    code: str | None = None
    groups: list[str] = []


class Goodbye(_Record, frozen=True):
    """The client sends a Close: it will not come back."""

    conn: int


class Ended(_Record, frozen=True):
    """The connection is over for its client."""

    conn: int
    why: str


class Invoke(_Record, frozen=True):
    """``hub.invoke``: ``message`` is the one argument, unique; a retry has the same message and idempotency key."""

    call: int
    conn: int
    message: int
    selector: msgspec.Raw
    retry: bool = False


class Command(_Record, frozen=True):
    """``hub.join``, ``hub.leave`` or ``hub.leaveAll``; or a ``kick`` of ``session`` over the API."""

    call: int
    do: Literal["join", "leave", "leaveAll", "kick"]
    conn: int = 0
    groups: list[str] = []
    session: str | None = None


class Ok(_Record, frozen=True):
    """The call is answered; ``groups`` and ``outcome`` where the answer has them."""

    call: int
    position: str | None = None
    outcome: str | None = None
    groups: list[str] | None = None


class Fail(_Record, frozen=True):
    """The call is refused: it did not happen."""

    call: int
    error: str


class Unknown(_Record, frozen=True):
    """Nobody will say whether the call happened."""

    call: int
    why: str


class Delivered(_Record, frozen=True):
    """``message`` reached the client; with its position, where the connection asked for positions."""

    conn: int
    message: int
    position: str | None = None


class Fault(_Record, frozen=True):
    """``fault`` numbers it; ``gateway`` where one gateway is meant."""

    fault: int
    kind: str
    phase: Literal["begin", "end"]
    detail: str = ""
    gateway: int | None = None


class Marker(_Record, frozen=True):
    """The last message, to all, when everything was well again: who has it has everything before it."""

    message: int


class Settled(_Record, frozen=True):
    """This connection was alive at the end."""

    conn: int
    session: str


class Stranded(_Record, frozen=True):
    """A client that found no way back after the last fault was healed."""

    client: int
    why: str


Record: TypeAlias = (
    Began
    | Dialled
    | Resume
    | Greeted
    | Goodbye
    | Ended
    | Invoke
    | Command
    | Ok
    | Fail
    | Unknown
    | Delivered
    | Fault
    | Marker
    | Settled
    | Stranded
)


class LogEvent(msgspec.Struct, frozen=True, rename="camel"):
    """One event as ``GET /v1/hubs/{hub}/events`` shows it."""

    id: str
    type: str
    at: str
    actor: str
    position: str
    subject: str
    data: msgspec.Raw


class ReadPage(msgspec.Struct, frozen=True):
    """One page of a list: all ``items`` between ``after`` and ``next`` as of ``position``. ``group``: of members."""

    kind: Literal["sessions", "groups", "members", "invocations"]
    position: str
    items: list[dict[str, object]]
    after: str | None = None
    next: str | None = None
    group: str | None = None


_line: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_event: msgspec.json.Decoder[LogEvent] = msgspec.json.Decoder(LogEvent)
_page: msgspec.json.Decoder[ReadPage] = msgspec.json.Decoder(ReadPage)
_encode = msgspec.json.Encoder().encode


class History:
    """Appends records to ``history.jsonl`` of a folder, and counts them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = (folder / "history.jsonl").open("wb")
        self._began = time.perf_counter()
        self.lines = 0
        self.latest: str | None = None  # the position that was acknowledged last

    @property
    def now(self) -> float:
        return round(time.perf_counter() - self._began, 4)

    def add(self, record: Record) -> None:
        """A record made with ``t=history.now``. After the end nothing counts: connections still die then."""
        if self._file.closed:
            return
        self._file.write(_encode(record) + b"\n")
        self.lines += 1
        if isinstance(record, Ok) and record.position is not None:
            self.latest = record.position
        if self.lines % FLUSH_LINES == 0:
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class Evidence(msgspec.Struct):
    """All that a check is given. Line *n* of the history is ``history[n - 1]``."""

    history: list[Record]
    log: list[LogEvent]
    pages: list[ReadPage]


def read_evidence(folder: Path) -> Evidence:
    """Raises: FileNotFoundError, msgspec.DecodeError."""
    return Evidence(
        _line.decode_lines((folder / "history.jsonl").read_bytes()),
        _event.decode_lines((folder / "log.jsonl").read_bytes()),
        _page.decode_lines((folder / "reads.jsonl").read_bytes()),
    )


def write_log(folder: Path, log: list[LogEvent], pages: list[ReadPage]) -> None:
    (folder / "log.jsonl").write_bytes(b"".join(_encode(event) + b"\n" for event in log))
    (folder / "reads.jsonl").write_bytes(b"".join(_encode(page) + b"\n" for page in pages))
