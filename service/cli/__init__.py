"""The command line: one function per command, thin. What a command needs is imported when it runs, never before.

Owns the words of ``--help``. It refuses to do anything itself: roots live in ``service.process``.
"""

import importlib
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from service import VERSION

app = typer.Typer(
    name="hublog",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # "rich" takes [words in brackets] for marks, and drops them
    help=(
        "Sessions, groups and calls for any SignalR client, with every event on a log that proves it.\n\n"
        "Start with `hublog up`: it brings its own NATS and Postgres. Settings are HUBLOG_* variables; "
        "`hublog settings` lists them."
    ),
)

ONE_MACHINE = "On one machine"
PROCESSES = "Processes (what `up` starts, and a cluster runs)"
TOOLS = "Looking and keeping"
LINES_MAX = 1_000_000_000  # of `hublog tail`: beyond anybody's wish, and within what a deque can be bounded by


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    import uvloop

    return uvloop.run(main)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hublog {VERSION}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the release and exit.")
    ] = False,
) -> None:
    """Options of no command: ``--version`` has been answered by its own callback."""


@app.command(rich_help_panel=ONE_MACHINE)
def up(
    gateways: Annotated[int, typer.Option("--gateways", "-g", min=1, max=64, help="How many gateway processes.")] = 2,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where servers keep data, logs and secrets. [HUBLOG_DATA_DIR, .hublog]")
    ] = None,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="Leave a process that died dead, and say so.")
    ] = False,
) -> None:
    """Serve everything from this machine until Ctrl-C.

    Starts a real nats-server and a real Postgres, migrates, then runs gateways, projector and api as child processes,
    and prints what runs where. A second start on the same data directory continues where the first was.
    HUBLOG_NATS_URL or HUBLOG_POSTGRES_DSN, where set, are used instead of servers of its own.
    """
    import msgspec
    from rich.console import Console

    from service.process.up import run
    from service.settings import Settings

    settings = Settings.from_environment("up")
    if data_dir is not None:
        settings = msgspec.structs.replace(settings, data_dir=data_dir)
    _run(run(settings, gateways=gateways, restart=not no_restart, console=Console()))


@app.command(rich_help_panel=PROCESSES)
def gateway(
    index: Annotated[int, typer.Option(min=0, max=99, help="Added to both ports, and part of the node's name.")] = 0,
) -> None:
    """Serve SignalR clients: WebSockets in, events out, deliveries back."""
    from service.process.gateway import run
    from service.settings import Settings

    _run(run(Settings.from_environment("gateway"), index))


@app.command(rich_help_panel=PROCESSES)
def projector() -> None:
    """Turn the log into read models in Postgres."""
    from service.process.projector import run
    from service.settings import Settings

    _run(run(Settings.from_environment("projector")))


@app.command(rich_help_panel=PROCESSES)
def api() -> None:
    """Answer questions from the read models, and take commands over HTTP. The routes are at /schema."""
    from service.process.api import run
    from service.settings import Settings

    _run(run(Settings.from_environment("api")))


@app.command(rich_help_panel=TOOLS)
def migrate() -> None:
    """Make or upgrade the streams in NATS and the tables in Postgres. Safe to repeat."""
    from service.process.migrate import run
    from service.settings import Settings
    from service.telemetry import configure_logging

    settings = Settings.from_environment("migrate")
    configure_logging("warning", process="migrate")
    revision, epoch = _run(run(settings))
    typer.echo(f"schema at revision {revision}, log at epoch {epoch}")


@app.command(rich_help_panel=TOOLS)
def wait(
    at_most: Annotated[
        float,
        typer.Option(
            "--at-most",
            min=0,
            help="Seconds; then it fails with what is wrong. It looks once in any case, for up to 10 s.",
        ),
    ] = 600,
) -> None:
    """Wait until `hublog migrate` is through: for the log, and for the database where HUBLOG_POSTGRES_DSN is set.

    Changes nothing. A cluster runs it in front of each process, so that these start in any order.
    """
    from service.process.waiting import run
    from service.settings import Settings
    from service.telemetry import configure_logging

    settings = Settings.from_environment("wait")
    configure_logging("info", process="wait")
    _run(run(settings, at_most))


@app.command(rich_help_panel=TOOLS)
def tail(
    hub: Annotated[str | None, typer.Option(help="Only this hub.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Only this type, or all that begin so: session, invocation.requested.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only what concerns this session.")] = None,
    group: Annotated[str | None, typer.Option(help="Only what concerns this group.")] = None,
    after: Annotated[str | None, typer.Option(help="Start behind this position, e.g. k7qd.0-1523.")] = None,
    lines: Annotated[
        int,
        typer.Option(
            "--lines",
            "-n",
            min=0,
            max=LINES_MAX,
            help="Without --after: start with the last so many that fit the filters.",
        ),
    ] = 10,
    once: Annotated[bool, typer.Option("--once", help="Stop at today's end of the log.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API shows events.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Of the `hublog up` to look at. [HUBLOG_DATA_DIR, .hublog]")
    ] = None,
) -> None:
    """Follow the log, readably.

    Looks at the NATS of HUBLOG_NATS_URL, or of the `hublog up` that runs on the data directory.
    """
    from service.cli.tail import Filter, follow
    from service.telemetry import configure_logging

    configure_logging("warning", process="tail")
    chosen = Filter(hub=hub, type=type_, session=session, group=group)
    try:
        _run(follow(chosen, after=after, lines=lines, once=once, as_json=json, data_dir=data_dir))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command(rich_help_panel=TOOLS)
def token(
    user: Annotated[str | None, typer.Option(help="Whose it is, the claim `sub`: needed to connect.")] = None,
    hub: Annotated[list[str], typer.Option(help="A hub that it is good for; repeat for more. [every hub]")] = [],  # noqa: B006
    scope: Annotated[
        list[str], typer.Option(help="What it may at the API: hublog:read, hublog:write; repeat for both. [nothing]")
    ] = [],  # noqa: B006
    ttl: Annotated[str, typer.Option(help="How long it is good for: seconds, or a number with s, m, h or d.")] = "1h",
    meta: Annotated[str | None, typer.Option(help="A JSON object, the session's metadata.")] = None,
) -> None:
    """Mint an access token and print it, under the key and the claims of HUBLOG_JWT_*."""
    from service.cli.token import minted

    typer.echo(minted(user=user, hubs=hub, scopes=scope, ttl=ttl, meta=meta))


def _address(text: str) -> str:
    """A URL to which paths are added."""
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        raise typer.BadParameter(f"{text!r} is not an address such as http://127.0.0.1:8000")
    return text


def _addresses(texts: list[str]) -> list[str]:
    return [_address(text) for text in texts]


@app.command(rich_help_panel=TOOLS)
def probe(
    gateway: Annotated[
        list[str],
        typer.Option(
            callback=_addresses,
            help="Where clients connect, e.g. http://127.0.0.1:8000; given twice, the session resumes on the second.",
        ),
    ],
    api: Annotated[
        str, typer.Option(callback=_address, help="Where the API is, e.g. http://127.0.0.1:8100, without /v1.")
    ],
    hub: Annotated[str, typer.Option(help="The hub to do it in.")] = "probe",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="HUBLOG_TOKEN",
            help="An access token for the hub, with both scopes. [minted where HUBLOG_JWT_KEY can sign]",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for all of it.")] = 30,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Try an install from outside: connect, join, send, resume on a second connection, ask the API, leave.

    Speaks as any client does, so proxies, certificates and network policies on the way are tried too. `helm test` runs
    it. Exits with 1 if anything is not as it should be.
    """
    from service.cli.probe import Probe, line, verdict
    from service.cli.token import own_token

    shown = token or own_token("probe", hub)
    run = Probe(gateway, api, hub, shown, lambda step: None if json else typer.echo(line(step)))
    report = _run(run.run(timeout))
    typer.echo(verdict(report, as_json=json))
    if report.failed is not None:
        raise typer.Exit(1)


@app.command(rich_help_panel=TOOLS)
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the tables of docs/configuration.md.")] = False,
) -> None:
    """List every setting with its default and meaning."""
    from service.cli import configuration

    if markdown:
        typer.echo(configuration.markdown(), nl=False)
        return
    from rich.console import Console

    from service.cli import terminal

    console = Console()
    for table in terminal.settings():
        console.print(table)


@app.command(rich_help_panel=TOOLS)
def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/metrics.md.")] = False,
) -> None:
    """List every metric of every process with its labels and meaning."""
    from service.telemetry.catalogue import markdown_table

    if markdown:
        typer.echo(markdown_table(), nl=False)
        return
    from rich.console import Console

    from service.cli import terminal

    Console().print(terminal.metrics())


@app.command(
    rich_help_panel=TOOLS,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Measure an install from outside, over the public wire: `hublog bench --help`."""
    _lab("lab.cli")(args=context.args, prog_name="hublog bench")


@app.command(
    rich_help_panel=TOOLS,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def chaos(context: typer.Context) -> None:
    """Break an install while it works, and check that nothing was lost: `hublog chaos --help`."""
    _lab("lab.chaos.cli")(args=context.args, prog_name="hublog chaos")


def _lab(module: str) -> Callable[..., Any]:
    """The lab's command line, where this install has a lab."""
    try:
        return importlib.import_module(module).app  # type: ignore[no-any-return]
    except ModuleNotFoundError as exc:
        if exc.name not in {"lab", module}:
            raise
        raise typer.BadParameter("the lab is not part of this install; run it from a checkout") from exc
