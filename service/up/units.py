"""The things that a supervisor keeps running: an embedded server, or one of the service's own processes.

Owns how one of them is started until it is ready, how it is stopped, and what ``processes.json`` says of it. It refuses
to know the others, and when to start it again.
"""

import asyncio
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import aiohttp
import msgspec

from events.errors import Misconfigured
from service.up.board import Entry, Role
from service.up.child import Child, Ladder, spawn
from service.up.nats_server import NatsServer
from service.up.postgres import PostgresServer

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.05
PROBE_TIMEOUT_S = 3.0


class Unit(ABC):
    """One supervised process. ``child`` is the running one, None before the first start."""

    role: Role
    index: int = 0

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}" if self.role == "gateway" else self.role

    @property
    @abstractmethod
    def child(self) -> Child | None: ...

    @property
    @abstractmethod
    def entry(self) -> Entry: ...

    @abstractmethod
    async def start(self) -> None:
        """Start it and wait until it serves. Raises: Misconfigured."""

    @abstractmethod
    async def stop(self) -> None:
        """End it as gently as its time allows."""


class Nats(Unit):
    role: Role = "nats"

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    @property
    def child(self) -> Child | None:
        return self._server.child

    @property
    def entry(self) -> Entry:
        return Entry("nats", 0, self._server.pid, self._server.url, None)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()


class Postgres(Unit):
    role: Role = "postgres"

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    @property
    def child(self) -> Child | None:
        return self._server.child

    @property
    def entry(self) -> Entry:
        return Entry("postgres", 0, self._server.pid, self._server.dsn, None)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()


class Process(Unit):
    """A process of the service: the command line that Kubernetes runs, and an admin port that says when it is ready."""

    def __init__(
        self,
        role: Role,
        *,
        index: int = 0,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str],
        log_file: Path,
        url: str | None,
        admin_url: str,
        stop_s: float,
    ) -> None:
        self.role = role
        self.index = index
        self._program = [sys.executable, "-P", "-m", "service", role, *arguments]
        self._environment = environment
        self._log_file = log_file
        self._url = url
        self._admin_url = admin_url
        self._ladder: Ladder = ((signal.SIGTERM, stop_s),)
        self._child: Child | None = None

    @property
    def child(self) -> Child | None:
        return self._child

    @property
    def entry(self) -> Entry:
        return Entry(
            self.role, self.index, None if self._child is None else self._child.pid, self._url, self._admin_url
        )

    async def start(self) -> None:
        self._child = child = spawn(
            self.name,
            self._program,
            log_file=self._log_file,
            # Not SIGTERM: without its supervisor it has no servers either, and must not linger.
            death_signal=signal.SIGKILL,
            env=self._environment,
        )
        try:
            await self._ready(child)
        except BaseException:
            await child.kill()
            raise

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(self._ladder)

    async def _ready(self, child: Child) -> None:
        give_up_at = time.monotonic() + READY_TIMEOUT_S
        why = "it did not answer"
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while time.monotonic() < give_up_at:
                if child.returncode is not None:
                    raise Misconfigured(
                        f"{self.name} ended before it was ready ({child.describe_end()}); "
                        f"it wrote to {child.log_file}:\n{child.last_output()}"
                    )
                try:
                    async with session.get(f"{self._admin_url}/readyz") as answer:
                        said = readiness(await answer.text())
                        if said.pid != child.pid:
                            why = f"another process ({said.pid or 'not of hublog'}) has its port"
                        elif answer.status == HTTPStatus.OK:
                            return
                        else:
                            why = f"it says of itself\n{said.red()}"
                except (aiohttp.ClientError, TimeoutError) as exc:
                    why = f"it did not answer ({exc})"
                await asyncio.sleep(READY_POLL_S)
        raise NotReady(f"{self.name} was not ready within {READY_TIMEOUT_S:.0f} s: {why}\nits log is {child.log_file}")


class NotReady(Misconfigured):
    hint = "docs/troubleshooting.md has each check and each code."


class Readiness(msgspec.Struct, frozen=True):
    """As much of an answer of ``/readyz`` as tells whose it is and what is wrong.

    Of two installations that start on the same ports at the same moment, one gets them.
    """

    pid: int | None = None
    checks: Mapping[str, str] = {}

    def red(self) -> str:
        """A line for each check that is not ``ok``."""
        return "\n".join(f"  {check}: {said}" for check, said in self.checks.items() if said != "ok")


def readiness(body: str) -> Readiness:
    try:
        return msgspec.json.decode(body, type=Readiness)
    except msgspec.DecodeError:
        return Readiness()
