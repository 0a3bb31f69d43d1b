"""Answers to what this process sent: one wildcard inbox, one table of who waits for what.

Owns the tokens of reply subjects and the plain request. Whoever waits is told synchronously, by the parser, of each
answer and of the loss of the connection; it says itself when it has heard enough. Deadlines are the waiter's own.
"""

import asyncio
import secrets
from typing import Protocol

import msgspec

from events.errors import HublogError, LogUnavailable
from service.log.jetstream.client import SyncClient

REQUEST_TIMEOUT_S = 5.0
NO_LEADER = 10008
NO_RESPONDERS = b"NATS/1.0 503"


class Waiter(Protocol):
    """Something in the table, under the token that it was given."""

    def answered(self, payload: bytes, headers: bytes | None) -> None: ...

    def lost(self) -> None:
        """The connection is gone. Whether the question was heard is not known."""
        ...


class Replies:
    """The table. One of it per connection."""

    def __init__(self, client: SyncClient) -> None:
        self.client = client
        self.heard = 0  # answers that came, whoever waited for them: a sign of life
        self._waiting: dict[int, Waiter] = {}
        self._last = 0
        self._prefix = f"_INBOX.{secrets.token_hex(11)}."
        self._skip = len(self._prefix)
        client.listen(self._prefix + "*", self._on_reply)
        client.observe(self)

    def expect(self, waiter: Waiter) -> int:
        """Enter a waiter; returns its token."""
        self._last += 1
        self._waiting[self._last] = waiter
        return self._last

    def subject(self, token: int) -> str:
        return f"{self._prefix}{token}"

    def forget(self, token: int) -> None:
        self._waiting.pop(token, None)

    def _on_reply(self, subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        self.heard += 1
        waiter = self._waiting.get(int(subject[self._skip :]))
        if waiter is not None:
            waiter.answered(payload, headers)

    def lost(self) -> None:
        for waiter in list(self._waiting.values()):
            waiter.lost()

    def regained(self) -> None:
        """Nothing to do: whoever was told of the loss has decided what to ask again."""

    async def request(
        self, subject: str, payload: bytes, *, timeout_s: float = REQUEST_TIMEOUT_S, again_s: float | None = None
    ) -> bytes:
        """One question, one answer. Raises: LogUnavailable (nobody answers, or the connection went).

        ``again_s``: ask again so often, for what may be asked twice: a server that dies takes the question along, and
        while a stream has no leader nobody hears it.
        """
        waiter = _One(asyncio.get_running_loop().create_future())
        token = self.expect(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self.client.send(subject, self.subject(token), payload)
                    await asyncio.wait((waiter.future,), timeout=again_s)
                    if waiter.future.done():
                        return waiter.future.result()
        except TimeoutError as exc:
            raise LogUnavailable(f"NATS did not answer within {timeout_s:g} s", subject=subject) from exc
        finally:
            self.forget(token)


class _One:
    """Waits for a single answer."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future

    def answered(self, payload: bytes, headers: bytes | None) -> None:
        if self.future.done():
            return
        if headers is not None and headers.startswith(NO_RESPONDERS):
            self._fail(LogUnavailable("nobody in NATS answers for the stream: it is missing, or has no leader"))
        else:
            self.future.set_result(payload)

    def lost(self) -> None:
        self._fail(LogUnavailable("the connection to NATS was lost"))

    def _fail(self, error: HublogError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class ApiError(msgspec.Struct, frozen=True):
    """The error object in any answer of JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""
