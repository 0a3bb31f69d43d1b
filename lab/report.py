"""Results for people and for programs: one table with the bars beside the figures, or JSON.

Owns the bars (the promises of the README about speed) and how a result is shown against them. It measures nothing.
"""

import msgspec
from rich.console import Console
from rich.table import Table

from lab.connect import Connect
from lab.fanout import Fanout
from lab.idle import Waking
from lab.latency import Latency
from lab.proc import Machine
from lab.resume import Resume

KIB_PER_SESSION_MAX = 25.0
OPENS_PER_S_MIN = 1_500.0
CPU_US_PER_DELIVERY_MAX = 10.0
RELAXED_P50_MS_MAX = 0.5
RELAXED_P99_MS_MAX = 2.0
ALWAYS_P99_MS_MAX = 10.0
RESUMED_S_MAX = 10.0
BARRED_RATE = 1_000
"""The rate at which the bars of latency hold."""

OTHERS_CORES_MAX = 0.3
STOLEN_CORES_MAX = 0.02
"""Above one of these a report says that it was disturbed. A host steals by the millisecond, and so makes a p99."""


class Report(msgspec.Struct):
    """All that one run of the bench found out."""

    machine: Machine
    data: str
    connect: list[Connect] = msgspec.field(default_factory=list)
    fanout: list[Fanout] = msgspec.field(default_factory=list)
    latency: list[Latency] = msgspec.field(default_factory=list)
    resume: list[Resume] = msgspec.field(default_factory=list)
    waking: Waking | None = None
    """How fast this machine wakes, measured beside the idle installation."""
    others_cores: float = 0.0
    """Cores kept busy by anything else, in the worst of the runs."""
    stolen_cores: float = 0.0
    """Cores that a virtual machine's host kept for itself while they had work, in the worst of the runs."""


class Line(msgspec.Struct, frozen=True):
    """One figure. ``met`` is None where there is no bar, or nothing to hold against it."""

    what: str
    figure: str
    bar: str = ""
    met: bool | None = None


def as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def show(report: Report, console: Console) -> None:
    """The table. Green and red only repeat what the last column says in words."""
    machine = report.machine
    console.print(
        f"[bold]hublog bench[/bold]  {machine.cores} cores ({machine.cpu}), Linux {machine.kernel}, "
        f"Python {machine.python}, log on {machine.data_filesystem}",
        highlight=False,
    )
    if report.waking is not None:
        cores = "kept awake" if report.waking.kept_awake else "asleep when idle"
        console.print(
            f"cores {cores}: a timer wakes a process {report.waking.p50_us:.0f} µs late, "
            f"{report.waking.p99_us:.0f} µs at p99",
            highlight=False,
        )
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name, side in (("", "left"), ("measured", "right"), ("bar", "right"), ("", "left")):
        table.add_column(name, justify="right" if side == "right" else "left")
    for title, lines in sections(report):
        table.add_section()
        table.add_row(f"[bold]{title}[/bold]")
        for line in lines:
            word = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[line.met]
            table.add_row(f"  {line.what}", line.figure, line.bar, word)
    console.print(table)
    if report.others_cores > OTHERS_CORES_MAX:
        console.print(
            f"[yellow]Other work kept {report.others_cores:.1f} cores of this machine busy meanwhile: "
            "the figures say little about the service.[/yellow]",
            highlight=False,
        )
    if report.stolen_cores > STOLEN_CORES_MAX:
        console.print(
            f"[yellow]The host of this virtual machine took {report.stolen_cores:.2f} cores from it meanwhile: "
            "what was slow may have been the host.[/yellow]",
            highlight=False,
        )


def sections(report: Report) -> list[tuple[str, list[Line]]]:
    return [
        *((_connect_title(one), _connect(one)) for one in report.connect),
        *((_fanout_title(one), _fanout(one)) for one in report.fanout),
        *((_latency_title(one), _latency(one)) for one in report.latency),
        *((_resume_title(one), _resume(one)) for one in report.resume),
    ]


def missed(report: Report) -> list[str]:
    """What is below its bar, one line each."""
    return [f"{title}: {line.what}" for title, lines in sections(report) for line in lines if line.met is False]


def _connect_title(one: Connect) -> str:
    return f"connect: {one.sessions:,} sessions on one gateway process"


def _fanout_title(one: Fanout) -> str:
    return f"fan-out: {one.argument_bytes} bytes to {one.sessions:,} sessions, {one.invocations} times"


def _latency_title(one: Latency) -> str:
    beside = f" beside {one.stuck} who never read" if one.stuck else ""
    to = f"{one.receivers} receivers on another gateway{beside}"
    return f"latency: {one.rate:,}/s of {one.argument_bytes} bytes to {to}, fsync {one.sync}"


def _connect(one: Connect) -> list[Line]:
    return [
        _least("opened per second", one.opens_per_s, OPENS_PER_S_MIN, "/s"),
        _most("resident memory each", one.kib_each, KIB_PER_SESSION_MAX, "KiB"),
        Line("gateway CPU to open one", _figure(one.cpu_us_per_open, "µs")),
        _none("failed, or ended early", one.failed + one.ended_early, one.first_failure),
    ]


def _fanout(one: Fanout) -> list[Line]:
    return [
        Line("deliveries per second", _figure(one.deliveries_per_s, "/s")),
        _most("gateway CPU per delivery", one.cpu_us_per_delivery, CPU_US_PER_DELIVERY_MAX, "µs"),
        Line("until the last has it, p50", _figure(one.last_p50_ms, "ms")),
        Line("until the last has it, p99", _figure(one.last_p99_ms, "ms")),
        *_exactly_once(one.lost, one.duplicated, one.out_of_order),
    ]


def _latency(one: Latency) -> list[Line]:
    barred = one.rate == BARRED_RATE
    relaxed, always = barred and one.sync == "relaxed", barred and one.sync == "always"
    p99_bar = RELAXED_P99_MS_MAX if relaxed else ALWAYS_P99_MS_MAX if always else None
    return [
        Line("really sent per second", _figure(one.achieved_per_s, "/s")),
        _most("delivered, p50", one.p50_ms, RELAXED_P50_MS_MAX if relaxed else None, "ms"),
        _most("delivered, p99", one.p99_ms, p99_bar, "ms"),
        Line("delivered, slowest", _figure(one.max_ms, "ms")),
        Line("answered, p50", _figure(one.answered_p50_ms, "ms")),
        Line("answered, p99", _figure(one.answered_p99_ms, "ms")),
        _none("refused", one.refused, one.first_refusal),
        *([Line("cut off for not reading", f"{one.stuck_ended}")] if one.stuck else []),
        *_exactly_once(one.lost, one.duplicated, one.out_of_order),
        *(Line(f"CPU per invocation, {name}", _figure(cpu, "µs")) for name, cpu in one.cpu_us.items()),
    ]


def _resume_title(one: Resume) -> str:
    return f"resume: kill -9 of a gateway with {one.sessions:,} sessions, {one.rate:,} invocations/s, fsync {one.sync}"


def _resume(one: Resume) -> list[Line]:
    return [
        Line("resumed since all reconnect, p50", _figure(one.p50_s, "s")),
        Line("resumed since all reconnect, p99", _figure(one.p99_s, "s")),
        _most("resumed since all reconnect, the last", one.max_s, RESUMED_S_MAX, "s"),
        Line("all have all that was missed", _figure(one.whole_s, "s")),
        Line("gateway CPU per resume", _figure(one.cpu_us_per_resume, "µs")),
        Line("CPU of this bench meanwhile", _figure(one.bench_cpu_s, "s")),
        Line("delivered to those already there, p99 before", _figure(one.locals_p99_before_ms, "ms")),
        Line("delivered to those already there, p99 meanwhile", _figure(one.locals_p99_ms, "ms")),
        Line("delivered to those already there, slowest", _figure(one.locals_max_ms, "ms")),
        Line("… of which this bench was late itself, once", _figure(one.bench_lag_ms, "ms")),
        _none("not resumed", one.failed, one.first_failure),
        *_exactly_once(one.lost, one.duplicated, one.out_of_order),
    ]


def _exactly_once(lost: int, duplicated: int, out_of_order: int) -> list[Line]:
    return [_none("lost", lost), _none("duplicated", duplicated), _none("out of order", out_of_order)]


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "out of sight"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"


def _most(what: str, value: float | None, bar: float | None, unit: str) -> Line:
    if bar is None:
        return Line(what, _figure(value, unit))
    return Line(what, _figure(value, unit), f"≤ {bar:g} {unit}", None if value is None else value <= bar)


def _least(what: str, value: float, bar: float, unit: str) -> Line:
    return Line(what, _figure(value, unit), f"≥ {bar:,.0f} {unit}", value >= bar)


def _none(what: str, count: int, first: str | None = None) -> Line:
    return Line(f"{what} ({first})" if count and first else what, f"{count:,}", "0", count == 0)
