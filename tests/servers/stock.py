"""Stock JavaScript SignalR clients in a Node.js process, each held by a string (tests/acceptance/clients/stock.mjs)."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from tests.servers.processes import PATIENCE_S, until

DRIVER = Path(__file__).parents[1] / "acceptance" / "clients" / "stock.mjs"
ANSWER_TIMEOUT_S = 20.0
METHODS = ("say", "fence")
LINE_BYTES_MAX = 1024 * 1024
_fences = itertools.count(1)


class CallError(Exception):
    """A call, or a start, that failed; the text is what the stock client threw."""


class StockClient:
    """``heard`` is what was called on it, in order; ``events`` are its (event, error)s: reconnecting, closed, …"""

    def __init__(self, clients: "StockClients", name: str) -> None:
        self._clients = clients
        self.name = name
        self.heard: list[tuple[str, list[Any]]] = []
        self.events: list[tuple[str, str | None]] = []
        self.session = ""

    def said(self) -> list[Any]:
        """The first argument of each ``say``, in order."""
        return [arguments[0] for target, arguments in self.heard if target == "say"]

    async def invoke(self, target: str, *arguments: Any) -> Any:
        return await self._clients.do(self.name, "invoke", target=target, arguments=arguments)

    async def send(self, target: str, *arguments: Any) -> None:
        """Without asking for an answer."""
        await self._clients.do(self.name, "send", target=target, arguments=arguments)

    async def call(self, selector: dict[str, Any], *arguments: Any, target: str = "say", **options: Any) -> Any:
        """``hub.invoke``."""
        return await self.invoke("hub.invoke", selector, target, arguments, *([options] if options else []))

    async def hears(self, target: str, *arguments: Any) -> None:
        """Wait for a call."""
        wanted = (target, list(arguments))
        await until(lambda: wanted in self.heard, what=f"{self.name} hears {wanted}")

    async def meets(self, event: str, *, timeout_s: float = PATIENCE_S) -> str | None:
        """Wait for an event; gives its error."""
        met = f"{self.name} meets {event}"
        await until(lambda: any(name == event for name, _ in self.events), what=met, timeout_s=timeout_s)
        return next(error for name, error in self.events if name == event)

    async def stop(self) -> None:
        await self._clients.do(self.name, "stop")


class StockClients:
    """``async with StockClients() as clients``; what is still connected then ends with the process."""

    def __init__(self) -> None:
        self._clients: dict[str, StockClient] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            "node", DRIVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES_MAX
        )
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reading
        await self._process.wait()

    async def start(
        self,
        name: str,
        gateway: str,
        hub: str,
        *,
        skip_negotiation: bool = False,
        methods: tuple[str, ...] = METHODS,
        retry_ms: tuple[int, ...] | None = None,
        keep_alive_ms: int = 15_000,
        tokens: tuple[str, ...] | None = None,
        **query: str,
    ) -> StockClient:
        """Connect one; ``query`` is of the URL (``user``, ``meta``). Its session is known when this returns.

        ``tokens``: what its ``accessTokenFactory`` gives, one after the other, the last for ever.
        """
        client = self._clients[name] = StockClient(self, name)
        await self.do(
            name,
            "start",
            url=f"{gateway}/hubs/{hub}" + (f"?{urlencode(query)}" if query else ""),
            skipNegotiation=skip_negotiation,
            methods=methods,
            retryMs=retry_ms,
            keepAliveMs=keep_alive_ms,
            tokens=tokens,
        )
        client.session = (await client.invoke("hub.session"))["sessionId"]
        return client

    async def do(self, client: str, do: str, **details: Any) -> Any:
        """Raises: CallError."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"number": number, "client": client, "do": do, **details}).encode() + b"\n"
        )
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "answer" in said:
                answer = self._waiting.pop(said["answer"])
                if "error" in said:
                    answer.set_exception(CallError(said["error"]))
                else:
                    answer.set_result(said["result"])
            elif "heard" in said:
                self._clients[said["client"]].heard.append((said["heard"], said["arguments"]))
            else:
                self._clients[said["client"]].events.append((said["event"], said["error"]))


async def fence(sender: StockClient, *clients: StockClient) -> str:
    """When this returns, everything that was called before it has arrived at these clients, or never will.

    A hub has one order, and no session is given a call that is older than one it was given. Gives the fence's position.
    """
    number = next(_fences)
    position = (await sender.call({"to": "all"}, number, target="fence"))["position"]
    for client in clients:
        await client.hears("fence", number)
    return str(position)
