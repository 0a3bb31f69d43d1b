"""New connections are taken a few at a time, and all of them in the end."""

import asyncio
import errno
import socket

import pytest
from aiohttp import ClientSession, web

from service import accepting
from service.accepting import PacedSite

AT_ONCE = 200


async def _hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def _started(host: str = "127.0.0.1") -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.add_routes([web.get("/", _hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    await PacedSite(runner, host, 0).start()
    return runner, runner.addresses[0][1]


async def test_all_of_a_crowd_are_served_a_few_in_each_turn(monkeypatch: pytest.MonkeyPatch):
    accepted = 0
    most = 0
    real = socket.socket.accept

    def counted(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal accepted
        found = real(self)
        accepted += 1
        return found

    monkeypatch.setattr(socket.socket, "accept", counted)
    runner, port = await _started()
    try:
        crowd = [socket.socket() for _ in range(AT_ONCE)]
        for one in crowd:  # all of them before the loop may turn
            one.settimeout(0)
            assert one.connect_ex(("127.0.0.1", port)) in {0, errno.EINPROGRESS}
        async with asyncio.timeout(10):
            while accepted < AT_ONCE:
                before = accepted
                await asyncio.sleep(0)
                most = max(most, accepted - before)
        assert most == accepting.ACCEPTED_AT_ONCE
        loop = asyncio.get_running_loop()
        for one in crowd:
            await loop.sock_sendall(one, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert all([(await loop.sock_recv(one, 1_000)).startswith(b"HTTP/1.1 200") for one in crowd])
        for one in crowd:
            one.close()
    finally:
        await runner.cleanup()


async def test_it_goes_on_when_there_are_descriptors_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accepting, "FULL_S", 0.01)
    real = socket.socket.accept
    refusals = 3

    def failing(self: socket.socket) -> tuple[socket.socket, object]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    runner, port = await _started()
    try:
        async with ClientSession() as client, client.get(f"http://127.0.0.1:{port}/") as answer:
            assert await answer.text() == "hello"
        assert refusals == 0
    finally:
        await runner.cleanup()


async def test_an_address_that_is_taken_is_an_error_and_a_stopped_one_is_free():
    runner, port = await _started()
    other = web.AppRunner(web.Application())
    await other.setup()
    with pytest.raises(OSError, match="in use"):
        await PacedSite(other, "127.0.0.1", port).start()
    await other.cleanup()
    await runner.cleanup()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
