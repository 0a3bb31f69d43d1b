"""``hublog tail``: the log on a terminal.

Owns the choice of events and the line that each becomes. It reads by the cursor that projections use and refuses to
interpret: what an event means is said by ``events``.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import merge
from operator import itemgetter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from events import codec, invocation, node, session, subjects
from events.envelope import Envelope, Recorded
from events.errors import EpochMismatch, HublogError, InvalidPosition, Misconfigured
from events.ids import Position, parse_hub, parse_position
from service.log.jetstream import JetStreamLog, log_as_it_is
from service.settings import Settings
from service.spelling import Secret
from service.up.board import read_processes, shown

LOOK_BACK_MAX = 100_000  # events of a partition, some seconds of reading: so far back is searched for what is wanted
TEXT_CHARS_MAX = 120
SILENT_S = 1.0  # a connection that takes longer is spoken of
ZERO_WIDTH_JOINER = "\u200d"  # holds emoji together, and is not printable to Python
Render = Callable[[int, Recorded], Text | str | None]

COLOURS = {"session": "cyan", "invocation": "green", "node": "magenta", "room": "blue"}


class Filter(msgspec.Struct, frozen=True):
    """What to show; None is everything."""

    hub: str | None = None
    type: str | None = None
    session: str | None = None
    group: str | None = None

    def wants(self, subject: subjects.Subject, envelope: Envelope, event: codec.Event | None) -> bool:
        return (
            (self.hub is None or subject.hub == self.hub)
            and (self.type is None or f"{envelope.type}.".startswith(f"{self.type}."))
            and (self.session is None or _concerns_session(subject, envelope, event, self.session))
            and (self.group is None or _concerns_group(subject, event, self.group))
        )


def _concerns_session(subject: subjects.Subject, envelope: Envelope, event: codec.Event | None, wanted: str) -> bool:
    named = subject.kind in {"session", "inbox"} and subject.name == wanted
    called = isinstance(event, invocation.Requested) and (event.caller == wanted or wanted in event.sessions)
    return named or called or envelope.actor == f"session:{wanted}"


def _concerns_group(subject: subjects.Subject, event: codec.Event | None, wanted: str) -> bool:
    named = subject.kind == "group" and subject.name == wanted
    member = isinstance(event, session.Joined | session.Left | session.Closed) and wanted in event.groups
    called = isinstance(event, invocation.Requested) and wanted in event.groups
    return named or member or called


async def follow(
    chosen: Filter,
    *,
    after: str | None,
    lines: int,
    once: bool,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Print until interrupted, or with ``once`` until the log's end as it is now.

    Raises: InvalidName, InvalidPosition, EpochMismatch, Misconfigured, LogUnavailable, LogMissing, LogDrifted.
    """
    if chosen.hub is not None:
        parse_hub(chosen.hub)
    settings = _settings(data_dir)
    console = Console(soft_wrap=True, highlight=False)
    async with _connected(settings) as log:
        starts = await _starts(log, after, lines if chosen == Filter() else max(lines, LOOK_BACK_MAX))
        ends = {number: await log.last_sequence(number) for number in starts}

        def render(number: int, recorded: Recorded) -> Text | str | None:
            return _render(log, number, recorded, chosen, _json_line if as_json else _line)

        async def show(number: int) -> None:
            """One partition in its order; several are shown as they come."""
            if once and starts[number] >= ends[number]:
                return
            async for batch in log.follow(number, starts[number]):
                for recorded in batch:
                    if once and recorded.sequence > ends[number]:
                        return
                    line = render(number, recorded)
                    if line is not None:
                        console.print(line, markup=False)
                if once and batch and batch[-1].sequence >= ends[number]:
                    return

        if after is None:
            past = await asyncio.gather(
                *(_past(log, number, starts[number], ends[number], lines, render) for number in starts)
            )
            # Each partition in its order, all of them by the broker's time: the newest of the log, not of each.
            for _, line in deque(merge(*past, key=itemgetter(0)), maxlen=lines):
                console.print(line, markup=False)
            starts = ends
        async with asyncio.TaskGroup() as partitions:
            for number in starts:
                partitions.create_task(show(number))


async def _past(
    log: JetStreamLog, number: int, after: int, end: int, lines: int, render: Render
) -> deque[tuple[int, Text | str]]:
    """Of what was there before, the newest of one partition that are wanted, each with the broker's time."""
    found: deque[tuple[int, Text | str]] = deque(maxlen=lines)
    async for recorded in log.read(f"ev.{number}.>", after + 1, end):
        line = render(number, recorded)
        if line is not None:
            found.append((recorded.stored_at_us, line))
    return found


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[JetStreamLog]:
    """The log, however it was made; while it is long in coming, a person is told what is waited for."""
    assert settings.nats_url is not None
    url = settings.nats_url.reveal()
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    waited_for = f"connecting to NATS at {shown(url)}"
    speaking = asyncio.get_running_loop().call_later(SILENT_S, lambda: told.print(waited_for, markup=False))
    try:
        log = await log_as_it_is(url, name="hublog tail")
    finally:
        speaking.cancel()
    try:
        yield log
    finally:
        await log.close()


def _settings(data_dir: Path | None) -> Settings:
    """Those of the environment; without a NATS in it, that of the ``hublog up`` on the data directory."""
    settings = Settings.from_environment("tail")
    if settings.nats_url is not None and data_dir is None:
        return settings
    folder = data_dir or settings.data_dir
    try:
        found = next(entry.url for entry in read_processes(folder / "processes.json") if entry.role == "nats")
    except (OSError, msgspec.DecodeError, StopIteration) as exc:
        raise Misconfigured(
            f"no hublog runs on {folder.absolute()}: start `hublog up`, name its --data-dir, or set HUBLOG_NATS_URL"
        ) from exc
    assert found is not None
    return msgspec.structs.replace(settings, nats_url=Secret(found))


async def _starts(log: JetStreamLog, after: str | None, lines: int) -> dict[int, int]:
    """Partition → sequence to start behind. A position is of one partition; the others start at their end."""
    start: Position | None = None
    if after is not None:
        start = parse_position(after)
        if start.epoch != log.epoch:
            raise EpochMismatch(f"the log is at epoch {log.epoch}, not {start.epoch}")
        if start.partition >= log.partitions:
            raise InvalidPosition(f"{after} is of partition {start.partition}; the log has {log.partitions}")
    starts = {}
    for number in range(log.partitions):
        last = await log.last_sequence(number)
        if start is not None and start.partition == number and start.sequence > last:
            raise InvalidPosition(f"{after} is ahead of the log, which ends at {Position(log.epoch, number, last)}")
        if start is None:
            starts[number] = max(await log.first_sequence(number) - 1, last - lines)
        else:
            starts[number] = start.sequence if number == start.partition else last
    return starts


Show = Callable[[Position, subjects.Subject, Recorded, Envelope, codec.Event | None], Text | str]


def _render(log: JetStreamLog, number: int, recorded: Recorded, chosen: Filter, show: Show) -> Text | str | None:
    """The line of one event, None where it is not wanted. What cannot be read is shown as such, never hidden."""
    position = Position(log.epoch, number, recorded.sequence)
    subject = subjects.parse(recorded.subject)
    try:
        envelope = codec.envelope(recorded.payload)
    except HublogError as exc:
        return Text(_plain(f"{position}  {recorded.subject}  {exc.wire()}"), style="red")
    try:
        event: codec.Event | None = codec.event_of(envelope)
    except HublogError:
        event = None
    return show(position, subject, recorded, envelope, event) if chosen.wants(subject, envelope, event) else None


def _json_line(
    position: Position, _subject: subjects.Subject, recorded: Recorded, envelope: Envelope, _event: codec.Event | None
) -> str:
    shown = {**msgspec.structs.asdict(envelope), "position": str(position), "subject": recorded.subject}
    return msgspec.json.encode(shown).decode()


def _line(
    position: Position, subject: subjects.Subject, _recorded: Recorded, envelope: Envelope, event: codec.Event | None
) -> Text:
    name = envelope.type.rpartition(".v")[0] or envelope.type
    colour = COLOURS.get(name.partition(".")[0], "white")
    line = Text()
    line.append(f"{position!s:<14} ", style="dim")
    line.append(f"{envelope.at[11:23]} ", style="dim")
    line.append(f"{subject.hub:<12} ", style="bold")
    line.append(f"{name:<20} ", style=colour)
    line.append(_plain(_short(_where(subject))), style="yellow")
    line.append("  " + _plain(_what(event)))
    line.append(_plain(f"  by {envelope.actor}"), style="dim")
    return line


def _where(subject: subjects.Subject) -> str:
    return subject.kind if subject.name is None else f"{subject.kind} {subject.name}"


def _what(event: codec.Event | None) -> str:
    """What happened, in a few words."""
    match event:
        case session.Opened():
            return f"user {event.user or 'none'} on {event.node}"
        case session.Attached():
            return f"on {event.node}, generation {event.generation}"
        case session.Detached() | session.Closed():
            return event.reason
        case session.Joined() | session.Left():
            return _short(", ".join(event.groups))
        case invocation.Requested():
            arguments = bytes(event.arguments).decode("utf-8", "replace")
            return _short(f"{event.target}({arguments[1:-1]})")
        case invocation.Answered() | invocation.Cancelled() | invocation.Expired():
            return str(event.invocation)
        case node.Started() | node.Draining() | node.Lost() | node.Delivered() | node.Canary():
            return f"incarnation {event.incarnation}"
        case _:
            return ""


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


def _plain(text: str) -> str:
    """Names and arguments are anybody's: a line break would forge a line, and an escape would command the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == ZERO_WIDTH_JOINER else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
