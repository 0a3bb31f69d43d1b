"""Everything that the chart starts, started: command lines, variables, ports, probes and Services as rendered.

In place of the cluster there are processes of the image, a kubelet of some lines and Services that carry TCP. What had
to be another than in a cluster is listed once, and checked to be no more.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lab.nats_cluster import nats_cluster
from service import VERSION
from service.up.postgres import PostgresServer
from tests.servers.chart import containers, environment, only, pod_spec, render
from tests.servers.containers import Network
from tests.servers.image import Stage
from tests.servers.pods import Pod, Service
from tests.servers.postgres import create_database, drop_database
from tests.servers.raw_signalr import RawClient

ROLES = ("gateway", "projector", "api")
ELSEWHERE = {"HUBLOG_HOST": "0.0.0.0"}
"""All of one machine's ports are shared, so that each pod listens on an address instead of on all."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Release:
    """The objects, and the pods that they made."""

    def __init__(self, image: Stage, folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> None:
        self.objects = render()
        self.network = Network()
        self.pods: list[Pod] = []
        self._image = image
        self._folder = folder
        self._secrets = secrets

    def pod(self, owner: Mapping[str, Any], number: int = 0) -> Pod:
        name = f"{owner['metadata']['name']}-{number}"
        return Pod(owner, name, self.network.address(name), self._image, self._folder)

    def told(self, container: Mapping[str, Any], pod: Pod) -> dict[str, str]:
        """The variables as rendered, but for ``ELSEWHERE``."""
        rendered = environment(container, self._secrets, objects=self.objects, fields={"metadata.name": pod.name})
        for name, value in ELSEWHERE.items():
            if name in rendered:
                assert rendered[name] == value
                rendered[name] = pod.address
        return rendered

    def of(self, role: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.name.startswith(f"hublog-{role}-")]

    async def run(self, owner: Mapping[str, Any]) -> None:
        """All replicas of a Deployment."""
        pods = [self.pod(owner, number) for number in range(owner["spec"]["replicas"])]
        self.pods += pods
        await asyncio.gather(*(pod.run(self.told) for pod in pods))

    async def once(self, owner: Mapping[str, Any], *replaced: tuple[str, str]) -> str:
        """A Job or a Pod that ends by itself; gives what it said."""
        pod = self.pod(owner)
        self.pods.append(pod)
        ((_, container),) = containers(owner)
        child = pod.start(container, self.told(container, pod), *replaced)
        async with asyncio.timeout(owner["spec"]["activeDeadlineSeconds"]):
            assert await child.wait() == 0, child.last_output(20)
        return child.log_file.read_text()

    async def token(self, pod: Pod, *options: str) -> str:
        """What `kubectl exec` of `hublog token` in a pod gives."""
        ((_, serving),) = [
            it for it in containers(only(self.objects, "Deployment", "gateway")) if it[0] == "containers"
        ]
        child = pod.start({**serving, "name": "token", "args": ["token", *options]}, self.told(serving, pod))
        assert await child.wait() == 0, child.last_output()
        return child.last_output(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secrets(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, dict[str, str]]]:
    """The two that an install must name: of a NATS of three servers, and of a database without a schema."""
    async with nats_cluster(tmp_path_factory.mktemp("chart-nats")) as nats:
        dsn = await create_database(postgres_server)
        yield {"nats": {"url": nats.url}, "postgres": {"dsn": dsn}}
        await drop_database(postgres_server, dsn)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def release(
    secrets: dict[str, dict[str, str]], image: Stage, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Release]:
    made = Release(image, tmp_path_factory.mktemp("chart"), secrets)
    try:
        migrate = only(made.objects, "Job")
        assert migrate["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "schema at revision" in await made.once(migrate)
        await asyncio.gather(*(made.run(only(made.objects, "Deployment", role)) for role in ROLES))
        yield made
    finally:
        for pod in made.pods:
            for child in pod.children.values():
                await child.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(release: Release) -> AsyncIterator[dict[str, Service]]:
    async with AsyncExitStack() as stack:
        opened = {}
        for rendered in release.objects:
            if rendered["kind"] == "Service" and rendered["spec"].get("clusterIP") != "None":
                service = Service(rendered, release.pods)
                await stack.enter_async_context(service.open(release.network))
                opened[service.name] = service
        yield opened


async def test_it_is_everything_and_all_of_it_became_ready(release: Release) -> None:
    makers = {(it["kind"], it["metadata"]["name"]) for it in release.objects if any(containers(it))}
    deployments = {("Deployment", f"hublog-{role}") for role in ROLES}
    assert makers == {("Job", "hublog-migrate"), *deployments, ("Pod", "hublog-probe")}
    assert all(pod.ready for role in ROLES for pod in release.of(role))
    assert len(release.of("gateway")) > 1


async def test_it_runs_the_image_as_that_is_made(release: Release, image: Stage) -> None:
    ports = set()
    for owner in release.objects:
        spec = pod_spec(owner)
        for _, container in containers(owner):
            assert container["command"] == image.entrypoint
            assert container["image"] == f"hublog:{VERSION}"
            ports |= {port["containerPort"] for port in container.get("ports", [])}
        if spec is not None:
            security = spec["securityContext"]
            assert f"{security['runAsUser']}:{security['runAsGroup']}" == image.user
    assert ports == set(image.ports)


async def test_helm_test_succeeds_and_comes_to_both_gateways(release: Release, services: dict[str, Service]) -> None:
    replaced = [pair for service in services.values() for pair in service.replaced()]
    said = await release.once(only(release.objects, "Pod", "probe"), *replaced)
    assert "resume" in said
    assert set(services["hublog-gateway"].served) == {pod.name for pod in release.of("gateway")}
    assert set(services["hublog-api"].served) <= {pod.name for pod in release.of("api")}


async def test_a_gateway_that_leaves_hands_its_clients_to_the_other(
    release: Release, services: dict[str, Service]
) -> None:
    gateway = services["hublog-gateway"]
    first, second = release.of("gateway")
    token = await release.token(second, "--user", "ann")
    gateway.served[second.name] = gateway.served.get(first.name, 0) + 1  # so that the first one is next
    async with RawClient(gateway.url(80), "moves", f"?resumable=1&access_token={token}") as before:
        session = (await before.call("hub.session", b"[]"))["result"]
        assert await first.stop() == [0]
        await before.end()
        assert b'"allowReconnect":true' in before.records[-1]
    resume = f"&resume={session['resumeToken']}&cursor={session['cursor']}"
    async with RawClient(gateway.url(80), "moves", f"?resumable=1&access_token={token}{resume}") as after:
        again = (await after.call("hub.session", b"[]"))["result"]
    assert (again["sessionId"], again["resumed"], again["resync"]) == (session["sessionId"], True, None)


async def test_everything_stops_within_its_grace_period(release: Release) -> None:
    staying = [pod for role in ROLES for pod in release.of(role) if pod.ready]
    assert await asyncio.gather(*(pod.stop() for pod in staying)) == [[0]] * len(staying)
