"""The methods of a session: who it is, which groups it is in, and taking another over. Arguments in, raw JSON out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from events import session
from events.errors import InvalidArguments, MethodNotFound, NotResumable, SessionClosed
from events.ids import Position, SessionId, parse_name
from service.gateway import tokens
from service.gateway.methods.caller import Caller
from service.gateway.resume import resume_token
from service.sessions.manager import Manager
from service.sessions.registry import KnownSession

Method = Callable[[Caller, bytes], Awaitable[bytes]]


class SessionAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """What ``hub.session()`` and ``hub.resume()`` answer.

    ``cursor``: what the session must receive was sent to this connection up to there. ``resume_token`` is null where
    the connection is not resumable. ``resync``: null, ``repeated`` (messages from before the cursor come again) or
    ``lost`` (some will never come); ``code``: why a resume was refused.
    """

    session_id: SessionId
    user_id: str | None
    resume_token: str | None
    cursor: str
    groups: list[str]
    resumed: bool
    resync: str | None
    code: str | msgspec.UnsetType = msgspec.UNSET


class MembershipAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """``position`` of the change (or of the session's last event, if nothing changed); all ``groups`` afterwards."""

    position: str
    groups: list[str]


class _NoArguments(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


class _ResumeArguments(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    token: str
    cursor: str


class _GroupArguments(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    groups: str | list[str]


async def hub_session(caller: Caller, raw: bytes) -> bytes:
    _arguments("hub.session takes nothing", raw, _NoArguments)
    answer = await _session_answer(caller)
    # Behind the answer, whose cursor does not cover what was kept since the session opened.
    asyncio.get_running_loop().call_soon(caller.begin_delivery)
    return answer


async def hub_resume(caller: Caller, raw: bytes) -> bytes:
    asked = _arguments("hub.resume takes (token, cursor)", raw, _ResumeArguments)
    if not caller.resumable:
        raise NotResumable("the connection was opened without ?resumable")
    manager = _manager(caller)
    if tokens.open_resume(caller.context.ring, asked.token, manager.hub).session == caller.session_id:
        return await hub_session(caller, b"[]")  # it has that session: there is nobody to take it from
    resumer = await caller.take_over(manager, asked.token, asked.cursor)
    try:
        return await _session_answer(caller)
    finally:
        # The last thing, and whatever the answer is, since the session is here now. Others are collected for a moment
        # first, so the answer is written before anything that was missed.
        caller.context.handover(manager.hub).begin(manager.hub, resumer)


async def _session_answer(caller: Caller) -> bytes:
    known, standing = await _known(caller), caller.standing
    token = None
    if caller.resumable:
        token = resume_token(
            caller.context, _manager(caller), caller.session_id, known.state.user, known.state.generation
        )
    return msgspec.json.encode(
        SessionAnswer(
            session_id=caller.session_id,
            user_id=known.state.user,
            resume_token=token,
            cursor=_cursor(caller),
            groups=sorted(known.state.groups),
            resumed=standing.resumed,
            resync=standing.resync,
            code=standing.code or msgspec.UNSET,
        )
    )


async def hub_join(caller: Caller, raw: bytes) -> bytes:
    groups = [parse_name(group, "group") for group in dict.fromkeys(_groups("hub.join", raw))]
    known = _manager(caller).local.get(caller.session_id)
    held = known.state.groups.keys() if known is not None else set()
    if caller.receiver is not None and len(held | set(groups)) <= session.GROUPS_MAX:
        # Heard before the append, so that nothing behind the `joined` can be missed; but not for what is refused.
        for group in groups:
            caller.receiver.expect_group(group)
    return _membership(caller, await _manager(caller).groups.add(caller.session_id, *groups))


async def hub_leave(caller: Caller, raw: bytes) -> bytes:
    return _membership(caller, await _manager(caller).groups.remove(caller.session_id, *_groups("hub.leave", raw)))


async def hub_leave_all(caller: Caller, raw: bytes) -> bytes:
    _arguments("hub.leaveAll takes nothing", raw, _NoArguments)
    return _membership(caller, await _manager(caller).groups.remove_from_all(caller.session_id))


async def hub_groups(caller: Caller, raw: bytes) -> bytes:
    _arguments("hub.groups takes nothing", raw, _NoArguments)
    return msgspec.json.encode(sorted((await _known(caller)).state.groups))


class _Methods:
    def __init__(self, by_name: dict[str, Method]) -> None:
        self._by_name = by_name

    def known(self, target: str) -> str:
        """The name of a method, for whoever groups by it: whatever else was called is one."""
        return target if target in self._by_name or target == "hub.invoke" else "unknown"

    def find(self, target: str) -> Method:
        """Raises: MethodNotFound."""
        method = self._by_name.get(target)
        if method is None:
            raise MethodNotFound(f"there is no method {target[:64]!r}")
        return method


METHODS = _Methods(
    {
        "hub.session": hub_session,
        "hub.join": hub_join,
        "hub.leave": hub_leave,
        "hub.leaveAll": hub_leave_all,
        "hub.groups": hub_groups,
        "hub.resume": hub_resume,
    }
)


def _arguments(takes: str, raw: bytes, shape: type[Any]) -> Any:
    """``takes``: what the method takes, in words. Raises: InvalidArguments."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidArguments(f"{takes}: {exc}") from exc


def _groups(method: str, raw: bytes) -> list[str]:
    groups = _arguments(f"{method} takes (group | groups)", raw, _GroupArguments).groups
    return [groups] if isinstance(groups, str) else groups


def _manager(caller: Caller) -> Manager:
    manager = caller.manager
    assert manager is not None, "methods are called on open sessions only"
    return manager


async def _known(caller: Caller) -> KnownSession:
    """The session as this connection knows it: its own commands have been answered before this one began."""
    manager = _manager(caller)
    known = manager.local.get(caller.session_id)
    if known is None:
        known = await manager.sessions.get(caller.session_id)
    if known is None:
        raise SessionClosed("the session is closed")
    return known


def _membership(caller: Caller, known: KnownSession) -> bytes:
    return msgspec.json.encode(MembershipAnswer(_position(caller, known.sequence), sorted(known.state.groups)))


def _cursor(caller: Caller) -> str:
    """Up to here everything that the session must receive was written to this connection."""
    receiver = caller.receiver
    assert receiver is not None
    dispatcher = caller.context.dispatcher(_manager(caller).hub)
    known = _manager(caller).local.get(caller.session_id)
    opened = receiver.since or (known.state.opened if known is not None else 0)
    if caller.gate is not None and not caller.gate.is_open:
        return _position(caller, max(caller.standing.cursor or opened, caller.gate.sent))
    return _position(caller, max(dispatcher.position if receiver.live else 0, opened))


def _position(caller: Caller, sequence: int) -> str:
    dispatcher = caller.context.dispatcher(_manager(caller).hub)
    return str(Position(dispatcher.log.epoch, dispatcher.partition, sequence))
