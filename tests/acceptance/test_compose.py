"""compose.yaml, without an engine: linted, and every service of it started as it says, in its order.

Its NATS servers are the real ones with its configuration, its proxy is the real Caddy with its Caddyfile, our processes
run from the image. Only Postgres is the embedded one, under the name that the others know it by.
"""

import asyncio
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import nats
import pytest
import pytest_asyncio
import yaml
from compose_spec import PyCompose

from service.settings import Settings
from service.up.child import Child, spawn
from service.up.postgres import PostgresServer
from tests.servers.compose import Compose, load, read_env
from tests.servers.containers import start
from tests.servers.image import Stage
from tests.servers.postgres import create_database, drop_database
from tests.servers.raw_signalr import RawClient

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
FILE = ROOT / "compose.yaml"
OURS = ("migrate", "gateway-0", "gateway-1", "projector", "api")
NATS = ("nats-0", "nats-1", "nats-2")
READY_S = 60.0
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


def make_env(folder: Path) -> Path:
    """What ``compose/make-env`` writes, in a folder of its own."""
    (folder / "compose").mkdir(exist_ok=True)
    script = folder / "compose/make-env"
    script.write_bytes((ROOT / "compose/make-env").read_bytes())
    subprocess.run(["/bin/sh", script], check=True, capture_output=True)
    return folder / ".env"


def test_make_env_writes_secrets_for_its_owner_once(tmp_path: Path) -> None:
    file = make_env(tmp_path)
    first = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    values = read_env(file)
    assert len({*values.values()}) == len(values) == 5
    assert make_env(tmp_path).read_text() == first
    (tmp_path / "second").mkdir()
    assert set(read_env(make_env(tmp_path / "second")).values()) & set(values.values()) == {"127.0.0.1:8000"}


def test_without_secrets_it_refuses_and_says_what_to_run() -> None:
    with pytest.raises(KeyError, match="run compose/make-env first"):
        load(FILE, {})


def test_linters_find_nothing(variables: dict[str, str]) -> None:
    read = PyCompose.from_yaml(yaml.safe_dump(load(FILE, variables)))
    read.validate()
    assert read.to_spec().name == "hublog"
    lint = [BIN / "compose-lint", "check", "--strict-config", "--fail-on", "low", "--no-env", "compose.yaml"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [BIN / "caddy", "fmt", "--diff", ROOT / "compose/Caddyfile"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_servers_are_of_the_versions_that_the_tests_run(variables: dict[str, str]) -> None:
    services = load(FILE, variables)["services"]
    nats, caddy = (
        subprocess.run([BIN / name, what], capture_output=True, text=True, check=True).stdout
        for name, what in (("nats-server", "--version"), ("caddy", "version"))
    )
    for name in NATS:
        assert services[name]["image"] == f"nats:{nats.strip().removeprefix('nats-server: v')}-alpine"
    assert services["proxy"]["image"] == f"caddy:{caddy.split()[0].removeprefix('v')}-alpine"


def test_what_it_sets_is_what_the_settings_loader_accepts(variables: dict[str, str]) -> None:
    """As written, with 0.0.0.0: the processes below listen on loopback, where less is refused."""
    services = load(FILE, variables)["services"]
    for name in OURS:
        (role,) = services[name]["command"]
        settings = Settings.read(services[name]["environment"], role)
        assert settings.nats_replicas == len(NATS)
        assert services[name]["mem_limit"]
    gateway = Settings.read(services["gateway-0"]["environment"], "gateway")
    grace_s = float(services["gateway-0"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= gateway.drain_s + 10  # to say goodbye to the log, and end


class Containers:
    """What ``docker compose up`` would have started."""

    def __init__(self, compose: Compose, image: Stage, folder: Path, dsn: str) -> None:
        self.compose = compose
        self._image = image
        self._folder = folder
        self._dsn = dsn
        self.children: dict[str, Child] = {}

    def start(self, service: str) -> Child:
        command, environment = self.compose.command(service), self.compose.environment(service)
        if service in OURS:
            if "HUBLOG_POSTGRES_DSN" in environment:
                assert (
                    environment["HUBLOG_POSTGRES_DSN"].split("@")[1]
                    == f"{self.compose.address('postgres')}:5432/hublog"
                )
                environment["HUBLOG_POSTGRES_DSN"] = self._dsn
            child = start(service, self._image, command, environment, self._folder)
        else:
            child = self._start_server(service, command, environment)
        self.children[service] = child
        return child

    def _start_server(self, service: str, command: list[str], environment: dict[str, str]) -> Child:
        """One of an image that is not ours, with its mounted configuration."""
        folder = self._folder / service
        folder.mkdir(exist_ok=True)
        program, *arguments = command
        inside = arguments[-1]
        config = folder / Path(inside).name
        config.write_text(self.compose.mounted(service, inside).replace('"/data"', f'"{folder}/data"'))
        return spawn(
            service,
            [str(BIN / program), *arguments[:-1], str(config)],
            log_file=self._folder / f"{service}.log",
            death_signal=signal.SIGKILL,
            env={"HOME": str(folder), **environment},
            cwd=folder,
        )

    async def healthy(self, service: str) -> None:
        """Until its health check, as written, succeeds."""
        program, *arguments = self.compose.health_check(service)
        if program == "wget":  # of their images; what it asks for is what counts
            program, arguments = "python", ["-c", f"from urllib.request import urlopen; urlopen({arguments[-1]!r})"]
        found = self._image.path(f"/opt/venv/bin/{program}")
        async with asyncio.timeout(READY_S):
            while True:
                probe = await asyncio.create_subprocess_exec(found, *arguments, stderr=asyncio.subprocess.DEVNULL)
                if await probe.wait() == 0:
                    return
                child = self.children[service]
                assert child.returncode is None, f"{service} {child.describe_end()}:\n{child.last_output(20)}"
                await asyncio.sleep(0.2)

    async def up(self) -> None:
        """In the order and under the conditions that the file states."""
        for service in self.compose.order():
            for other, needed in self.compose.services[service].get("depends_on", {}).items():
                if needed["condition"] == "service_completed_successfully":
                    assert await self.children[other].wait() == 0, self.children[other].last_output(20)
                elif other != "postgres":
                    await self.healthy(other)
            if service != "postgres":
                self.start(service)

    async def once(self, service: str, *arguments: str) -> str:
        """The last line of ``docker compose exec -T <service> python -m service …``."""
        here = [self.compose.moved(service, argument) if "://" in argument else argument for argument in arguments]
        child = start("once", self._image, here, self.compose.environment(service), self._folder)
        assert await child.wait() == 0, child.last_output(20)
        return child.last_output(1)


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return read_env(make_env(tmp_path_factory.mktemp("env")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(
    image: Stage, postgres_server: PostgresServer, variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Containers]:
    dsn = await create_database(postgres_server)
    made = Containers(Compose(FILE, variables), image, tmp_path_factory.mktemp("compose"), dsn)
    try:
        await made.up()
        yield made
    finally:
        for child in made.children.values():
            await child.kill()
        await drop_database(postgres_server, dsn)


@ONE_LOOP
async def test_it_comes_up_in_its_order_with_a_log_on_three_servers(up: Containers, variables: dict[str, str]) -> None:
    order = up.compose.order()
    assert order.index("migrate") > max(map(order.index, (*NATS, "postgres")))
    assert order[-1] == "proxy"
    client = await nats.connect(up.compose.environment("api")["HUBLOG_NATS_URL"].split(",")[0], allow_reconnect=False)
    try:
        stream = await client.jsm().stream_info("EV_0")
    finally:
        await client.close()
    assert stream.config.num_replicas == len(NATS)
    assert stream.cluster is not None
    assert {stream.cluster.leader, *(replica.name for replica in stream.cluster.replicas or ())} == set(NATS)


@ONE_LOOP
async def test_through_the_proxy_clients_meet_on_any_gateway(up: Containers) -> None:
    url = f"http://{up.compose.address('proxy')}:8000"
    ann_token, bob_token = [
        await up.once("gateway-0", "token", "--user", who, "--hub", "chat") for who in ("ann", "bob")
    ]
    reader = await up.once("api", "token", "--scope", "hublog:read")
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{url}/v1/hubs") as refused:
            assert refused.status == 401
        async with http.post(
            f"{url}/hubs/chat/negotiate?negotiateVersion=1", headers={"Authorization": f"Bearer {ann_token}"}
        ) as answer:
            connection = (await answer.json())["connectionToken"]
        # Whichever gateway negotiated, the other may get the connection.
        async with (
            RawClient(url, "chat", f"?id={quote(connection)}&access_token={ann_token}") as ann,
            RawClient(url, "chat", f"?access_token={bob_token}") as bob,
        ):
            position = (await ann.call("hub.join", b'["lobby"]'))["result"]["position"]
            await bob.call("hub.invoke", b'[{"to":"group","group":"lobby"},"say",["hello"]]')
            assert b'"arguments":["hello"]' in await ann.record(containing=b'"target":"say"')
            async with http.get(
                f"{url}/v1/hubs/chat/sessions?min_position={position}", headers={"Authorization": f"Bearer {reader}"}
            ) as answer:
                sessions = (await answer.json())["items"]
    assert {session["userId"]: session["groups"] for session in sessions} == {"ann": ["lobby"], "bob": []}
    assert {session["node"] for session in sessions} == {"gateway-0", "gateway-1"}


@ONE_LOOP
async def test_the_commands_of_the_documents_work(up: Containers) -> None:
    text = (ROOT / "docs/install.md").read_text()
    commands = re.findall(r"docker compose exec -T (\S+) python -m service ([^)\n]+)", text)
    said = {arguments: await up.once(service, *arguments.split()) for service, arguments in commands}
    (probed,) = [line for arguments, line in said.items() if arguments.startswith("probe ")]
    assert probed.startswith("all well in ")
    tokens = [line for arguments, line in said.items() if arguments.startswith("token ")]
    assert len(tokens) == len(said) - 1
    assert all(re.fullmatch(r"[\w-]+(\.[\w-]+){2}", token) for token in tokens)


@ONE_LOOP
async def test_a_session_goes_on_through_the_proxy_when_its_gateway_is_killed(up: Containers) -> None:
    url = f"http://{up.compose.address('proxy')}:8000"
    token, reader = (
        await up.once("gateway-0", "token", "--user", "cas", "--hub", "moves"),
        await up.once("api", "token", "--scope", "hublog:read"),
    )
    async with RawClient(url, "moves", f"?resumable=1&access_token={token}") as before:
        session = (await before.call("hub.session", b"[]"))["result"]
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {reader}"}) as http,
            http.get(f"{url}/v1/hubs/moves/sessions/{session['sessionId']}?min_position={session['cursor']}") as answer,
        ):
            gateway = (await answer.json())["node"]
        await up.children[gateway].kill()
        await before.end()
    resume = f"&resume={session['resumeToken']}&cursor={session['cursor']}"
    async with RawClient(url, "moves", f"?resumable=1&access_token={token}{resume}") as after:
        again = (await after.call("hub.session", b"[]"))["result"]
    assert (again["sessionId"], again["resumed"], again["resync"]) == (session["sessionId"], True, None)
    up.start(gateway)
    await up.healthy(gateway)


@ONE_LOOP
async def test_everything_stops_within_its_grace(up: Containers) -> None:
    order = [service for service in reversed(up.compose.order()) if service in up.children and service != "migrate"]
    for service in order:
        child = up.children[service]
        child.send(signal.SIGTERM)
        status = await asyncio.wait_for(child.wait(), up.compose.grace_s(service))
        assert status == (0 if service in {*OURS, "proxy"} else status), f"{service}: {child.last_output()}"
