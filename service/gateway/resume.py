"""Taking a session over: what a client shows, and what it gets for it.

Owns the checks of token and cursor and the order of the steps: hear what the session must receive, append ``attached``,
only then let go of what the connection had before. What was missed is the hand-over's.
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from events import session
from events.errors import EpochMismatch, InvalidPosition, LogOverloaded, Refused, TokenUserMismatch
from events.ids import SessionId, parse_position
from service.delivery.gate import Gate
from service.delivery.handover import Resumer
from service.delivery.interest import Receiver
from service.gateway import tokens
from service.gateway.context import GatewayContext
from service.gateway.letting_go import detachment, let_go
from service.sessions.manager import Manager
from service.sessions.registry import KnownSession

Resync = Literal["repeated", "lost"]


class Standing(msgspec.Struct):
    """How a connection stands to its session: what ``hub.session()`` tells besides the session itself.

    ``cursor``: from where delivery begins, while it has not begun (a sequence). ``code``: why a resume was refused.
    """

    generation: int = 1
    resumed: bool = False
    resync: Resync | None = None
    code: str | None = None
    cursor: int = 0


class TakenOver(msgspec.Struct):
    """A session that is this connection's now, and the part of it that is still to be handed over."""

    standing: Standing
    resumer: Resumer
    known: KnownSession


async def take_over(
    context: GatewayContext,
    manager: Manager,
    receiver: Receiver,
    token: str,
    cursor: str,
    user: str | None,
    here: Callable[[], bool],
) -> TakenOver:
    """Attach ``receiver``'s connection to the session that the token names; ``receiver`` is completed with it.

    ``here``: whether the client is there still. One that is not may have resumed elsewhere while this waited for the
    log, by the same token: it must not be taken from there for nobody.

    Raises: BadToken, TokenUserMismatch, TokenStale, EpochMismatch, InvalidPosition, SessionNotFound, SessionClosed,
    NotResumable, Unavailable; then nothing is heard for the receiver, and a session that was attached is let go.
    """
    hub = manager.hub
    dispatcher, subjects = context.dispatcher(hub), context.subjects(hub)
    grant = tokens.open_resume(context.ring, token, hub)
    at = parse_position(cursor)
    if at.epoch != dispatcher.log.epoch or grant.epoch != dispatcher.log.epoch:
        raise EpochMismatch("the log has begun another life since")
    if at.partition != dispatcher.partition:
        raise InvalidPosition("the cursor is of another partition")
    if user is not None and user != grant.user:
        raise TokenUserMismatch("the token is another user's")
    receiver.session, receiver.user = SessionId(grant.session), grant.user
    gate = Gate(receiver)

    tried = False

    def expect(known: KnownSession) -> None:
        nonlocal tried
        if not here():
            raise LogOverloaded("the client was gone before it was its turn")
        if not tried:
            tried = True
            dispatcher.interest.expect(subjects, receiver, known.sequence)
        for group in known.state.groups:  # it may have come to be in others since the attempt before
            receiver.expect_group(group)

    command = session.Attach(
        node=context.node,
        incarnation=context.incarnation,
        connection=receiver.connection,
        generation=grant.generation,
        now_us=context.author.now_us(),
        ttl_us=context.session_ttl_us,
    )
    try:
        try:
            attachment = await manager.sessions.attach(receiver.session, command, expect, wanted=here)
        except Refused:
            tried = False
            raise
        known = attachment.known
        if at.sequence > known.sequence:
            raise InvalidPosition("the cursor is ahead of the log")
        start = max(session.resume_from(attachment.before.state, grant.generation, at.sequence), known.state.opened)
        standing = Standing(known.state.generation, resumed=True, cursor=start)
        if start < at.sequence:
            standing.resync = "repeated"
        if start + 1 < await context.handover(hub).first_sequence() and start < known.sequence:
            standing.resync, standing.cursor = "lost", known.sequence
    except BaseException:
        dispatcher.interest.release(receiver)
        if tried:  # the log says, or may say, that it is here: it must wait for its client again
            seen_us = context.author.now_us()
            detach = detachment(receiver.connection, "transport_error", seen_us, None)
            context.closings.start(
                let_go(context, manager, receiver.session, receiver.connection, "transport_error", detach)
            )
        raise
    before = attachment.before
    state = before.state if before.sequence <= standing.cursor else None
    resumer = Resumer(receiver, gate, standing.cursor, known.sequence, state, known.state.opened)
    return TakenOver(standing, resumer, known)


def resume_token(context: GatewayContext, manager: Manager, session_id: str, user: str | None, generation: int) -> str:
    """The token that takes the session over next."""
    epoch = context.dispatcher(manager.hub).log.epoch
    return tokens.seal_resume(context.ring, tokens.ResumeGrant(manager.hub, session_id, user, epoch, generation))
