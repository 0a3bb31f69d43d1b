"""From an address to a connection that knows its session: dial, handshake, ``hub.session``.

Owns the order of these and their common deadline. What arrives before the answer is kept, not judged: until then nobody
knows whether a resume was accepted, so whose messages they are.
"""

import asyncio

import aiohttp
import msgspec

from hublog import wire
from hublog.access import Token
from hublog.answers import Session
from hublog.errors import ServerError, Unreachable
from hublog.link import Link, LinkEnded, Timers, closed_by, dial

NUMBER = "session"  # calls of the client are numbered, so this is nobody else's


class Opening(msgspec.Struct, frozen=True):
    """``early`` came before the session's answer, ``rest`` behind it in the same frame."""

    link: Link
    session: Session
    early: list[wire.Message]
    rest: list[wire.Message]


async def open_link(
    http: aiohttp.ClientSession, url: str, timers: Timers, token: Token | None = None, *, keep: bool
) -> Opening:
    """``keep``: whether another attempt will go on with the session that this one asks for. Raises: LinkEnded."""
    link: Link | None = None
    try:
        async with asyncio.timeout(timers.open_s):
            link = await dial(http, url, timers, token)
            await link.send(wire.HANDSHAKE + wire.call(NUMBER, "hub.session", []))
            return await _session_of(link)
    except TimeoutError:
        await _leave(link, keep=keep)
        late = Unreachable(f"the node did not answer within {timers.open_s:g} s")
        raise LinkEnded(late, reconnect=True) from None
    except BaseException:
        await _leave(link, keep=keep)
        raise


async def _session_of(link: Link) -> Opening:
    early: list[wire.Message] = []
    while True:
        messages = await link.read()
        for index, message in enumerate(messages):
            if message.type == wire.CLOSE_TYPE:
                raise closed_by(message)
            if message.type == wire.COMPLETION and message.invocationId == NUMBER:
                return Opening(link, _session(message), early, messages[index + 1 :])
            early.append(message)


def _session(message: wire.Message) -> Session:
    if message.error is not None:
        error = ServerError.from_wire(message.error)
        raise LinkEnded(error, reconnect=error.retryable)
    try:
        return read_session(message.result)
    except wire.Unreadable as exc:
        raise LinkEnded(ServerError("internal", str(exc)), reconnect=False) from exc


def read_session(result: msgspec.Raw) -> Session:
    """Raises: wire.Unreadable."""
    try:
        return msgspec.json.decode(result, type=Session)
    except msgspec.DecodeError as exc:
        raise wire.Unreadable(f"the answer to hub.session does not fit: {exc}") from exc


async def _leave(link: Link | None, *, keep: bool) -> None:
    """Of no use, or not wanted any more.

    A session that another attempt will resume is left without a Close, which would end it. Any other gets one, behind
    the handshake: the node may have opened it already, or may be about to, and nobody else knows of it.
    """
    if link is not None:
        if not keep:
            await link.say_goodbye()
        await link.close()
