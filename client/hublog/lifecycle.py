"""The client's own small state machine. Pure: no clock, no socket, no callback.

    disconnected ─start─► connecting ─opened─► active ─lost─► reconnecting ─opened─► active …
                              └── refused, stopped ──┴── from each ──┴──► closed

``lost`` while connecting or reconnecting stays there: another attempt follows. Nothing leaves ``closed``.
"""

import enum


class State(enum.StrEnum):
    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    ACTIVE = "active"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class Event(enum.Enum):
    START = "start"
    OPENED = "opened"
    """A node has answered who we are."""
    LOST = "lost"
    """An attempt or the connection failed in a way that another attempt may mend."""
    REFUSED = "refused"
    """The service has ended it for good, or nobody could be reached in the time given."""
    STOPPED = "stopped"
    """The user of the client has closed it."""


class IllegalTransition(Exception):
    """A defect of the client: it reported what cannot happen in this state."""


_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.DISCONNECTED, Event.START): State.CONNECTING,
    (State.DISCONNECTED, Event.STOPPED): State.CLOSED,
    (State.CONNECTING, Event.OPENED): State.ACTIVE,
    (State.CONNECTING, Event.LOST): State.CONNECTING,
    (State.CONNECTING, Event.REFUSED): State.CLOSED,
    (State.CONNECTING, Event.STOPPED): State.CLOSED,
    (State.ACTIVE, Event.LOST): State.RECONNECTING,
    (State.ACTIVE, Event.REFUSED): State.CLOSED,
    (State.ACTIVE, Event.STOPPED): State.CLOSED,
    (State.RECONNECTING, Event.OPENED): State.ACTIVE,
    (State.RECONNECTING, Event.LOST): State.RECONNECTING,
    (State.RECONNECTING, Event.REFUSED): State.CLOSED,
    (State.RECONNECTING, Event.STOPPED): State.CLOSED,
    (State.CLOSED, Event.REFUSED): State.CLOSED,
    (State.CLOSED, Event.STOPPED): State.CLOSED,
}


def after(state: State, event: Event) -> State:
    """Raises: IllegalTransition."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.value} while {state.value}") from None
