"""The end of a session on this node, as the log is told of it.

Owns which ends a resumable session waits through under which name, and that telling goes on until the log answers. It
refuses to know connections: by then they are gone.
"""

import structlog

from events import session
from events.errors import HublogError, SessionNotFound
from events.ids import SessionId
from service.gateway.context import GatewayContext
from service.sessions.manager import Manager

# What ends a connection detaches a resumable session under the same name, but for:
DETACHING: dict[str, session.Detaching] = {
    "timeout": "timeout",
    "slow_consumer": "slow_consumer",
    "hole": "hole",
    "shutdown": "draining",
    "node_lost": "node_lost",
}

_log = structlog.get_logger(__name__)


def detachment(connection: str, reason: session.Closing, seen_us: int, rewind: int | None) -> session.Detach:
    """How a session goes on waiting whose connection ended; ``seen_us``: when its client was last heard."""
    return session.Detach(connection, DETACHING.get(reason, "transport_error"), seen_us, rewind)


async def let_go(
    context: GatewayContext,
    manager: Manager,
    session_id: SessionId,
    connection: str,
    reason: session.Closing | None,
    detach: session.Detach | None,
) -> None:
    """Append that a session has ended here, until the log answers; only while that connection holds it.

    ``reason`` None: it is closed already, or somebody else's. With ``detach`` it waits to be resumed.
    """
    try:
        if reason is None:
            return
        if detach is not None:
            await manager.sessions.detach(session_id, detach)
        else:
            await manager.sessions.unregister(
                session_id, reason, actor="system:gateway", connection=connection, insist=True
            )
    except SessionNotFound:
        pass  # never opened: the append was refused
    except HublogError as error:  # damaged beyond what waiting can mend
        _log.error("session.not_closed", session_id=session_id, code=error.code)
    except Exception:  # noqa: BLE001  a defect; the process goes on
        _log.exception("session.not_closed", session_id=session_id)
    finally:
        known = manager.local.get(session_id)
        now = context.coordinator.find(known.state.connection) if known is not None else None
        if now is None or now.ended or now.id == connection:
            manager.local.forget(session_id)  # else another connection of this node has taken it over
        context.counters.closed += 1
