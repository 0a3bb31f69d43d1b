"""Clients that are suddenly gone, in every phase: nobody else feels it, and nothing of them stays."""

import asyncio

import pytest

from service.delivery.outbox import Outbox
from tests.servers.gateway import Node, until


class GoneTransport(asyncio.WriteTransport):
    """As uvloop's after the connection was lost."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def get_write_buffer_size(self) -> int:
        return 0


def test_an_outbox_without_a_transport_takes_frames_and_forgets_them():
    outbox = Outbox(GoneTransport(), 100, lambda: pytest.fail("not slow, gone"))
    outbox.uncork(b"{}")
    outbox.write(b"x")
    outbox.check_age(1e9, 1.0)
    assert not outbox.open


async def test_one_who_is_gone_does_not_keep_a_message_from_the_others(node: Node):
    async with node.client() as ann, node.client() as gone, node.client() as bob:
        for client in (ann, gone, bob):
            await client.call("hub.join", b'["red"]')
        node.log.may_append.clear()
        gone.send(b'{"type":1,"invocationId":"j","target":"hub.join","arguments":["blue"]}\x1e')
        await until(lambda: node.log.waiting == 1, "its join to wait for the log")
        connection = list(node.context.coordinator)[1]
        gone.writer.transport.abort()
        await until(connection.outbox._transport.is_closing, "the transport to be gone")
        await asyncio.sleep(0.05)  # some rounds of timers as well
        done = await ann.call("hub.invoke", b'[{"to":"group","group":"red"},"say",["hi"]]')
        assert done["result"]["outcome"] == "accepted"
        for client in (ann, bob):
            await client.record(containing=b'"say"')
        node.log.may_append.set()
    await node.empty()
