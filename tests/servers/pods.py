"""What a kubelet and a Service do with rendered objects, done with processes of this machine.

Owns a pod's life in the kubelet's words: init containers one after the other, probes by path and named port, and the
end, which is out of the Services, preStop, SIGTERM, and the grace period for all of it. Owns Services as far as TCP
goes: who is behind them by labels and readiness, each connection to the least used. Commands, variables, ports and
paths are as rendered; only addresses are of this machine. It refuses to know the chart.
"""

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from service.up.child import Child
from tests.servers.chart import containers, pod_spec
from tests.servers.containers import Network, start
from tests.servers.image import Stage

POLL_S = 0.1
READY_S = 60.0
CHUNK_BYTES = 65_536

Told = Callable[[Mapping[str, Any], "Pod"], dict[str, str]]
"""The variables of a container in a pod."""


class Pod:
    """One pod of an object that makes pods, or is one."""

    def __init__(self, owner: Mapping[str, Any], name: str, address: str, image: Stage, folder: Path) -> None:
        found = pod_spec(owner)
        assert found is not None
        self.spec = found
        template = owner if owner["kind"] == "Pod" else owner["spec"]["template"]
        self.labels: dict[str, str] = template["metadata"]["labels"]
        self.name = name
        self.address = address
        self.ready = False
        self.children: dict[str, Child] = {}
        self._owner = owner
        self._image = image
        self._folder = folder

    @property
    def _containers(self) -> list[dict[str, Any]]:
        return [container for place, container in containers(self._owner) if place == "containers"]

    def port(self, name: str) -> int:
        """Of the containers' named ports."""
        (found,) = [
            port["containerPort"] for it in self._containers for port in it.get("ports", []) if port["name"] == name
        ]
        return int(found)

    def start(self, container: Mapping[str, Any], environment: Mapping[str, str], *replaced: tuple[str, str]) -> Child:
        """Run a container as rendered; ``replaced`` are addresses in its arguments that are others here."""
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        arguments = list(container.get("args", []))
        for was, becomes in replaced:
            arguments = [argument.replace(was, becomes) for argument in arguments]
        child = start(
            f"{self.name}-{container['name']}",
            dataclasses.replace(self._image, entrypoint=container["command"]),
            arguments,
            environment,
            self._folder,
            uid=self.spec["securityContext"]["runAsUser"],
        )
        self.children[container["name"]] = child
        return child

    async def run(self, told: Told) -> None:
        """Init containers to their end, then the others, until all are ready as their probes say."""
        for place, container in containers(self._owner):
            child = self.start(container, told(container, self))
            if place == "initContainers":
                assert await child.wait() == 0, f"{self.name}: {child.last_output(20)}"
        for container in self._containers:
            await self._probed(container, "startupProbe")
            await self._probed(container, "readinessProbe")
            await self._probed(container, "livenessProbe")
        self.ready = True

    async def _probed(self, container: Mapping[str, Any], kind: str) -> None:
        """Until the probe succeeds: asked more often than a kubelet would, and while it starts no longer than that
        would allow. Afterwards a kubelet would go on asking."""
        probe = container[kind]
        patience_s = probe["periodSeconds"] * probe["failureThreshold"] if kind == "startupProbe" else READY_S
        url = f"http://{self.address}:{self.port(probe['httpGet']['port'])}{probe['httpGet']['path']}"
        timeout = aiohttp.ClientTimeout(total=probe["timeoutSeconds"])
        said = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s + probe["timeoutSeconds"]):
                async with aiohttp.ClientSession(timeout=timeout) as http:
                    while (said := await _asked(http, url)) != "ok":
                        child = self.children[container["name"]]
                        assert child.returncode is None, f"{self.name} {child.describe_end()}: {child.last_output(20)}"
                        await asyncio.sleep(POLL_S)
                    return
        raise AssertionError(f"{self.name}: {kind} {url}: {said}\n{self.children[container['name']].last_output(20)}")

    async def stop(self) -> list[int]:
        """Leave as when the pod is deleted; gives exit statuses. Raises: TimeoutError when the grace period is over.

        The time that a ``preStop`` sleeps is taken off the grace period instead of being slept."""
        self.ready = False
        grace_s = float(self.spec["terminationGracePeriodSeconds"])
        async with asyncio.timeout(grace_s - sum(_pause_s(container) for container in self._containers)):
            ending = [self.children[container["name"]] for container in self._containers]
            for child in ending:
                child.send(signal.SIGTERM)
            return [await child.wait() for child in ending]


def _pause_s(container: Mapping[str, Any]) -> float:
    hook = container.get("lifecycle", {}).get("preStop", {})
    assert set(hook) <= {"sleep"}, "a command before the stop would have to be run here"
    return float(hook.get("sleep", {}).get("seconds", 0))


async def _asked(http: aiohttp.ClientSession, url: str) -> str:
    """``ok``, or what came instead."""
    try:
        async with http.get(url) as answer:
            return "ok" if answer.ok else f"{answer.status} {await answer.text()}"
    except (aiohttp.ClientError, TimeoutError) as exc:
        return repr(exc)


class Service:
    """One Service, and the connections through each of its ports."""

    def __init__(self, rendered: Mapping[str, Any], pods: list[Pod]) -> None:
        self.name: str = rendered["metadata"]["name"]
        self._rendered = rendered["spec"]
        self._pods = pods
        self._links: set[asyncio.Task[None]] = set()
        self._addresses: dict[int, str] = {}
        self.served: dict[str, int] = {}
        """Connections by pod."""

    @property
    def behind(self) -> list[Pod]:
        """Pods whose labels it selects."""
        selector = self._rendered["selector"].items()
        return [pod for pod in self._pods if selector <= pod.labels.items()]

    def replaced(self) -> list[tuple[str, str]]:
        """Where the cluster's name and port of it are here."""
        return [(f"{self.name}:{port}", address) for port, address in self._addresses.items()]

    def url(self, port: int) -> str:
        return f"http://{self._addresses[port]}"

    @asynccontextmanager
    async def open(self, network: Network) -> AsyncIterator[None]:
        servers = []
        for port in self._rendered["ports"]:
            target = port["targetPort"]
            server = await asyncio.start_server(
                lambda reader, writer, target=target: self._accept(reader, writer, target),
                network.address(self.name),
                0,
            )
            host, taken = server.sockets[0].getsockname()
            self._addresses[port["port"]] = f"{host}:{taken}"
            servers.append(server)
        try:
            yield
        finally:
            for server in servers:
                server.close()
            for link in self._links:
                link.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
        link = asyncio.ensure_future(self._carry(reader, writer, target))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
        ready = [pod for pod in self.behind if pod.ready]
        if not ready:
            writer.transport.abort()
            return
        pod = min(ready, key=lambda pod: self.served.get(pod.name, 0))
        self.served[pod.name] = self.served.get(pod.name, 0) + 1
        far_reader, far_writer = await asyncio.open_connection(pod.address, pod.port(target))
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except ConnectionError:
            pass  # one side is gone: so is the other
        finally:
            far_writer.transport.abort()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
