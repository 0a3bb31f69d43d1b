"""``hublog tail`` on a real log: what is shown, chosen, and refused."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from events import invocation, session, subjects
from events.ids import HubName
from events.selector import All, Group
from service.cli.tail import Filter, follow
from service.log.author import Author
from service.log.jetstream import jetstream_log, migrate_log
from service.up.board import Entry, write_processes
from service.up.nats_server import NatsServer
from tests.servers.processes import until


@pytest.fixture
async def told(clean_nats: NatsServer) -> NatsServer:
    """A log with a session of each of two hubs, a membership and a call."""
    await migrate_log(clean_nats.url, random=b"abc")
    log = await jetstream_log(clean_nats.url, name="test")
    author = Author()
    for hub, ident in (("chat", "s-ann"), ("other", "s-bob")):
        at = subjects.HubSubjects(HubName(hub), 1)
        opened = session.Opened(node="n-0", incarnation="i", connection="c", user=ident[2:])
        last = await log.append(at.session(ident), [author.write(opened, actor=f"session:{ident}")], 0)
        if hub == "chat":
            joined = session.Joined(groups=("lobby",))
            await log.append(at.session(ident), [author.write(joined, actor="user:ann")], last)
            call = invocation.Requested(target="say", arguments=msgspec.Raw(b'["hi"]'), selector=Group(group="lobby"))
            await log.publish(at.group("lobby"), author.write(call, actor="system:api"))
    await log.close()
    return clean_nats


def tail(*options: str, url: str | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")}
    if url is not None:
        environment["HUBLOG_NATS_URL"] = url
    return subprocess.run(
        [sys.executable, "-P", "-m", "service", "tail", "--once", *options],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
        timeout=60,
    )


async def test_what_it_waits_for_is_said_soon_and_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("HUBLOG_NATS_URL", f"nats://ann:hush@{address},nats://hush@{address}")
        following = asyncio.create_task(
            follow(Filter(), after=None, lines=1, once=True, as_json=False, data_dir=None), name="tail"
        )
        said = ""

        def heard() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return said != "" or following.done()

        await until(heard, what="a word of it")
        assert not following.done(), "it was said before the end"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert said == f"connecting to NATS at nats://{address},nats://{address}\n"


def shown(output: str) -> list[str]:
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [f"{event['position'].partition('.')[2]} {event['type']}" for event in events]


EVERYTHING = ["0-1 session.opened.v1", "0-2 session.joined.v1", "0-3 invocation.requested.v1", "0-4 session.opened.v1"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(), EVERYTHING),
        (Filter(hub="chat"), EVERYTHING[:3]),
        (Filter(type="session"), [*EVERYTHING[:2], EVERYTHING[3]]),
        (Filter(type="session.joined"), EVERYTHING[1:2]),
        (Filter(type="sess"), []),
        (Filter(session="s-ann"), EVERYTHING[:2]),
        (Filter(group="lobby"), EVERYTHING[1:3]),
        (Filter(hub="other", group="lobby"), []),
    ],
)
async def test_filters_choose_by_what_an_event_concerns(
    told: NatsServer,
    chosen: Filter,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HUBLOG_NATS_URL", told.url)
    await follow(chosen, after=None, lines=10, once=True, as_json=True, data_dir=None)
    assert shown(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-n", "1", "--group", "lobby"), EVERYTHING[2:3]),
        (("-n", "1", "--session", "s-ann"), EVERYTHING[1:2]),
        (("-n", "2", "--type", "session"), [EVERYTHING[1], EVERYTHING[3]]),
        (("-n", "1"), EVERYTHING[3:]),
        (("-n", "0", "--group", "lobby"), []),
    ],
)
def test_the_lines_asked_for_are_the_last_that_fit(
    told: NatsServer, tmp_path: Path, options: tuple[str, ...], expected: list[str]
) -> None:
    assert shown(tail("--json", *options, url=told.url, cwd=tmp_path).stdout) == expected


async def test_the_newest_of_all_partitions_are_shown_in_the_order_of_their_times(
    clean_nats: NatsServer, tmp_path: Path
) -> None:
    """And the log says itself how it was made: whoever looks at it need not know."""
    await migrate_log(clean_nats.url, random=b"abc", partitions=3, max_age_s=3600)
    log = await jetstream_log(clean_nats.url, name="test", partitions=3, max_age_s=3600)
    call = invocation.Requested(target="say", selector=All())
    for hub in ("h0", "h1", "h0", "h1", "h3", "h1"):
        await log.publish(subjects.HubSubjects(HubName(hub), 3).all(), Author().write(call, actor="system:api"))
    await log.close()
    ran = await asyncio.to_thread(tail, "-n", "4", url=clean_nats.url, cwd=tmp_path)
    assert [line.split()[2] for line in ran.stdout.splitlines()] == ["h0", "h1", "h3", "h1"], ran.stderr
    assert len({line.split("-")[0] for line in ran.stdout.splitlines()}) == 3


def test_more_lines_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    ran = tail("-n", "9" * 20, url=None, cwd=tmp_path)
    assert ran.returncode == 2
    assert "--lines" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_line_says_where_when_what_and_by_whom(told: NatsServer, tmp_path: Path) -> None:
    ran = tail("--type", "invocation", url=told.url, cwd=tmp_path)
    (line,) = ran.stdout.splitlines()
    position, _time, hub, name, kind, group, what, *by = line.split()
    assert position.endswith(".0-3")
    assert (hub, name, kind, group, what) == ("chat", "invocation.requested", "group", "lobby", 'say("hi")')
    assert by == ["by", "system:api"]
    assert ran.stderr == ""


async def test_what_clients_name_can_neither_forge_a_line_nor_command_the_terminal(
    told: NatsServer, tmp_path: Path
) -> None:
    group, forged = "a\nb\x1b[31m", "k7qd.0-9 FORGED"
    arguments = msgspec.Raw('["\u009b2J\u202e 👩\u200d🚀"]'.encode())
    call = invocation.Requested(target=f"t\r\n{forged}", arguments=arguments, selector=Group(group=group))
    log = await jetstream_log(told.url, name="test")
    at = subjects.HubSubjects(HubName("chat"), 1)
    await log.publish(at.group(group), Author().write(call, actor=f"user:eve\n{forged}"))
    await log.close()
    ran = await asyncio.to_thread(tail, "-n", "1", url=told.url, cwd=tmp_path)
    (line,) = ran.stdout.splitlines()
    assert r"group a\nb\x1b[31m" in line
    assert r't\r\nk7qd.0-9 FORGED("\x9b2J\u202e 👩' + "\u200d🚀" in line
    assert line.endswith(r"by user:eve\nk7qd.0-9 FORGED")


def test_a_position_is_where_it_starts_and_that_of_another_epoch_is_refused(told: NatsServer, tmp_path: Path) -> None:
    first = json.loads(tail("--json", url=told.url, cwd=tmp_path).stdout.splitlines()[0])["position"]
    epoch = first.partition(".")[0]
    assert shown(tail("--json", "--after", f"{epoch}.0-3", url=told.url, cwd=tmp_path).stdout) == EVERYTHING[3:]
    refused = tail("--after", "zzzz.0-3", url=told.url, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"the log is at epoch {epoch}, not zzzz" in refused.stderr
    refused = tail("--after", f"{epoch}.1-3", url=told.url, cwd=tmp_path)
    assert refused.returncode == 2
    assert "is of partition 1" in refused.stderr
    refused = tail("--after", f"{epoch}.0-5", url=told.url, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"{epoch}.0-5 is ahead of the log, which ends at {epoch}.0-4" in refused.stderr


def test_it_finds_the_nats_of_the_up_that_runs_here_or_says_what_to_do(told: NatsServer, tmp_path: Path) -> None:
    nobody = tail(url=None, cwd=tmp_path)
    assert "connecting" not in nobody.stderr
    assert nobody.returncode == 2
    assert "start `hublog up`" in nobody.stderr
    (tmp_path / ".hublog").mkdir()
    write_processes(tmp_path / ".hublog/processes.json", [Entry("nats", 0, told.pid, told.url, None)])
    assert shown(tail("--json", url=None, cwd=tmp_path).stdout) == EVERYTHING
