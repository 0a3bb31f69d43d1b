"""``hublog chaos``: the command line of the fault harness.

Owns options and what is printed. Progress goes to standard error, so that ``--json`` may be piped. Exit status: 0 all
well, 1 a violation, 2 it could not run.
"""

import os
import random
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lab.chaos import report, run
from lab.chaos.faults import KINDS
from lab.chaos.reader import NotRead
from lab.chaos.verdict import Verdict
from lab.install import NotStarted
from lab.options import processes as processes_file
from lab.proc import NotEnoughFiles

app = typer.Typer(
    add_completion=False,
    help="Break an installation while it works, and check that nobody lost anything: one started for the purpose, or a "
    "running one (--url, --api; its access token, where it asks for one, in HUBLOG_TOKEN: for every hub, and with both "
    "scopes).",
)

Seed = Annotated[int | None, typer.Option(help="Makes the schedule and all choices repeatable.", show_default="random")]
Seconds = Annotated[float, typer.Option(min=1, max=3600, help="How long to break things.")]
Sessions = Annotated[int, typer.Option(min=3, max=2_000, help="Clients, each with a session.")]
Gateways = Annotated[int, typer.Option(min=1, max=16, help="Of the installation that is started.")]
NatsNodes = Annotated[
    int, typer.Option(help="NATS servers of the installation that is started: 1, or a cluster of 3 or 5.")
]
Rate = Annotated[float, typer.Option(min=0.5, max=5_000, help="Actions per second, of all clients together.")]
Faults = Annotated[
    str,
    typer.Option(
        # Not in brackets: those would be taken for markup, and not be shown.
        help=f"Which, joined by commas; `kind*3` is three in a round. Of: {', '.join(KINDS)}.",
        show_default="all possible",
    ),
]
Sync = Annotated[str, typer.Option(help="When NATS syncs to disk: relaxed or always.")]
Folder = Annotated[
    Path | None,
    typer.Option("--history", help="Where the evidence goes.", show_default="a new folder in the temporary one"),
]
Url = Annotated[list[str], typer.Option(help="A running gateway, e.g. http://127.0.0.1:8000; repeat for more.")]
Api = Annotated[str | None, typer.Option(help="The query API of the running installation.")]
Processes = Annotated[
    Path | None,
    typer.Option(
        callback=processes_file, help="processes.json of the running installation: its processes may be killed then."
    ),
]
Data = Annotated[Path | None, typer.Option(help="Where to put the temporary data of what is started.")]
Json = Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")]

FAILURES = (run.Unsuitable, NotStarted, NotRead, NotEnoughFiles, RuntimeError, OSError)


@app.callback(invoke_without_command=True)
def chaos(
    context: typer.Context,
    *,
    seed: Seed = None,
    seconds: Seconds = 30.0,
    sessions: Sessions = 60,
    gateways: Gateways = 2,
    nats_nodes: NatsNodes = 1,
    rate: Rate = 40.0,
    faults: Faults = "",
    sync: Sync = "relaxed",
    history: Folder = None,
    url: Url = [],  # noqa: B006 - typer copies it
    api: Api = None,
    processes: Processes = None,
    data_dir: Data = None,
    as_json: Json = False,
) -> None:
    """Break an installation while it works, and check that nobody lost anything."""
    if context.invoked_subcommand is not None:
        return
    kinds = kinds_named(faults)
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: none of {', '.join(KINDS)}", param_hint="--faults")
    if nats_nodes not in {1, 3, 5}:
        raise typer.BadParameter("1, 3 or 5", param_hint="--nats-nodes")
    if sync not in {"relaxed", "always"}:
        raise typer.BadParameter(f"{sync!r} is neither relaxed nor always", param_hint="--sync")
    if history is not None and history.exists() and any(history.iterdir()):
        raise typer.BadParameter(
            f"{history} holds something: two runs in one history prove nothing", param_hint="--history"
        )
    options = run.Options(
        seed=random.randrange(1_000_000) if seed is None else seed,
        folder=history or Path(tempfile.mkdtemp(prefix="hublog-chaos-")),
        seconds=seconds,
        sessions=sessions,
        gateways=gateways,
        nats_nodes=nats_nodes,
        rate=rate,
        faults=kinds,
        sync=sync,
        urls=tuple(url),
        api=api,
        processes=processes,
        data_parent=data_dir,
        token=os.environ.get("HUBLOG_TOKEN") if url or processes else None,
        command=f"hublog chaos {shlex.join(sys.argv[2:])}",
    )
    _show(options.folder, _run(options, made=history is None), as_json)


def kinds_named(faults: str) -> tuple[str, ...]:
    """``a,b*3`` is a, b, b, b."""
    kinds: list[str] = []
    for part in (part.strip() for part in faults.split(",")):
        kind, star, times = part.partition("*")
        if star and not re.fullmatch("[1-9][0-9]?", times):
            raise typer.BadParameter(f"{part!r}: how often is a number from 1 to 99", param_hint="--faults")
        if part:
            kinds += [kind] * int(times or 1)
    return tuple(kinds)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="What --history left.", exists=True, file_okay=False)],
    *,
    as_json: Json = False,
) -> None:
    """Judge the evidence of an earlier run again, without running anything."""
    if not (folder / "history.jsonl").is_file():
        raise typer.BadParameter(f"{folder} has no history.jsonl, which a run leaves", param_hint="folder")
    try:
        verdict = run.judge(folder)
    except (OSError, msgspec.DecodeError) as exc:
        Console(stderr=True).print(f"chaos: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from exc
    _show(folder, verdict, as_json)


def _run(options: run.Options, *, made: bool) -> Verdict:
    """``made``: the folder is ours, and goes again where nothing was written into it."""
    errors = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(
        *columns, console=errors, transient=True, refresh_per_second=4, disable=not errors.is_terminal
    ) as bar:
        task = bar.add_task("", total=options.seconds, seed=options.seed)

        def progress(seconds: float, what: str) -> None:
            bar.update(task, completed=min(seconds, options.seconds), description=what or "all is well")

        try:
            return run.run(options, progress)
        except FAILURES as exc:
            bar.stop()
            errors.print(f"chaos: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
            if any(file.stat().st_size for file in options.folder.rglob("*") if file.is_file()):
                left = f"What there is of the history is in {options.folder}"
                errors.print(left, markup=False, highlight=False, soft_wrap=True)
            elif made:
                shutil.rmtree(options.folder)
            raise typer.Exit(2) from exc


def _show(folder: Path, verdict: Verdict, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(verdict), indent=2).decode())
    else:
        report.show(folder, verdict, Console())
    if verdict.violations:
        raise typer.Exit(1)
