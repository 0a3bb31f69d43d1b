"""What ``service/log/jetstream/client.py`` relies on in nats-py. Fails when nats-py changes underneath.

The subclass overrides private methods and touches private attributes: each is named here, with the shape it must have.
"""

import asyncio
import inspect
import textwrap

import pytest
from nats.aio import client as nats_client
from nats.aio.client import Client
from nats.protocol.parser import Parser

from service.log.jetstream.client import Listening, SyncClient, connect

OVERRIDDEN = {
    "_process_msg": ["self", "sid", "subject", "reply", "data", "headers"],
    "_process_pong": ["self"],
    "_process_info": ["self", "info", "initial_connection"],
    "_process_err": ["self", "err_msg"],
    "_process_op_err": ["self", "e"],
    "_send_ping": ["self", "future"],
    "_read_loop": ["self"],
    "flush": ["self", "timeout"],
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_have_the_shape_they_had(name: str) -> None:
    method = getattr(Client, name)
    assert inspect.iscoroutinefunction(method)
    assert list(inspect.signature(method).parameters) == OVERRIDDEN[name]


def test_the_state_is_where_it_was() -> None:
    client = Client()
    assert client._subs == {}
    assert client._sid == 0
    assert client._pending == []
    assert client._pending_data_size == 0
    assert client._pongs == []
    assert client._pings_outstanding == 0
    assert client._flush_queue is None
    assert client._transport is None
    assert client._reading_task is None
    assert client._max_payload == 1024 * 1024
    assert client._status == Client.DISCONNECTED
    assert isinstance(client._ps, Parser)


def source(of: object) -> str:
    return textwrap.dedent(inspect.getsource(of))  # type: ignore[arg-type]


def test_every_loss_of_the_connection_assigns_the_status_first() -> None:
    """Our ``_status`` is a property: that is how observers hear of the loss before anything else happens."""
    lost = source(Client._process_op_err)
    assert lost.index("self._status = Client.RECONNECTING") < lost.index("create_task(self._attempt_reconnect())")
    assert "await" not in lost[: lost.index("self._status = Client.RECONNECTING")]
    forced = source(Client.force_reconnect)
    assert forced.index("self._status = Client.RECONNECTING") < forced.index("create_task(self._attempt_reconnect())")
    closed = source(Client._close)
    assert closed.index("self._status = Client.CLOSED") < closed.index("await")


def test_subscriptions_are_replayed_in_one_go_and_flushed_before_the_reconnect_is_told() -> None:
    again = source(Client._attempt_reconnect)
    init = again.index("await self._process_connect_init()")
    replay = again.index("for sid, sub in self._subs.items()")
    assert "await" not in again[init + len("await") : replay]  # nothing of ours can be written in between
    assert replay < again.index("await self.flush()") < again.index("await self._reconnected_cb()")


def test_a_listening_has_all_that_nats_py_asks_of_a_subscription() -> None:
    """Everything read from a member of ``_subs``, outside the path that we replace."""
    listening = Listening(SyncClient(), 1, "a.b", lambda *_: None)
    whole = "".join(source(getattr(Client, name)) for name in ("_attempt_reconnect", "_close", "drain"))
    asked = {word.split(".")[1] for word in _words(whole) if word.startswith("sub.")}
    assert asked == {
        "_max_msgs",
        "_received",
        "_subject",
        "_queue",
        "_wait_for_msgs_task",
        "_message_iterator",
        "_pending_next_msgs_calls",
        "_drain",
    }
    assert all(hasattr(listening, name) for name in asked)


def _words(text: str) -> set[str]:
    cleaned = "".join(letter if letter.isalnum() or letter in "._" else " " for letter in text)
    return set(cleaned.split())


def test_the_flusher_takes_a_finished_future_and_the_whole_buffer() -> None:
    flusher = source(Client._flusher)
    assert "await self._flush_queue.get()" in flusher
    assert "self._transport.writelines(self._pending[:])" in flusher
    assert "if not future.done():" in flusher


def test_the_version_is_the_one_that_was_read() -> None:
    assert nats_client.__version__.startswith("2.16.")


MESSAGE = b"HMSG lv.0.h.all 1 32 37\r\nNATS/1.0\r\nNats-Sequence: 123\r\n\r\nhello\r\n"


async def test_the_parser_hands_messages_over_synchronously_with_raw_headers() -> None:
    client = SyncClient()
    heard: list[tuple[bytes, bytes, bytes, bytes | None]] = []
    client._subs[1] = Listening(client, 1, "lv.>", lambda *parts: heard.append(parts))
    parsing = client._ps.parse(MESSAGE + b"MSG lv.0.h.u.a 1 reply.to 2\r\nhi\r\n" + MESSAGE[:40])
    with pytest.raises(StopIteration):
        parsing.send(None)  # to the end without once giving control to the loop
    assert heard == [
        (b"lv.0.h.all", b"", b"hello", b"NATS/1.0\r\nNats-Sequence: 123\r\n\r\n"),
        (b"lv.0.h.u.a", b"reply.to", b"hi", None),
    ]
    await client._ps.parse(MESSAGE[40:])
    assert len(heard) == 3


async def test_a_callback_that_raises_leaves_the_parser_whole() -> None:
    client = SyncClient()
    heard: list[bytes] = []

    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    client._subs[1] = Listening(client, 1, "a", fail)
    client._subs[2] = Listening(client, 2, "b", lambda _s, _r, payload, _h: heard.append(payload))
    await client._ps.parse(b"MSG a 1 1\r\nx\r\nMSG b 2 1\r\ny\r\n")
    assert heard == [b"y"]


class Socket:
    """What the client writes to, and what it says once it is closed, as uvloop's does."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def writelines(self, lines: list[bytes]) -> None:
        if self.closed:
            raise RuntimeError("unable to perform operation on a closed TCPTransport; the handler is closed")
        self.written.append(b"".join(lines))


async def test_the_first_of_a_turn_goes_out_at_once_and_the_others_together_behind_it() -> None:
    client, socket = SyncClient(), Socket()
    client._status = Client.CONNECTED
    await client._regained()
    client._transport = socket  # type: ignore[assignment]
    for payload in (b"1", b"2", b"3"):
        client.send("a", "", payload)
    assert socket.written == [b"PUB a  1\r\n1\r\n"]
    await asyncio.sleep(0)
    assert socket.written[1:] == [b"PUB a  1\r\n2\r\nPUB a  1\r\n3\r\n"]
    assert (client._pending, client._pending_data_size) == ([], 0)
    client.send("a", "", b"4")
    client.send("a", "", b"5")
    client._status = Client.RECONNECTING  # what was not written yet is for whoever asked for it to send again
    await asyncio.sleep(0)
    assert socket.written[2:] == [b"PUB a  1\r\n4\r\n"]


async def test_what_goes_to_a_socket_that_was_just_closed_is_lost_without_a_word() -> None:
    client, socket = SyncClient(), Socket()
    client._status = Client.CONNECTED
    await client._regained()
    client._transport = socket  # type: ignore[assignment]
    socket.closed = True
    client.send("a", "", b"1")
    client.send("a", "", b"2")
    await asyncio.sleep(0)
    assert (socket.written, client._pending, client._pending_data_size) == ([], [], 0)


async def test_what_is_written_is_in_the_buffer_in_order_and_gone_with_the_connection() -> None:
    client = SyncClient()
    client._flush_queue = asyncio.Queue()
    client._status = Client.CONNECTED
    await client._regained()
    seen: list[str] = []

    class Observer:
        def lost(self) -> None:
            seen.append("lost")

        def regained(self) -> None:
            seen.append("regained")

    client.observe(Observer())
    listening = client.listen("a.*", lambda *_: None)
    client.send("a.b", "r", b"xyz")
    client.send("a.b", "r", b"xyz", b"NATS/1.0\r\n\r\n")
    listening.unsubscribe()
    assert b"".join(client._pending) == (
        b"SUB a.* 1\r\nPUB a.b r 3\r\nxyz\r\nHPUB a.b r 12 15\r\nNATS/1.0\r\n\r\nxyz\r\nUNSUB 1\r\n"
    )
    assert client._pending_data_size == sum(map(len, client._pending))
    assert client._flush_queue.qsize() == 1  # one kick for all of it
    client._status = Client.RECONNECTING
    assert seen == ["lost"]
    assert client._pending == []
    assert not client.connected
    client._status = Client.CONNECTED  # not before the subscriptions are replayed and flushed
    assert not client.connected
    await client._regained()
    assert seen == ["lost", "regained"]


async def test_who_gives_up_connecting_leaves_no_socket_behind() -> None:
    """To a server that takes the connection and says nothing."""
    come, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        come.set()
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1") as server:
        connecting = asyncio.ensure_future(connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", name="t"))
        await come.wait()
        for _ in range(10):  # it waits for the first line now: wait_for() forgets a cancellation that meets its result
            await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.wait_for(gone.wait(), 2)
