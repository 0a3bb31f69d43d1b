"""A SignalR client for looking, not for living: one connection, JSON, one caller who asks and waits.

Owns negotiation, the handshake, calls and what comes in between. It never reconnects, answers no ping of its own accord
and keeps no session: whoever wants that takes the client library.
"""

import itertools
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import msgspec

SEPARATOR = "\x1e"
HANDSHAKE = '{"protocol":"json","version":1}' + SEPARATOR
CLOSE = '{"type":7}' + SEPARATOR
INVOCATION, COMPLETION, PING_TYPE, CLOSE_TYPE = 1, 3, 6, 7
TEXT_CHARS_MAX = 200


class Broken(Exception):
    """What the other side did instead of what a SignalR server does, in words."""


class _Problem(msgspec.Struct):
    """What is for people of a problem document."""

    code: str
    detail: str
    hint: str


def said(body: str) -> str:
    """A refusal in one line: what a problem document says, or the beginning of whatever else answered."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        return body[:TEXT_CHARS_MAX]
    return f"{problem.code}: {problem.detail}. {problem.hint}"


class Peer:
    """Made by :meth:`connect`. ``received`` are the invocations that came, oldest first: target and arguments."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse[Literal[True]]") -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._records: list[str] = []
        self._rest = ""
        self.received: list[tuple[str, list[Any]]] = []

    @classmethod
    async def connect(
        cls, http: aiohttp.ClientSession, gateway: str, hub: str, *, token: str | None, **query: str
    ) -> Self:
        """Negotiate, open the WebSocket, shake hands. Raises: Broken, aiohttp.ClientError."""
        url = f"{gateway.rstrip('/')}/hubs/{hub}"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with http.post(
            f"{url}/negotiate?{urlencode({'negotiateVersion': 1, **query})}", headers=headers
        ) as answer:
            if answer.status != 200:
                raise Broken(f"negotiate answered {answer.status}: {said(await answer.text())}")
            offer = await answer.json()
        if "error" in offer:
            raise Broken(f"negotiate answered {offer['error']}")
        address = urlsplit(url)
        dialled = urlunsplit(
            (
                "wss" if address.scheme == "https" else "ws",
                address.netloc,
                address.path,
                urlencode({**query, "id": offer["connectionToken"]}),
                "",
            )
        )
        peer = cls(await http.ws_connect(dialled, headers=headers))
        await peer._socket.send_str(HANDSHAKE)
        refused = msgspec.json.decode(await peer._record()).get("error")
        if refused is not None:
            raise Broken(f"the handshake was refused: {refused}")
        return peer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._socket.close()

    async def call(self, target: str, *arguments: Any) -> Any:
        """The result. What is pushed meanwhile goes to ``received``. Raises: Broken with the error of the call."""
        number = str(next(self._numbers))
        message = {"type": INVOCATION, "invocationId": number, "target": target, "arguments": arguments}
        await self._socket.send_str(msgspec.json.encode(message).decode() + SEPARATOR)
        while True:
            answer = await self._message()
            if answer["type"] == COMPLETION and answer.get("invocationId") == number:
                if "error" in answer:
                    raise Broken(f"{target} answered {answer['error']}")
                return answer.get("result")

    async def wait_for(self, count: int) -> None:
        """Until ``received`` has that many. Raises: Broken."""
        while len(self.received) < count:
            await self._message()

    async def leave(self) -> None:
        """Say Close, which ends the session, and wait until the other side has ended the connection."""
        await self._socket.send_str(CLOSE)
        while (await self._socket.receive()).type not in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}:
            continue

    def cut(self) -> None:
        """As if the cable were pulled: no Close, no closing frame."""
        self._socket._response.close()  # noqa: SLF001  aiohttp has no public way to be impolite

    async def _message(self) -> dict[str, Any]:
        """The next message that is no ping. Raises: Broken."""
        while True:
            message: dict[str, Any] = msgspec.json.decode(await self._record())
            if message["type"] == CLOSE_TYPE:
                raise Broken(f"the gateway closed the connection: {message.get('error', 'without a reason')}")
            if message["type"] == INVOCATION:
                self.received.append((message["target"], message["arguments"]))
            if message["type"] != PING_TYPE:
                return message

    async def _record(self) -> str:
        while not self._records:
            frame = await self._socket.receive()
            if frame.type is not aiohttp.WSMsgType.TEXT:
                raise Broken(f"the connection ended (WebSocket code {self._socket.close_code})")
            *whole, self._rest = (self._rest + frame.data).split(SEPARATOR)
            self._records += [record for record in whole if record]
        return self._records.pop(0)
