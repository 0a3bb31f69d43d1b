"""The embedded servers: started, killed, restarted, orphaned, locked, and what their errors say."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import nats
import psycopg
import pytest

from events.errors import Misconfigured
from service.up import confine
from service.up import nats_server as nats_module
from service.up import postgres as postgres_module
from service.up.child import Child, spawn
from service.up.data_dir import DataDir
from service.up.nats_server import NatsServer
from service.up.postgres import PostgresServer
from tests.servers.nats import MakeNats
from tests.servers.processes import gone, until


async def test_nats_keeps_what_it_acknowledged_and_its_url_over_a_kill(fresh_nats: MakeNats) -> None:
    server = await fresh_nats()
    url = server.url
    client = await nats.connect(url)
    await client.jsm().add_stream(name="S", subjects=["s.>"])
    acknowledged = await client.jetstream().publish("s.a", b"kept")
    await client.close()

    await server.kill()
    await server.restart()

    assert server.url == url
    client = await nats.connect(server.url)
    message = await client.jsm().get_msg("S", acknowledged.seq)
    await client.close()
    assert message.data == b"kept"


@pytest.mark.parametrize(("sync", "in_force"), [("always", "always"), ("relaxed", "every 120 s")])
async def test_nats_tells_the_sync_setting_in_force(fresh_nats: MakeNats, sync: str, in_force: str) -> None:
    server = await fresh_nats(sync=sync)
    assert await server.sync_in_force() == in_force


async def test_nats_takes_nobody_without_the_password_and_hides_it(fresh_nats: MakeNats, tmp_path: Path) -> None:
    server = await fresh_nats()
    _, port = server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    await reader.readline()
    writer.write(b"CONNECT {}\r\nPING\r\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert b"Authorization Violation" in answer
    config = next(tmp_path.rglob("nats.conf"))
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


async def test_nats_that_cannot_start_says_what_to_set(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    server = NatsServer(tmp_path / "nats", log_file=tmp_path / "log", binary=broken)
    with pytest.raises(Misconfigured, match=r"(?s)exit status 3.*no such luck.*HUBLOG_NATS_URL"):
        await server.start()


async def test_a_server_named_by_a_setting_that_cannot_start_is_blamed_on_the_setting(tmp_path: Path) -> None:
    place, log_file = tmp_path / "nowhere", tmp_path / "log"
    nats_server = NatsServer(tmp_path / "nats", log_file=log_file, binary=place)
    with pytest.raises(Misconfigured, match=f"(?s)cannot start.*HUBLOG_NATS_BIN is {place}: correct it"):
        await nats_server.start()
    postgres_server = PostgresServer(tmp_path / "postgres", log_file=log_file, binaries=place)
    with pytest.raises(Misconfigured, match=f"(?s)initdb failed.*HUBLOG_POSTGRES_BIN is {place}: correct it"):
        await postgres_server.start()


async def test_a_setting_that_nobody_set_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_module, "find_binary", lambda: tmp_path / "nowhere")
    with pytest.raises(Misconfigured, match="cannot start") as raised:
        await NatsServer(tmp_path / "nats", log_file=tmp_path / "log").start()
    assert "HUBLOG_NATS_BIN" not in raised.value.message


async def test_postgres_keeps_its_rows_and_its_dsn_over_a_kill(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres", log_file=tmp_path / "log")
    await server.start()
    dsn = server.dsn
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    bystander = await psycopg.AsyncConnection.connect(dsn)  # a backend that outlives the postmaster for a moment

    await server.kill()
    await server.restart()
    await bystander.close()

    assert server.dsn == dsn
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await (await connection.execute("TABLE t")).fetchall()
    await server.stop()
    assert rows == [(1,)]


async def test_postgres_listens_on_a_private_socket_only(postgres_server: PostgresServer) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_server.dsn) as connection:
        settings = await (
            await connection.execute(
                "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories')"
            )
        ).fetchone()
    assert settings is not None
    assert settings[0] == ""
    assert stat.S_IMODE(Path(settings[1]).stat().st_mode) == 0o700


async def test_postgres_finds_a_shorter_place_for_its_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    server = PostgresServer(folder, log_file=tmp_path / "log", durable=False)
    await server.start()
    socket_dir = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])
    async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
    await server.stop()
    assert not socket_dir.is_relative_to(folder)
    assert not socket_dir.exists()


async def test_postgres_survives_the_pid_file_of_a_run_whose_pid_is_a_strangers_today(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres", log_file=tmp_path / "log", durable=False)
    await server.start()
    await server.stop()
    (tmp_path / "postgres/data/postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n0\n{postgres_module.PORT}\n")
    server.forget_predecessor()
    await server.start()
    assert server.child is not None
    assert server.child.returncode is None
    await server.stop()


def test_a_missing_wheel_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_module.importlib.metadata, "files", lambda _: None)
    monkeypatch.setattr(postgres_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Misconfigured, match="HUBLOG_NATS_URL"):
        nats_module.find_binary()
    with pytest.raises(Misconfigured, match="HUBLOG_POSTGRES_DSN"):
        postgres_module.find_binaries()


SUPERVISOR = """
import asyncio, json, sys
from pathlib import Path
from service.up.data_dir import DataDir
from service.up.nats_server import NatsServer
from service.up.postgres import PostgresServer

async def main():
    place = await DataDir.claim(Path(sys.argv[1]))
    nats = NatsServer(place.nats, log_file=place.logs / "nats.log", inherit=(place.lock_fd,))
    postgres = PostgresServer(place.postgres, log_file=place.logs / "postgres.log", inherit=(place.lock_fd,))
    await nats.start()
    await postgres.start()
    print(json.dumps([nats.pid, postgres.pid]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_servers_die_with_a_killed_supervisor_and_a_successor_waits_for_them(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-P", "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pids = json.loads(supervisor.stdout.readline())
    try:
        with pytest.raises(Misconfigured, match=rf"in use by another hublog \(process {supervisor.pid}\)"):
            await DataDir.claim(tmp_path, patience_s=0)
    finally:
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
    successor = await DataDir.claim(tmp_path)
    successor.release()
    for pid in pids:
        await until(lambda pid=pid: gone(pid))


async def test_a_child_that_starts_after_its_parents_death_ends_at_once(tmp_path: Path) -> None:
    """The window between fork and prctl: the shim looks who its parent is."""
    program = ["/bin/sleep", "60"]
    child = spawn("sleeper", program, log_file=tmp_path / "log", death_signal=signal.SIGKILL)
    assert child.returncode is None
    assert await child.kill() == -signal.SIGKILL
    orphan = subprocess.Popen(confine.command(program, parent_pid=1, death_signal=signal.SIGKILL))
    assert await Child("orphan", orphan, tmp_path / "log").wait() == 125


async def test_a_data_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with pytest.raises(Misconfigured, match="--data-dir"):
        await DataDir.claim(occupied)


async def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    place = await DataDir.claim(tmp_path)
    first = place.secrets()
    assert place.secrets() == first
    assert len(first) == 43
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o600
    place.release()


async def test_secrets_on_a_full_disk_are_read_where_they_are_and_asked_for_where_not(tmp_path: Path) -> None:
    place = await DataDir.claim(tmp_path)
    draft = tmp_path / f".secrets.{os.getpid()}"
    draft.symlink_to("/dev/full")
    with pytest.raises(Misconfigured, match="secrets, cannot be written: No space left on device"):
        place.secrets()
    assert not (tmp_path / "secrets").exists()
    assert not draft.is_symlink()
    first = place.secrets()
    draft.symlink_to("/dev/full")
    assert place.secrets() == first
    place.release()


async def test_secrets_that_a_link_names_in_vain_are_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "secrets").symlink_to(tmp_path / "not mounted")
    place = await DataDir.claim(tmp_path)
    with pytest.raises(Misconfigured, match="secrets, cannot be read: No such file"):
        place.secrets()
    assert (tmp_path / "secrets").is_symlink()
    place.release()


@pytest.mark.parametrize("content", [b"junk\n", b"", b"\xff" * 43])
async def test_damaged_secrets_are_named_not_overwritten_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secrets").write_bytes(content)
    place = await DataDir.claim(tmp_path)
    with pytest.raises(Misconfigured, match="is damaged") as raised:
        place.secrets()
    place.release()
    assert str(tmp_path / "secrets") in raised.value.message
    assert "junk" not in raised.value.message
    assert "remove it" in raised.value.hint
    assert (tmp_path / "secrets").read_bytes() == content


async def test_secrets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    place = await DataDir.claim(tmp_path)
    with pytest.raises(Misconfigured, match="secrets, cannot be read: Is a directory"):
        place.secrets()
    place.release()
