"""``hublog probe``: what a client and an operator would do, once, against an install that runs.

Owns the steps, their order and the report. It speaks the public wire only, so it says as much about the proxies and
policies on the way as about the service. It refuses to know how the service is made.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from service.cli.peer import Broken, Peer, said

RETRY_S = 0.2
NOT_YET = frozenset({404, 409})
"""What the API answers about something that its read models do not have yet."""


class Step(msgspec.Struct, frozen=True):
    name: str
    ms: float
    found: str


class Report(msgspec.Struct):
    """``failed`` names the step that did not succeed, ``why`` says so in words."""

    steps: list[Step] = []
    failed: str | None = None
    why: str | None = None


Told = Callable[[Step], None]


class Probe:
    """One run. ``gateways`` are used in turn: the session resumes on the next one."""

    def __init__(self, gateways: list[str], api: str, hub: str, token: str | None, told: Told) -> None:
        self._gateways = gateways
        self._api = api.rstrip("/")
        self._hub = hub
        self._token = token
        self._told = told
        self._step = "start"
        self.report = Report()

    async def run(self, timeout_s: float) -> Report:
        """The report, never an exception for what an install may do wrong."""
        try:
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as http:
                await self._all(http)
        except TimeoutError:
            self._failed(f"not done within {timeout_s:g} s")
        except (Broken, aiohttp.ClientError, OSError) as exc:
            self._failed(str(exc) or type(exc).__name__)
        return self.report

    def _failed(self, why: str) -> None:
        self.report.failed, self.report.why = self._step, why

    @asynccontextmanager
    async def _doing(self, name: str) -> AsyncIterator[list[str]]:
        """A step: what is put into the list is what was found."""
        self._step = name
        started = time.perf_counter()
        found: list[str] = []
        yield found
        step = Step(name, round((time.perf_counter() - started) * 1000, 1), ", ".join(found))
        self.report.steps.append(step)
        self._told(step)

    async def _all(self, http: aiohttp.ClientSession) -> None:
        group, words = f"probe-{secrets.token_hex(4)}", [secrets.token_hex(8) for _ in range(2)]
        peer, session = await self._connect(http)
        async with peer:
            async with self._doing("join") as found:
                found.append(f"group {group} at {(await peer.call('hub.join', group))['position']}")
            async with self._doing("send") as found:
                selector = {"to": "group", "group": group}
                sent = await peer.call("hub.invoke", selector, "probe", [words[0]])
                await peer.wait_for(1)
                cursor = _only(peer, words[0])
                _must(cursor == sent["position"], f"sent at {sent['position']}, received at {cursor}")
                found.append(f"received at {cursor}")
            peer.cut()
        async with self._doing("send while away") as found:
            missed = await self._post(
                http,
                "/invocations",
                {
                    "selector": {"to": "client", "session": session["sessionId"]},
                    "target": "probe",
                    "arguments": [words[1]],
                },
            )
            found.append(f"{missed['outcome']} at {missed['position']}")
        peer = await self._resume(http, session, cursor, words[1])
        async with peer:
            await self._ask(http, session["sessionId"], group, missed)
            async with self._doing("leave") as found:
                await peer.leave()
                state = await self._until(http, f"/sessions/{session['sessionId']}", lambda it: it["state"] == "closed")
                found.append(f"the session is {state['state']}")

    async def _connect(self, http: aiohttp.ClientSession) -> tuple[Peer, dict[str, Any]]:
        async with self._doing("connect") as found:
            peer = await self._dial(http, self._gateways[0], resumable="1")
            session: dict[str, Any] = await peer.call("hub.session")
            _must(session["resumeToken"] is not None, "the session is not resumable")
            found.append(f"session {session['sessionId']} on {self._gateways[0]}")
        return peer, session

    async def _resume(self, http: aiohttp.ClientSession, session: dict[str, Any], cursor: str, missed: str) -> Peer:
        gateway = self._gateways[-1]
        async with self._doing("resume") as found:
            peer = await self._dial(http, gateway, resumable="1", resume=session["resumeToken"], cursor=cursor)
            resumed = await peer.call("hub.session")
            _must(resumed["resumed"] and resumed["resync"] is None, f"not resumed: {resumed.get('code')}")
            _must(resumed["sessionId"] == session["sessionId"], "resumed another session")
            await peer.wait_for(1)
            found.append(f"on {gateway}, with what was missed at {_only(peer, missed)}")
        return peer

    async def _dial(self, http: aiohttp.ClientSession, gateway: str, **query: str) -> Peer:
        # Without authentication a connection says who it is; with it, its token does.
        who = {} if self._token is not None else {"user": "probe"}
        return await Peer.connect(http, gateway, self._hub, token=self._token, **who, **query)

    async def _ask(self, http: aiohttp.ClientSession, session_id: str, group: str, missed: dict[str, Any]) -> None:
        async with self._doing("ask") as found:
            shown = await self._until(
                http,
                f"/sessions/{session_id}?min_position={missed['position']}",
                lambda it: it["state"] == "active" and it["groups"] == [group],
            )
            members = await self._until(http, f"/groups/{group}/members", lambda it: len(it["items"]) == 1)
            _must(members["items"][0]["sessionId"] == session_id, f"a stranger is in {group}")
            await self._until(http, f"/invocations/{missed['invocationId']}", lambda it: it["target"] == "probe")
            found.append(f"active on {shown['node']}, one member, the call is there")

    async def _until(self, http: aiohttp.ClientSession, path: str, right: Callable[[Any], bool]) -> Any:
        """Ask until the answer is right: read models follow. Raises: Broken for a refusal."""
        while True:
            async with http.get(self._url(path), headers=self._headers()) as answer:
                if answer.status == 200:
                    body = await answer.json()
                    if right(body):
                        return body
                elif answer.status not in NOT_YET:
                    raise Broken(f"GET {path} answered {answer.status}: {said(await answer.text())}")
            await asyncio.sleep(RETRY_S)

    async def _post(self, http: aiohttp.ClientSession, path: str, body: Any) -> Any:
        async with http.post(self._url(path), json=body, headers=self._headers()) as answer:
            if answer.status != 200:
                raise Broken(f"POST {path} answered {answer.status}: {said(await answer.text())}")
            return await answer.json()

    def _url(self, path: str) -> str:
        return f"{self._api}/v1/hubs/{self._hub}{path}"

    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}


def _only(peer: Peer, word: str) -> str:
    """The position of the one message that came. Raises: Broken if it is not that one."""
    _must(len(peer.received) == 1, f"received {len(peer.received)} messages instead of one")
    target, arguments = peer.received[0]
    _must(target == "probe" and arguments[:1] == [word] and len(arguments) == 2, f"received {target}{arguments}")
    position: str = arguments[1]
    return position


def _must(holds: bool, why: str) -> None:
    if not holds:
        raise Broken(why)


def line(step: Step) -> str:
    return f"ok    {step.name:<16}{step.ms:>8.1f} ms  {step.found}"


def verdict(report: Report, *, as_json: bool) -> str:
    if as_json:
        return msgspec.json.encode(report).decode()
    if report.failed is not None:
        return f"FAIL  {report.failed:<16} {report.why}"
    return f"all well in {sum(step.ms for step in report.steps):.0f} ms"
