"""`hublog up` that asks for access tokens, on every address: stock clients, the Python client, the API, the tools.

Tokens are minted by `hublog token` and by the code behind it; none may be found in any log afterwards.
"""

import asyncio
import os
import secrets
import sys
from typing import Any

import aiohttp
import pytest

from hublog import Client, ServerError, State
from service.access.bearer import LEEWAY_S
from service.process.access import mint
from service.settings import Settings
from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.stock import CallError, StockClients
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "HUBLOG_AUTH": "jwt",
    "HUBLOG_JWT_KEY": secrets.token_urlsafe(32),
    "HUBLOG_JWT_AUDIENCE": "hublog",
    "HUBLOG_HOST": "0.0.0.0",
}
FORGED = {**SETTINGS, "HUBLOG_JWT_KEY": secrets.token_urlsafe(32)}
BOTH = ("hublog:read", "hublog:write")


def token(
    user: str | None = "ann",
    *hubs: str,
    ttl_s: float = 600,
    scopes: tuple[str, ...] = (),
    meta: dict[str, Any] | None = None,
    by: dict[str, str] = SETTINGS,
) -> str:
    settings = Settings.read(by, "token")
    return mint(settings, user=user, hubs=hubs, scopes=scopes, metadata=meta, ttl_s=round(ttl_s))


def ends_in(seconds: float) -> float:
    """A lifetime after which, with the leeway, a token is good for that long."""
    return seconds - LEEWAY_S


async def asked_api(served: Up, hub: str, bearer: str | None) -> Api:
    api = Api(served.entry("api").url or "", hub)
    await api.__aenter__()
    if bearer is not None:
        api._session.headers["Authorization"] = f"Bearer {bearer}"
    return api


async def printed(*arguments: str, **more: str) -> tuple[int | None, str, str]:
    """What `hublog` answers, run as people run it."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service", *arguments),
        env={**{name: value for name, value in os.environ.items() if not name.startswith("HUBLOG_")}, **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return child.returncode, out.decode().strip(), err.decode()


async def test_people_mint_a_token_and_stock_clients_talk_with_it(
    served: Up, gateways: tuple[str, str], hub: str, clients: StockClients
):
    assert "0.0.0.0" not in str(gateways)
    status, minted, _ = await printed(
        *("token", "--user", "ann", "--hub", hub, "--meta", '{"device":"phone"}', "--ttl", "5m"), **SETTINGS
    )
    assert status == 0
    ann = await clients.start("ann", gateways[0], hub, tokens=(minted,))
    bob = await clients.start("bob", gateways[1], hub, tokens=(token("bob", hub),), skip_negotiation=True)
    assert (await ann.invoke("hub.session"))["userId"] == "ann"
    await ann.call({"to": "user", "user": "bob"}, "hello")
    await bob.hears("say", "hello")
    api = await asked_api(served, hub, token(None, scopes=("hublog:read",)))
    (found,) = await api.until("sessions", lambda items: len(items) == 1, user="ann")
    assert found["metadata"] == {"device": "phone"}
    await api.__aexit__()
    await ann.stop()
    await bob.stop()


@pytest.mark.parametrize("skip_negotiation", [False, True])
async def test_stock_clients_see_why_they_may_not(
    gateways: tuple[str, str], hub: str, clients: StockClients, skip_negotiation: bool
):
    for bad, status in (
        ((), 401),
        (("nonsense",), 401),
        ((token("ann", hub, by=FORGED),), 401),
        ((token("ann", hub, ttl_s=ends_in(-5)),), 401),
        ((token("ann", "another-hub"),), 403),
        ((token(None, hub),), 401),
    ):
        with pytest.raises(CallError) as refused:
            await clients.start("x", gateways[0], hub, tokens=bad or None, skip_negotiation=skip_negotiation)
        # Without negotiation the stock client does not tell the status; it fails all the same.
        said = "WebSocket failed to connect" if skip_negotiation else f"Status code '{status}'"
        assert said in str(refused.value)


async def test_a_stock_client_comes_back_with_its_next_token(
    gateways: tuple[str, str], hub: str, clients: StockClients
):
    soon = token("ann", hub, ttl_s=ends_in(2))
    ann = await clients.start("ann", gateways[0], hub, tokens=(soon, soon, token("ann", hub)), retry_ms=(0, 100, 1_000))
    said = await ann.meets("reconnecting")
    assert said is not None
    assert "token_expired: " in said
    await ann.meets("reconnected")
    assert (await ann.invoke("hub.session"))["userId"] == "ann"
    await ann.stop()


async def test_the_python_client_resumes_with_its_next_token(gateways: tuple[str, str], hub: str):
    given: list[str] = []

    async def next_token() -> str:
        given.append(token("ann", hub, ttl_s=ends_in(2) if not given else 600))
        return given[-1]

    heard: list[int] = []
    states: list[State] = []
    client = Client(gateways, hub, token=next_token)
    client.on("count", heard.append)
    client.on_state(states.append)
    async with client, Client(gateways[1], hub, token=token("bob", hub)) as bob:
        before = client.session_id
        said = 0
        async with asyncio.timeout(20):
            while len(given) < 2:  # through the end of the first token
                await bob.invoke({"to": "user", "user": "ann"}, "count", said)
                said += 1
        await bob.invoke({"to": "user", "user": "ann"}, "count", said)
        await until(lambda: len(heard) == said + 1, what="everything to arrive")
        assert client.session_id == before
    assert heard == list(range(said + 1))
    assert State.RECONNECTING in states
    assert len(given) == 2


@pytest.mark.parametrize(
    ("kind", "code"),
    [("none", "token_missing"), ("forged", "token_invalid"), ("old", "token_expired"), ("elsewhere", "hub_forbidden")],
)
async def test_the_python_client_says_why_it_may_not(gateways: tuple[str, str], hub: str, kind: str, code: str):
    given = {
        "none": None,
        "forged": token("ann", hub, by=FORGED),
        "old": token("ann", hub, ttl_s=ends_in(-5)),
        "elsewhere": token("ann", "another-hub"),
    }[kind]
    with pytest.raises(ServerError) as refused:
        async with Client(gateways, hub, token=given):
            pass
    assert refused.value.code == code
    assert not refused.value.retryable
    assert given is None or given not in str(refused.value)


async def test_the_api_asks_for_a_scope_and_keeps_to_its_hubs(served: Up, hub: str):
    reader = token("ann", hub, scopes=("hublog:read",))
    writer = token("ann", hub, scopes=("hublog:write",))
    admin = token("ann", scopes=BOTH)
    body = b'{"selector":{"to":"all"},"target":"say"}'
    post = ("POST", "invocations", body)
    for bearer, request, expected in (
        (None, ("GET", "sessions"), (401, "token_missing")),
        (None, post, (401, "token_missing")),
        (token("ann", by=FORGED, scopes=BOTH), ("GET", "sessions"), (401, "token_invalid")),
        (token("ann", scopes=BOTH, ttl_s=ends_in(-5)), ("GET", "sessions"), (401, "token_expired")),
        (token("ann"), ("GET", "sessions"), (403, "scope_missing")),
        (reader, post, (403, "scope_missing")),
        (writer, ("GET", "sessions"), (403, "scope_missing")),
        (reader, ("GET", "/v1/hubs/another-hub/sessions"), (403, "hub_forbidden")),
        (reader, ("GET", "/v1/hubs"), (403, "hub_forbidden")),
        (reader, ("GET", "/v1/nodes"), (403, "hub_forbidden")),
        (writer, ("POST", "invocations?user=bob", body), (400, "invalid_query")),
    ):
        api = await asked_api(served, hub, bearer)
        assert await api.refused(*request) == expected, request
        await api.__aexit__()
    api = await asked_api(served, hub, admin)
    assert (await api.raw("GET", "/v1/nodes"))[0] == 200
    assert (await api.raw("GET", "/v1/hubs"))[0] == 200
    called = await api.call("POST", "invocations", {"selector": {"to": "all"}, "target": "say"})
    (event,) = await api.until("events", lambda items: len(items) == 1)
    assert (event["actor"], event["position"]) == ("user:ann", called["position"])
    await api.__aexit__()
    api = await asked_api(served, hub, None)
    assert (await api.raw("GET", "/schema"))[0] == 200
    await api.__aexit__()


async def test_refusals_are_counted(served: Up, hub: str):
    async with aiohttp.ClientSession() as http:

        async def counted(role: str) -> float:
            async with http.get(f"{served.entry(role).admin_url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            (line,) = [one for one in lines if one.startswith('hublog_access_refused_total{code="token_missing"}')]
            return float(line.split()[-1])

        for role, path in (("gateway", f"hubs/{hub}/negotiate"), ("api", f"v1/hubs/{hub}/invocations")):
            before = await counted(role)
            async with http.post(f"{served.entry(role).url}/{path}", data=b"{}") as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="hublog"'
            assert await counted(role) == before + 1


async def test_the_bench_measures_where_tokens_are_asked_for(gateways: tuple[str, str]):
    urls = [option for url in gateways for option in ("--url", url)]
    load = ("--rate", "50", "--seconds", "0.5", "--receivers", "2")
    status, out, err = await printed("bench", "latency", *urls, *load, "--json", HUBLOG_TOKEN=token())
    assert status == 0, err
    assert '"lost": 0' in out
    status, _, err = await printed("bench", "latency", *urls, *load)
    assert status == 1
    assert "401" in err


async def test_without_a_key_it_says_what_to_do():
    status, out, err = await printed("token", "--user", "ann")
    assert (status, out) == (2, "")
    assert "connect with ?user=<name>" in err
    assert "HUBLOG_JWT_KEY=$(" in err
    status, out, err = await printed("token", "--user", "ann", "--ttl", "soon", **SETTINGS)
    assert (status, out) == (2, "")
    assert "--ttl" in err


async def test_no_token_is_in_any_log(served: Up):
    """The last of this file: after all the good and bad ones above."""
    logs = list((served.data_dir / "logs").glob("*.log"))
    assert {log.name for log in logs} >= {"gateway-0.log", "api.log", "projector.log"}
    whole = served.output + "".join(log.read_text(errors="replace") for log in logs)
    assert "access.refused" in whole
    assert "eyJ" not in whole
    assert SETTINGS["HUBLOG_JWT_KEY"] not in whole
