"""The root of ``hublog up``: an install on one machine, from nothing to ready.

Owns which processes there are, in which order, on which ports, and what each is told. It refuses to know how one is
kept running (``service.up.supervisor``) or what it does.
"""

import asyncio
import errno
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import msgspec
from rich.console import Console

from events.errors import Misconfigured
from service.process.access import make_door
from service.settings import (
    ADMIN_OFFSET_API,
    ADMIN_OFFSET_PROJECTOR,
    Settings,
    child_environment,
    go_environment,
)
from service.spelling import Secret
from service.up.board import Board, Entry, write_processes
from service.up.child import spawn
from service.up.data_dir import DataDir
from service.up.nats_server import NatsServer
from service.up.postgres import PostgresServer
from service.up.supervisor import Supervisor
from service.up.units import Nats, Postgres, Process, Unit

MIGRATE_TIMEOUT_S = 120.0
STOP_GRACE_S = 5.0
"""What a process may take beyond its drain time."""


ACCESS = {
    "none": "Clients are believed: no access token is asked for (HUBLOG_AUTH=none)",
    "jwt": "Clients need an access token (HUBLOG_AUTH=jwt), e.g. of `hublog token --user ann --hub chat`",
}


class Port(msgspec.Struct, frozen=True):
    """A port that one of our processes is about to take."""

    number: int
    owner: str
    setting: str


async def run(settings: Settings, *, gateways: int, restart: bool, console: Console) -> None:
    """Serve until SIGINT or SIGTERM; a second one stops without waiting for anybody.

    Raises: Misconfigured when something cannot be started; nothing is left behind then.
    """
    if settings.nats_url is None and settings.nats_replicas > 1:
        raise Misconfigured(
            f"HUBLOG_NATS_REPLICAS is {settings.nats_replicas}, but `up` starts one NATS server: unset it, or set "
            "HUBLOG_NATS_URL to a cluster"
        )
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    board = Board(console)
    interrupted = False

    def stop() -> None:
        nonlocal interrupted
        task.cancel()  # first: the terminal that should hear of it may be gone
        if not interrupted:
            interrupted = True
            with suppress(OSError):
                board.note("Stopping; Ctrl-C again stops without waiting for anybody")

    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(sig, stop)
    if settings.auth == "jwt":
        make_door(settings)  # a key that is none is said here, not in the logs of the children
    refuse_taken_ports(settings.host, ports(settings, gateways))
    data_dir = await DataDir.claim(settings.data_dir)
    try:
        data_dir.processes_file.unlink(missing_ok=True)
        # The signal handlers cancel this task, and this is where that ends: everything is stopped by now.
        with suppress(asyncio.CancelledError):
            await _serve(settings, data_dir, board, gateways=gateways, restart=restart)
    finally:
        data_dir.processes_file.unlink(missing_ok=True)
        data_dir.release()


async def _serve(settings: Settings, data_dir: DataDir, board: Board, *, gateways: int, restart: bool) -> None:
    if settings.secrets is None:  # before anything is started: they may be damaged
        settings = msgspec.structs.replace(settings, secrets=Secret(data_dir.secrets()))
    external: list[Entry] = []

    def changed(entries: Iterable[Entry]) -> None:
        write_processes(data_dir.processes_file, [*external, *entries])

    async with Supervisor(board, restart=restart, changed=changed) as supervisor:
        sync = None
        if settings.postgres_dsn is None:
            postgres = PostgresServer(
                data_dir.postgres,
                log_file=data_dir.log_file("postgres"),
                binaries=settings.postgres_bin,
                inherit=(data_dir.lock_fd,),
            )
            postgres.forget_predecessor()
            await supervisor.start([Postgres(postgres)])
            settings = msgspec.structs.replace(settings, postgres_dsn=Secret(postgres.dsn))
            board.note("Postgres is ready")
        else:
            external.append(Entry("postgres", 0, None, settings.postgres_dsn.reveal(), None))
        if settings.nats_url is None:
            nats = NatsServer(
                data_dir.nats,
                log_file=data_dir.log_file("nats"),
                sync=settings.nats_sync,
                binary=settings.nats_bin,
                inherit=(data_dir.lock_fd,),
                environment=go_environment(),
            )
            await supervisor.start([Nats(nats)])
            settings = msgspec.structs.replace(settings, nats_url=Secret(nats.url))
            sync = await nats.sync_in_force()
            board.note("NATS is ready")
        else:
            external.append(Entry("nats", 0, None, settings.nats_url.reveal(), None))
        await _migrate(settings, data_dir)
        board.note("Streams and schema are in place")
        await supervisor.start([_projector(settings, data_dir), _api(settings, data_dir)])
        await supervisor.start([_gateway(settings, data_dir, index, gateways) for index in range(gateways)])
        board.note(ACCESS[settings.auth])
        board.table([*external, *supervisor.entries], sync=sync, logs=data_dir.logs)
        await supervisor.watch()


def ports(settings: Settings, gateways: int) -> list[Port]:
    """Every port that the processes will want."""
    return [
        *(Port(settings.gateway_port + i, f"gateway {i}", "HUBLOG_GATEWAY_PORT") for i in range(gateways)),
        Port(settings.api_port, "the api", "HUBLOG_API_PORT"),
        *(Port(settings.admin_port + i, f"gateway {i}'s admin port", "HUBLOG_ADMIN_PORT") for i in range(gateways)),
        Port(settings.admin_port + ADMIN_OFFSET_API, "the api's admin port", "HUBLOG_ADMIN_PORT"),
        Port(settings.admin_port + ADMIN_OFFSET_PROJECTOR, "the projector's admin port", "HUBLOG_ADMIN_PORT"),
    ]


def refuse_taken_ports(host: str, wanted: list[Port]) -> None:
    """Raises: Misconfigured naming every port that somebody else has, or that two of ours want."""
    mistakes = []
    times = Counter(port.number for port in wanted)
    for port in wanted:
        if port.number > 65_535:
            mistakes.append(f"there is no port {port.number} for {port.owner}: lower {port.setting}")
        elif times[port.number] > 1:
            mistakes.append(f"port {port.number} for {port.owner} is wanted twice: change {port.setting}")
        elif (trouble := _trouble(host, port.number)) is not None:
            mistakes.append(f"port {port.number} for {port.owner} {trouble}: free it, or set {port.setting}")
    if mistakes:
        raise Misconfigured("\n".join(mistakes))


def _trouble(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            return "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be had ({exc.strerror})"
    return None


def _environment(settings: Settings, **more: str) -> dict[str, str]:
    """What every process of ours is told: this process's own settings, with those that ``up`` decided."""
    assert settings.nats_url is not None
    assert settings.postgres_dsn is not None
    assert settings.secrets is not None
    return child_environment(
        auth=settings.auth,
        nats_url=settings.nats_url.reveal(),
        postgres_dsn=settings.postgres_dsn.reveal(),
        secrets=settings.secrets.reveal(),
        data_dir=str(settings.data_dir),
        **more,
    )


async def _migrate(settings: Settings, data_dir: DataDir) -> None:
    """In a process of its own: what migrations import has no place in a supervisor."""
    child = spawn(
        "migrate",
        [sys.executable, "-P", "-m", "service", "migrate"],
        log_file=data_dir.log_file("migrate"),
        death_signal=signal.SIGKILL,
        env=_environment(settings),
    )
    try:
        await asyncio.wait_for(child.wait(), MIGRATE_TIMEOUT_S)
    except TimeoutError as exc:
        raise Misconfigured(
            f"`hublog migrate` did not end within {MIGRATE_TIMEOUT_S:.0f} s; see {child.log_file}"
        ) from exc
    finally:
        await child.kill()
    if child.returncode != 0:
        raise Misconfigured(f"`hublog migrate` failed ({child.describe_end()}):\n{child.last_output()}")


def _url(settings: Settings, port: int) -> str:
    # "All addresses" is none that anybody could be sent to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _gateway(settings: Settings, data_dir: DataDir, index: int, gateways: int) -> Unit:
    # One name for several gateways would be one lease for several: each gets its index.
    named = {"node": f"{settings.node}-{index}"} if settings.node is not None and gateways > 1 else {}
    return Process(
        "gateway",
        index=index,
        arguments=("--index", str(index)),
        environment=_environment(settings, **named),
        log_file=data_dir.log_file(f"gateway-{index}"),
        url=_url(settings, settings.gateway_port + index),
        admin_url=_url(settings, settings.admin_port + index),
        stop_s=settings.drain_s + STOP_GRACE_S,
    )


def _projector(settings: Settings, data_dir: DataDir) -> Unit:
    return Process(
        "projector",
        environment=_environment(settings),
        log_file=data_dir.log_file("projector"),
        url=None,
        admin_url=_url(settings, settings.admin_port + ADMIN_OFFSET_PROJECTOR),
        stop_s=settings.drain_s + STOP_GRACE_S,
    )


def _api(settings: Settings, data_dir: DataDir) -> Unit:
    return Process(
        "api",
        environment=_environment(settings),
        log_file=data_dir.log_file("api"),
        url=_url(settings, settings.api_port),
        admin_url=_url(settings, settings.admin_port + ADMIN_OFFSET_API),
        stop_s=settings.drain_s + STOP_GRACE_S,
    )
