"""nats-server is killed and stays away, on an installation that uses one from outside.

Shorter than the grace: nobody is dropped, no session ends, and what was acknowledged reaches everybody once and in
order; meanwhile commands are refused at once, as worth trying again. Longer than the grace: clients are sent elsewhere,
and what they missed is there when they resume.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from service.up.child import spawn
from service.up.nats_server import NatsServer
from tests.servers.health import readiness, wait_ready, wait_unready
from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.traffic import Sender, by, code_of, heard, pause, told
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

AWAY_S = 20.0
RED_WITHIN_S = 5.0
FAILS_WITHIN_S = 1.0
EACH = 10  # clients of either kind on either gateway
LINES_MAX = 10  # per process and outage: connection, circuit, lease, delivery and node, on their way down and up again
PROBE_EVERY_S = 0.5
RETRYABLE = {"log_unavailable", "suspended", "log_overloaded", "outcome_unknown"}
GRACE_S = 3
COMMANDS = (
    ("hub.invoke", b'[{"to":"others"},"probe",[]]'),
    ("hub.join", b'["lobby"]'),
    ("hub.leaveAll", b"[]"),
)


@pytest.fixture(scope="module")
def servers(nats: NatsServer) -> dict[str, str]:
    return {"HUBLOG_NATS_URL": nats.url}


class Logs:
    """What the processes of an installation write from now on."""

    def __init__(self, folder: Path) -> None:
        self._at = {file: file.stat().st_size for file in folder.glob("*.log")}

    def new(self) -> dict[str, list[str]]:
        return {file.stem: file.read_bytes()[at:].decode().splitlines() for file, at in self._at.items()}


async def test_for_twenty_seconds(served: Up, nats: NatsServer, gateways: tuple[str, str], api: Api, hub: str) -> None:
    admins = [served.entry("gateway", index).admin_url for index in range(2)]
    async with AsyncExitStack() as stack:

        async def client(gateway: str, query: str = "") -> RawClient:
            return await stack.enter_async_context(RawClient(gateway, hub, query))

        plain = [await client(gateway) for gateway in gateways for _ in range(EACH)]
        resumable = [await client(gateway, "?resumable=1") for gateway in gateways for _ in range(EACH)]
        for one in resumable:
            await one.call("hub.session", b"[]")
        probes = [await client(gateway) for gateway in gateways]
        senders = [Sender(await client(gateway), name) for gateway, name in zip(gateways, "ab", strict=True)]
        everybody = [*plain, *resumable]
        await until(lambda: all(len(heard(one)) > 20 for one in everybody), what="traffic everywhere")
        logs = Logs(served.data_dir / "logs")

        await nats.kill()
        back = asyncio.Event()
        asyncio.get_running_loop().call_later(AWAY_S, back.set)
        for wrong in await asyncio.gather(*(wait_unready(admin, timeout_s=RED_WITHIN_S) for admin in admins)):
            assert "HUBLOG_NATS_URL" in wrong["nats"]
        refused = await asyncio.gather(*(_refusals(probe, back) for probe in probes))
        for admin in admins:
            assert not (await readiness(admin))[0]
        late = RawClient(gateways[0], hub, handshake=None)
        async with late:
            late.send(b'{"protocol":"json","version":1}\x1e')
            assert code_of(json.loads(await late.record(containing=b'"error"'))) in RETRYABLE
        await nats.restart()
        await asyncio.gather(*(wait_ready(admin) for admin in admins))

        before = len(heard(plain[0]))
        await until(lambda: len(heard(plain[0])) > before + 40, what="traffic again")
        await asyncio.gather(*(sender.finish() for sender in senders))
        sent = await told(api, *senders)
        for one in everybody:
            await one.record(containing=f'"{sent[-1]}"'.encode())
            assert not one.ended
            assert heard(one) == sent, "lost, twice, or out of order"
        for name, sender in zip("ab", senders, strict=True):
            assert set(sender.acknowledged()) <= set(sent)
            assert len(sender.answers()) == sender.sent, "every call was answered"
            assert set(sender.refused()) <= RETRYABLE
            assert sender.refused().total() > AWAY_S / 2, "the outage was felt"
            assert by(name, sent) == sorted(by(name, sent))
        assert all(len(codes) > AWAY_S / 2 for codes in refused)
        for kind in ("session.detached", "session.closed"):
            assert await api.items("events", type=kind) == []
        assert {node["state"] for node in await api.items("/v1/nodes")} == {"started"}
        said = logs.new()
        assert set(said) >= {"gateway-0", "gateway-1", "projector", "api"}
        for process, lines in said.items():
            events = Counter(json.loads(line)["event"] for line in lines)
            assert events.total() <= LINES_MAX, f"{process}: {lines}"
            assert max(events.values(), default=1) == 1, f"one line per change of state; {process}: {lines}"


async def _refusals(client: RawClient, back: asyncio.Event) -> list[str]:
    """Every command in turn while NATS is away; the codes with which they were refused, at once."""
    codes = []
    while not back.is_set():
        for command, arguments in COMMANDS:
            async with asyncio.timeout(FAILS_WITHIN_S):
                answer = await client.call(command, arguments)
            assert "error" in answer, answer
            assert code_of(answer) in RETRYABLE
            codes.append(code_of(answer))
        assert "error" not in await client.call("hub.groups", b"[]"), "what the node knows, it says"
        await pause(back, PROBE_EVERY_S)
        assert not client.ended
    return codes


@pytest_asyncio.fixture(loop_scope="module")
async def impatient(served: Up, nats: NatsServer, tmp_path: Path) -> AsyncIterator[str]:
    """A third gateway of the installation, which gives up soon."""
    environment = {
        **served.environment,
        "HUBLOG_NATS_URL": nats.url,
        "HUBLOG_NATS_GRACE": str(GRACE_S),
        "HUBLOG_POSTGRES_DSN": served.entry("postgres").url or "",
        "HUBLOG_SECRETS": (served.data_dir / "secrets").read_text().strip(),
        "HUBLOG_AUTH": "none",
        "HUBLOG_NODE": "impatient",
    }
    program = [sys.executable, "-P", "-m", "service", "gateway", "--index", "2"]
    child = spawn(
        "impatient",
        program,
        log_file=tmp_path / "gateway.log",
        death_signal=signal.SIGTERM,
        env={**os.environ, **environment},
    )
    try:
        await wait_ready(f"http://127.0.0.1:{served.base + 202}")
        yield f"http://127.0.0.1:{served.base + 2}"
    finally:
        await child.stop(((signal.SIGTERM, 20.0),))


async def test_for_longer_than_the_grace(
    served: Up, nats: NatsServer, impatient: str, gateways: tuple[str, str], api: Api, hub: str
) -> None:
    async with AsyncExitStack() as stack:

        async def client(gateway: str, query: str = "") -> RawClient:
            return await stack.enter_async_context(RawClient(gateway, hub, query))

        plain = [await client(impatient) for _ in range(EACH)]
        resumable = [await client(impatient, "?resumable=1") for _ in range(EACH)]
        sessions = [(await one.call("hub.session", b"[]"))["result"] for one in resumable]
        staying = await client(gateways[1])
        sender = Sender(await client(gateways[0]), "c")
        await until(lambda: all(len(heard(one)) > 20 for one in resumable), what="traffic everywhere")

        await nats.kill()
        for one in (*plain, *resumable):
            await one.end()
            close = json.loads(one.records[-1])
            assert (close["type"], close["allowReconnect"]) == (7, True)
            assert code_of(close) == "shutdown"
        assert not staying.ended
        await nats.restart()
        await asyncio.gather(*(wait_ready(served.entry("gateway", index).admin_url) for index in range(2)))
        missed = len(heard(staying))
        await until(lambda: len(heard(staying)) > missed + 20, what="traffic again")

        # Half come back where they were, half on another gateway; the log has what was said meanwhile.
        await wait_ready(f"http://127.0.0.1:{served.base + 202}")
        new = [
            await client(
                (impatient, gateways[1])[number % 2],
                f"?resumable=1&resume={session['resumeToken']}&cursor={_cursor(before)}",
            )
            for number, (before, session) in enumerate(zip(resumable, sessions, strict=True))
        ]
        answers = [(await one.call("hub.session", b"[]"))["result"] for one in new]
        assert [one["sessionId"] for one in answers] == [one["sessionId"] for one in sessions]
        assert all(one["resumed"] and one["resync"] is None for one in answers)
        await sender.finish()
        sent = await told(api, sender)
        assert set(sender.acknowledged()) <= set(sent)
        for before, after in zip(resumable, new, strict=True):
            await after.record(containing=f'"{sent[-1]}"'.encode())
            assert heard(before) + heard(after) == sent, "lost, twice, or out of order"
        detached = await api.items("events", type="session.detached")
        assert {one["data"]["reason"] for one in detached} <= {"transport_error"}
        # What the end of a connection appends has no answer to wait for: one may be between two attempts still.
        await api.until("events", lambda found: len(found) >= EACH, type="session.closed")
        closed = await api.items("events", type="session.closed")
        assert len({one["subject"] for one in closed}) == len(closed) == EACH, "of plain ones, each once"


def _cursor(client: RawClient) -> str:
    """The last position that it was sent."""
    last = [one for one in client.records if b'"target":"tell"' in one][-1]
    return str(json.loads(last)["arguments"][-1])
