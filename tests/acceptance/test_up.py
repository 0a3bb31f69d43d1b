"""``hublog up`` as a person runs it: started, started again, stopped, refused, and killed in every way."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.log.jetstream import jetstream_log
from service.up.child import spawn
from service.up.nats_server import NatsServer
from tests.servers.health import wait_ready
from tests.servers.processes import gone, until
from tests.servers.up import Up, processes_of

ROLES = ["api 0", "gateway 0", "gateway 1", "nats 0", "postgres 0", "projector 0"]


@pytest.fixture
async def made() -> AsyncIterator[list[Up]]:
    """What a test started; it is ended however the test ends."""
    started: list[Up] = []
    yield started
    for up in started:
        await up.stop()


@pytest.fixture
def new_up(tmp_path: Path, made: list[Up]) -> Callable[..., Up]:
    def new(name: str = "data", **options: object) -> Up:
        up = Up(tmp_path / name, **options)
        made.append(up)
        return up

    return new


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up_at = time.monotonic() + 30
    while not await condition():
        assert time.monotonic() < give_up_at, f"never came: {what}"
        await asyncio.sleep(0.05)


async def epoch_of(up: Up) -> str:
    log = await jetstream_log(up.entry("nats").url or "", name="test")
    try:
        return log.epoch
    finally:
        await log.close()


async def test_it_starts_stops_and_continues_where_it_was(new_up: Callable[..., Up]) -> None:
    up = new_up()
    await up.start()
    assert sorted(f"{entry.role} {entry.index}" for entry in up.entries) == ROLES
    assert stat.S_IMODE((up.data_dir / "processes.json").stat().st_mode) == 0o600
    assert not any(gone(entry.pid or 0) for entry in up.entries)
    for entry in up.entries:
        if entry.admin_url is not None:
            await wait_ready(entry.admin_url)
    password = (up.entry("nats").url or "").split("@")[0].rpartition(":")[2]
    assert "hublog is up" in up.output
    assert "NATS writes to disk: every 120 s" in up.output
    assert password not in up.output
    epoch, secrets = await epoch_of(up), (up.data_dir / "secrets").read_text()

    assert await up.stop(signal.SIGINT) == 0
    assert processes_of(up.data_dir) == {}
    assert not (up.data_dir / "processes.json").exists()

    await up.start()
    assert await epoch_of(up) == epoch
    assert (up.data_dir / "secrets").read_text() == secrets
    assert await up.stop(signal.SIGTERM) == 0
    assert processes_of(up.data_dir) == {}


async def test_every_taken_port_is_named_with_whose_it_was_to_be_and_its_setting(new_up: Callable[..., Up]) -> None:
    up = new_up()
    with socket.create_server(("127.0.0.1", up.base + 1)), socket.create_server(("127.0.0.1", up.base + 301)):
        said = await up.refused()
    assert f"port {up.base + 1} for gateway 1 is taken: free it, or set HUBLOG_GATEWAY_PORT" in said
    assert f"port {up.base + 301} for the projector's admin port is taken: free it, or set HUBLOG_ADMIN_PORT" in said
    assert "Traceback" not in said
    assert processes_of(up.data_dir) == {}


async def test_a_data_directory_in_use_is_refused_and_its_user_unharmed(new_up: Callable[..., Up]) -> None:
    first = new_up()
    await first.start()
    second = new_up()
    said = await second.refused()
    assert first.child is not None
    assert f"the data directory {first.data_dir} is in use by another hublog (process {first.child.pid})" in said
    assert "--data-dir" in said
    await wait_ready(first.entry("gateway", 1).admin_url)
    assert len(first.entries) == len(ROLES)


async def test_a_data_directory_that_cannot_be_made_is_refused(new_up: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert "cannot be used: File exists; choose another with --data-dir or HUBLOG_DATA_DIR" in await new_up().refused()


async def test_damaged_secrets_are_named_before_anything_is_started(new_up: Callable[..., Up]) -> None:
    up = new_up()
    up.data_dir.mkdir()
    (up.data_dir / "secrets").write_text("junk\n")
    said = await up.refused()
    assert f"{up.data_dir}/secrets is damaged" in said
    assert "remove it: a new key is made then, and all resume tokens given so far are refused" in said
    assert "HUBLOG_SECRETS" not in said
    assert "Correct the settings" not in said
    assert list((up.data_dir / "logs").iterdir()) == []
    assert (up.data_dir / "secrets").read_text() == "junk\n"


async def test_what_migrate_said_is_not_said_again(
    new_up: Callable[..., Up], fresh_nats: Callable[[], Awaitable[NatsServer]]
) -> None:
    nats = await fresh_nats()
    said = await new_up(HUBLOG_NATS_URL=nats.url, HUBLOG_NATS_REPLICAS="3").refused()
    assert "NATS cannot keep 3 replicas (HUBLOG_NATS_REPLICAS)" in said
    assert said.count("Correct the settings named above") == 1


async def test_every_bad_setting_is_named(new_up: Callable[..., Up]) -> None:
    said = await new_up(HUBLOG_PARTITIONS="none", HUBLOG_HOST="0.0.0.0", HUBLOG_AUTH="none").refused()
    assert "HUBLOG_PARTITIONS must be a whole number from 1 to 64" in said
    assert "HUBLOG_AUTH is none and HUBLOG_HOST is 0.0.0.0" in said


@pytest.mark.parametrize("role", ["gateway", "api"])
async def test_a_process_on_its_own_wants_a_key_or_the_lack_of_authentication_said(role: str, tmp_path: Path) -> None:
    child = spawn(
        role,
        [sys.executable, "-P", "-m", "service", role],
        log_file=tmp_path / "log",
        death_signal=signal.SIGKILL,
        env={name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")},
    )
    assert await child.wait() == 2
    assert "HUBLOG_JWT_KEY is not set" in child.last_output()
    assert "HUBLOG_NATS_URL is not set" in child.last_output()


async def test_nothing_survives_the_kill_of_the_supervisor_and_a_start_right_after_works(
    new_up: Callable[..., Up],
) -> None:
    up = new_up()
    await up.start()
    pids = [entry.pid or 0 for entry in up.entries]
    assert up.child is not None
    await up.child.kill()
    successor = new_up()
    await successor.start()
    for pid in pids:
        await until(lambda pid=pid: gone(pid), what=f"the end of {pid}")
    assert await successor.stop() == 0
    assert processes_of(up.data_dir) == {}


async def test_whoever_is_killed_comes_back_ready_at_the_same_address(new_up: Callable[..., Up]) -> None:
    up = new_up()
    await up.start()
    before = {(entry.role, entry.index): entry for entry in up.entries}
    for key, killed in before.items():
        os.kill(killed.pid or 0, signal.SIGKILL)

        async def replaced(key: tuple[str, int] = key, pid: int | None = killed.pid) -> bool:
            return any((entry.role, entry.index) == key and entry.pid != pid for entry in up.entries)

        await eventually(replaced, f"{key} to be replaced")
        for entry in up.entries:
            if entry.admin_url is not None:
                await wait_ready(entry.admin_url)
    after = {(entry.role, entry.index): entry for entry in up.entries}
    assert after.keys() == before.keys()
    assert {key: entry.url for key, entry in after.items()} == {key: entry.url for key, entry in before.items()}
    assert up.output.count("killed by SIGKILL") == len(before)
    assert await up.stop() == 0
    assert processes_of(up.data_dir) == {}


async def test_with_no_restart_a_death_is_reported_and_the_rest_goes_on(new_up: Callable[..., Up]) -> None:
    up = new_up(options=("--no-restart",))
    await up.start()
    os.kill(up.entry("gateway", 1).pid or 0, signal.SIGKILL)
    await until(lambda: "gateway 1 is not restarted (--no-restart)" in up.output, what="the report")
    await until(lambda: len(up.entries) == len(ROLES) - 1, what="processes.json without it")
    await wait_ready(up.entry("gateway", 0).admin_url)
    assert await up.stop() == 0


@pytest.mark.parametrize(
    "moment", ["lock", "logs/postgres.log", "nats/nats.conf", "logs/migrate.log", "logs/gateway-0.log"]
)
async def test_an_interrupt_while_starting_leaves_nothing_behind(new_up: Callable[..., Up], moment: str) -> None:
    up = new_up()
    child = up.launch()
    await until((up.data_dir / moment).exists, what=moment)
    child.send(signal.SIGINT)
    assert await child.wait() in {0, 1, 130}
    assert processes_of(up.data_dir) == {}


async def test_that_it_stops_is_said_at_once_and_once(new_up: Callable[..., Up]) -> None:
    up = new_up(gateways=1)
    await up.start()
    assert up.child is not None
    held = up.entry("gateway").pid or 0
    os.kill(held, signal.SIGSTOP)  # so that it cannot have stopped yet
    up.child.send(signal.SIGINT)
    await until(lambda: "Stopping" in up.output, what="a word of it", timeout_s=4)
    assert up.child.returncode is None
    os.kill(held, signal.SIGCONT)
    assert await up.child.wait() == 0
    assert up.output.count("Stopping; Ctrl-C again stops without waiting for anybody\n") == 1


async def test_an_ordinary_user_needs_no_more_than_root(new_up: Callable[..., Up]) -> None:
    up = new_up(gateways=1, unprivileged=True)
    await up.start()
    assert len(up.entries) == len(ROLES) - 1
    assert await up.stop() == 0
    assert processes_of(up.data_dir) == {}


async def test_servers_of_ones_own_are_used_where_named(
    new_up: Callable[..., Up], fresh_nats: Callable[[], Awaitable[NatsServer]], empty_database: str
) -> None:
    nats = await fresh_nats()
    up = new_up(HUBLOG_NATS_URL=nats.url, HUBLOG_POSTGRES_DSN=empty_database)
    await up.start()
    assert (up.entry("nats").pid, up.entry("postgres").pid) == (None, None)
    await wait_ready(up.entry("api").admin_url)
    assert json.loads((up.data_dir / "processes.json").read_bytes())[0]["admin_url"] is None
    assert await up.stop() == 0
    log = await jetstream_log(nats.url, name="test")
    assert len(log.epoch) == 4
    await log.close()
