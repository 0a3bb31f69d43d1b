"""One ``hublog up`` per test file, with its ``SETTINGS`` and ``servers``; and one image for all."""

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from service.up.nats_server import NatsServer
from tests.servers.image import Stage, follow
from tests.servers.nats import start_nats
from tests.servers.questions import Api
from tests.servers.stock import StockClients
from tests.servers.up import Up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """For installations that do not bring their own."""
    server = await start_nats(tmp_path_factory.mktemp("outside"))
    yield server
    await server.stop()


@pytest.fixture(scope="module")
def servers() -> dict[str, str]:
    """The settings that name servers from outside; a file that has some says here which."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    request: pytest.FixtureRequest, servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Up]:
    up = Up(
        tmp_path_factory.mktemp("served") / "data",
        gateways=getattr(request.module, "GATEWAYS", 2),
        options=getattr(request.module, "OPTIONS", ("--no-restart",)),
        **getattr(request.module, "SETTINGS", {}),
        **servers,
    )
    try:
        await up.start()
        yield up
    finally:
        await up.stop()


@pytest.fixture
def hub() -> str:
    """A hub of one's own."""
    return f"h-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def gateways(served: Up) -> tuple[str, str]:
    """The addresses of both gateways."""
    return served.entry("gateway", 0).url or "", served.entry("gateway", 1).url or ""


@pytest_asyncio.fixture(loop_scope="module")
async def api(served: Up, hub: str) -> AsyncIterator[Api]:
    async with Api(served.entry("api").url or "", hub) as questions:
        yield questions


@pytest_asyncio.fixture(loop_scope="module")
async def clients() -> AsyncIterator[StockClients]:
    async with StockClients() as started:
        yield started


@pytest.fixture(scope="session")
def image() -> Iterator[Stage]:
    """What the Dockerfile makes; some 20 s, most of it pip's. Any user can reach it, and it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hublog-image-") as folder:
        Path(folder).chmod(0o755)
        yield follow(Path(__file__).resolve().parents[2] / "Dockerfile", Path(folder))
