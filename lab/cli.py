"""``hublog bench``: the command line of the measurements.

Owns options and what is printed. Progress goes to standard error, so that ``--json`` may be piped.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lab import bench, report
from lab.client import CallFailed, NotOpened
from lab.idle import StaysAsleep
from lab.install import NotStarted
from lab.options import processes as processes_file
from lab.proc import Gone, NotEnoughFiles

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure an installation: one started for the purpose, or a running one (--url, --processes; its access "
    "token, where it asks for one, in HUBLOG_TOKEN).",
)

Url = Annotated[list[str], typer.Option(help="A running gateway, e.g. http://127.0.0.1:8000; repeat for a second one.")]
Processes = Annotated[
    Path | None,
    typer.Option(callback=processes_file, help="The processes.json of a running installation, for its figures."),
]
Data = Annotated[
    Path | None, typer.Option(help="Where to put the temporary data (default: the system's; its disk counts).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any bar is missed.")]
Awake = Annotated[
    bool, typer.Option("--awake", help="Keep idle cores from sleeping (root): what waking them costs is left out.")
]
Sessions = Annotated[int, typer.Option(min=1, max=60_000, help="Sessions to open on one gateway.")]
Rounds = Annotated[int, typer.Option(min=5, max=100_000, help="Invocations to fan out.")]
Rates = Annotated[list[int], typer.Option("--rate", min=1, max=100_000, help="Invocations per second; repeatable.")]
Seconds = Annotated[float, typer.Option(min=0.5, max=600, help="How long to send at each rate.")]
Receivers = Annotated[int, typer.Option(min=1, max=10_000, help="Sessions in the group on the other gateway.")]
Size = Annotated[int, typer.Option("--bytes", min=60, max=30_000, help="Size of the arguments of an invocation.")]
Sync = Annotated[str, typer.Option(help="When NATS syncs to disk: relaxed, always or both.")]

TOKEN = os.environ.get("HUBLOG_TOKEN")
"""Not an option: everybody on a machine can read the arguments of its processes."""
SYNCS = {"relaxed": ("relaxed",), "always": ("always",), "both": ("relaxed", "always")}
RATES = [1_000, 2_000, 5_000]


@app.command()
def connect(
    *,
    sessions: Sessions = 10_000,
    url: Url = [],  # noqa: B006 - typer copies it
    processes: Processes = None,
    data_dir: Data = None,
    as_json: Json = False,
    awake: Awake = False,
    strict: Strict = False,
) -> None:
    """Open many sessions on one gateway: how fast, and what each weighs."""
    options = bench.Options(
        ("connect",),
        sessions=sessions,
        urls=tuple(url),
        processes=processes,
        data_parent=data_dir,
        token=TOKEN,
        awake=awake,
    )
    _run(options, as_json, strict)


@app.command()
def fanout(
    *,
    sessions: Sessions = 5_000,
    rounds: Rounds = 60,
    size: Size = 300,
    url: Url = [],  # noqa: B006
    processes: Processes = None,
    data_dir: Data = None,
    as_json: Json = False,
    awake: Awake = False,
    strict: Strict = False,
) -> None:
    """Invoke all sessions of a gateway again and again: CPU per delivery, and each exactly once."""
    options = bench.Options(
        ("fanout",),
        fanout_sessions=sessions,
        rounds=rounds,
        argument_bytes=size,
        urls=tuple(url),
        processes=processes,
        data_parent=data_dir,
        token=TOKEN,
        awake=awake,
    )
    _run(options, as_json, strict)


@app.command()
def latency(
    *,
    rate: Rates = RATES,
    seconds: Seconds = 10.0,
    receivers: Receivers = 10,
    stuck: Annotated[int, typer.Option(min=0, max=1_000, help="More of the group, who never read.")] = 0,
    size: Size = 300,
    sync: Sync = "both",
    url: Url = [],  # noqa: B006
    processes: Processes = None,
    data_dir: Data = None,
    as_json: Json = False,
    awake: Awake = False,
    strict: Strict = False,
) -> None:
    """Send from one gateway to a group on another at a steady rate: p50, p99, lost, duplicated, order."""
    if sync not in SYNCS:
        raise typer.BadParameter(f"{sync!r} is none of relaxed, always, both", param_hint="--sync")
    options = bench.Options(
        ("latency",),
        rates=tuple(rate),
        seconds=seconds,
        receivers=receivers,
        stuck=stuck,
        argument_bytes=size,
        syncs=SYNCS[sync],
        urls=tuple(url),
        processes=processes,
        data_parent=data_dir,
        token=TOKEN,
        awake=awake,
    )
    _run(options, as_json, strict)


@app.command()
def resume(
    *,
    sessions: Sessions = 5_000,
    rate: Annotated[int, typer.Option(min=1, max=10_000, help="Invocations per second meanwhile.")] = 100,
    size: Size = 300,
    data_dir: Data = None,
    as_json: Json = False,
    awake: Awake = False,
    strict: Strict = False,
) -> None:
    """Kill -9 of a gateway under traffic: how fast all of its sessions resume on the other, and with what loss."""
    options = bench.Options(
        ("resume",),
        resumed_sessions=sessions,
        resume_rate=rate,
        argument_bytes=size,
        data_parent=data_dir,
        token=TOKEN,
        awake=awake,
    )
    _run(options, as_json, strict)


@app.command(name="all")
def everything(
    *,
    url: Url = [],  # noqa: B006
    processes: Processes = None,
    data_dir: Data = None,
    as_json: Json = False,
    awake: Awake = False,
    strict: Strict = False,
) -> None:
    """All of them, with their defaults; about four minutes."""
    _run(
        bench.Options(urls=tuple(url), processes=processes, data_parent=data_dir, token=TOKEN, awake=awake),
        as_json,
        strict,
    )


def _run(options: bench.Options, as_json: bool, strict: bool) -> None:
    errors = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Refreshed only a little: drawing takes time from the load on a small machine.
    with Progress(
        *columns, console=errors, transient=True, refresh_per_second=4, disable=not errors.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        try:
            found = bench.run(options, progress)
        except (
            bench.Unsuitable,
            NotEnoughFiles,
            StaysAsleep,
            NotStarted,
            NotOpened,
            CallFailed,
            Gone,
            RuntimeError,
        ) as exc:
            bar.stop()
            errors.print(f"bench: {exc}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from exc
    if as_json:
        print(report.as_json(found))
    else:
        report.show(found, Console())
    if strict and report.missed(found):
        raise typer.Exit(1)
