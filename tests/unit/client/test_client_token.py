"""The access token of the Python client: where it comes from, when it is asked for again, and what refusals mean."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hublog import Client, ServerError, State, Unreachable
from hublog.access import refusal
from hublog.link import Timers
from tests.servers.fake_hub import FakeHub, FakeLink, fake_hub
from tests.servers.gateway import until

TIMERS = Timers(backoff_first_s=0.001, backoff_longest_s=0.01)


async def test_a_function_is_asked_at_each_connection() -> None:
    given: list[str] = []

    def next_token() -> str:
        given.append(f"t{len(given)}")
        return given[-1]

    async with fake_hub() as hub:
        client = Client(hub.url, "chat", token=next_token, timers=TIMERS)
        entering = client.__aenter__()
        link = await _opened(hub, entering)
        assert link.authorization == "Bearer t0"
        assert "access_token" not in link.query
        await link.close("token_expired: the access token has expired. Get a new one.", reconnect=True)
        link = await hub.accept()
        assert link.authorization == "Bearer t1"
        await link.opens()
        await until(lambda: client.state is State.ACTIVE, "the client to be back")
        await client.close()


async def test_without_a_token_none_is_sent() -> None:
    async with fake_hub() as hub:
        client = Client(hub.url, "chat", timers=TIMERS)
        link = await _opened(hub, client.__aenter__())
        assert link.authorization is None
        await client.close()


async def test_a_function_that_fails_is_asked_again_until_the_time_is_over() -> None:
    asked = 0

    async def broken() -> str:
        nonlocal asked
        asked += 1
        raise OSError("the issuer is away")

    async with fake_hub() as hub:
        with pytest.raises(Unreachable, match="OSError: the issuer is away"):
            async with Client(hub.url, "chat", token=broken, timers=TIMERS, connect_timeout_s=0.1):
                pass
        assert hub.requests == 0
    assert asked > 1


EXPIRED = 'Bearer realm="hublog", error="invalid_token", error_description="token_expired: the token has expired"'


async def test_an_expired_token_is_asked_for_again_and_a_fixed_one_is_the_end() -> None:
    given: list[str] = []

    def next_token() -> str:
        given.append("t")
        if len(given) == 3:
            hub.status = None
        return "t"

    async with fake_hub() as hub:
        hub.status, hub.headers = 401, {"WWW-Authenticate": EXPIRED}
        with pytest.raises(ServerError) as refused:
            async with Client(hub.url, "chat", token="old", timers=TIMERS):
                pass
        assert (refused.value.code, refused.value.message) == ("token_expired", "the token has expired")
        assert hub.requests == 1
        client = Client(hub.url, "chat", token=next_token, timers=TIMERS)
        await _opened(hub, client.__aenter__())
        assert len(given) == 3
        await client.close()


@pytest.mark.parametrize(
    ("status", "challenge", "code"),
    [
        (401, 'Bearer realm="hublog"', "token_missing"),
        (401, "", "token_missing"),
        (401, EXPIRED, "token_expired"),
        (403, 'Bearer realm="x", error="insufficient_scope", error_description="hub_forbidden: no"', "hub_forbidden"),
        (403, "", None),
        (400, "", None),
    ],
)
def test_what_a_refusal_means(status: int, challenge: str, code: str | None) -> None:
    error = refusal(status, {"WWW-Authenticate": challenge} if challenge else {})
    assert (error.code if error is not None else None) == code


async def _opened(hub: FakeHub, entering: Coroutine[Any, Any, Client]) -> FakeLink:
    waiting = asyncio.ensure_future(entering)
    link = await hub.accept()
    await link.opens()
    await waiting
    return link
