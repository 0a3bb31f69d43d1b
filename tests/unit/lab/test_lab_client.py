"""The load client and the measurements against the least of a hub: it answers, echoes, and can misbehave on demand."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from lab.client import CallFailed, Crowd, marked_arguments
from lab.connect import connect
from lab.fanout import IN_FLIGHT, Rounds, fanout
from lab.frames import TEXT, client_frame
from lab.install import Gateway, Install
from lab.latency import Plan, latency
from lab.ledger import Tally
from lab.pacer import Pacer


class LeastHub:
    """Understands just the frames that the load client makes (masking key of zeros), and sends one to all."""

    def __init__(self, misbehave: str = "") -> None:
        self.misbehave = misbehave
        self.writers: list[asyncio.StreamWriter] = []
        self.paths: list[str] = []
        self.pings = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths.append(head.split(b" ")[1].decode())
            if self.misbehave == "404":
                writer.write(b"HTTP/1.1 404 Not Found\r\n\r\nno such hub")
            else:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                while await self._one(reader, writer):
                    pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, size = await reader.readexactly(2)
        size &= 0x7F
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        payload = (await reader.readexactly(4 + size))[4:]
        if first & 0x0F != TEXT:
            return False
        for record in payload.split(b"\x1e")[:-1]:
            self._record(json.loads(record), record, writer)
        return True

    def _record(self, message: dict[str, object], raw: bytes, writer: asyncio.StreamWriter) -> None:
        if "protocol" in message:
            self.writers.append(writer)
            self._say(writer, b'{"error":"bad_handshake: no"}' if self.misbehave == "handshake" else b"{}")
        elif message["type"] == 6:
            self.pings += 1
        elif message["type"] == 1:
            if message["target"] == "hub.invoke":
                raw_arguments = raw[raw.index(b'["hublog-bench"') : raw.rindex(b"]}")]
                for one in self.writers[1:] if self.misbehave == "forget one" else self.writers:
                    self._say(one, b'{"type":1,"arguments":' + raw_arguments + b',"target":"bench"}')
            answer: dict[str, object] = {"type": 3, "invocationId": message["invocationId"]}
            if message["target"] == "fail":
                answer["error"] = "no: no"
            else:
                answer["result"] = message["arguments"] if message["target"] == "echo" else {"outcome": "accepted"}
            self._say(writer, json.dumps(answer).encode())

    def _say(self, writer: asyncio.StreamWriter, record: bytes) -> None:
        frame = bytearray(client_frame(record + b"\x1e"))
        # A server's frame is a client's without the mask and its bit.
        frame[1] &= 0x7F
        at = 2 if frame[1] < 126 else 4
        del frame[at : at + 4]
        writer.write(bytes(frame))


@contextlib.asynccontextmanager
async def least_hub(misbehave: str = "") -> AsyncIterator[tuple[LeastHub, str]]:
    hub = LeastHub(misbehave)
    server = await asyncio.start_server(hub.serve, "127.0.0.1", 0)
    async with server:
        yield hub, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in hub.writers:
            writer.close()


def quiet(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total, what


async def test_a_crowd_opens_calls_and_closes():
    async with least_hub() as (hub, url):
        crowd = Crowd(url, "chat", users="u")
        await crowd.open(20)
        assert crowd.failures == []
        assert min(hub.paths) == "/hubs/chat?user=u0"
        assert await crowd.clients[0].call("echo", 1, "é") == [1, "é"]
        with pytest.raises(CallFailed, match="no: no"):
            await crowd.clients[0].call("fail")
        await crowd.close()
        assert set(crowd.ended) == {"closed by the bench"}


@pytest.mark.parametrize(("misbehave", "said"), [("404", "status 404"), ("handshake", "bad_handshake: no")])
async def test_what_refuses_to_open_is_counted_with_its_reason(misbehave: str, said: str):
    async with least_hub(misbehave) as (_, url):
        crowd = Crowd(url, "chat")
        await crowd.open(3)
        await crowd.close()
        assert len(crowd.failures) == 3
        assert said in crowd.failures[0]


async def test_nobody_there_is_a_failure_too():
    crowd = Crowd("http://127.0.0.1:1", "chat")
    await crowd.open(1)
    await crowd.close()
    assert len(crowd.failures) == 1


async def test_marked_invocations_reach_the_ledger_with_their_delay():
    async with least_hub() as (_, url):
        crowd = Crowd(url, "chat")
        await crowd.open(3)
        heard = Rounds(3, 2, 0)
        crowd.listen(heard)
        for message in range(2):
            arguments = json.loads(marked_arguments(message, 0, 300))
            await crowd.clients[0].call("hub.invoke", {"to": "all"}, "bench", arguments)
        async with asyncio.timeout(10):
            for _ in range(IN_FLIGHT + 2):  # one slot is given back for each message that all have
                await heard.slots.acquire()
        assert heard.ledger.tally() == Tally(6, 6, 0, 0, 0)
        await crowd.close()


@pytest.mark.parametrize("size", [60, 300, 5000])
def test_marked_arguments_are_json_of_the_size_asked_for(size: int):
    arguments = marked_arguments(7, 123_456_789_012, size)
    assert len(arguments) == size
    assert json.loads(arguments)[:3] == ["hublog-bench", 7, 123_456_789_012]


async def test_connect_measures_what_it_can_see(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab.connect.SETTLE_S", 0)
    async with least_hub() as (_, url):
        found = await connect(Gateway(url), 5, quiet)
        assert (found.sessions, found.failed, found.kib_each) == (5, 0, None)
        assert found.opens_per_s > 0


async def test_fanout_reaches_everyone_once():
    async with least_hub() as (_, url):
        found = await fanout(Gateway(url), 8, 20, 300, quiet)
        assert (found.lost, found.duplicated, found.out_of_order) == (0, 0, 0)
        assert found.last_p50_ms is not None


async def test_fanout_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab.fanout.IDLE_MAX_S", 0.05)
    async with least_hub("forget one") as (_, url):
        found = await fanout(Gateway(url), 4, 10, 300, quiet)
        assert found.lost > 0


async def test_latency_is_timed_to_every_receiver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lab.latency.WARM_UP_MAX", 5)
    async with least_hub() as (_, url):
        found = await latency(Install([Gateway(url), Gateway(url)], "relaxed", "/"), Plan(200, 0.2, 3), quiet)
        assert (found.lost, found.duplicated, found.out_of_order, found.refused) == (0, 0, 0, 0)
        assert found.p50_ms is not None
        assert found.answered_p50_ms is not None


async def test_the_pacer_drops_no_beat_even_if_the_loop_was_late():
    beats: list[int] = []
    enough = asyncio.Event()

    def on_beats(count: int) -> None:
        beats.append(count)
        if sum(beats) >= 50:
            enough.set()

    pacer = Pacer(5_000, on_beats)
    pacer.start()
    until = asyncio.get_running_loop().time() + 0.005
    while asyncio.get_running_loop().time() < until:
        pass  # the loop is busy elsewhere for 25 beats
    async with asyncio.timeout(10):
        await enough.wait()
    pacer.stop()
    assert max(beats) >= 10
