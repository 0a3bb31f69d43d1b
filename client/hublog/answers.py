"""What the service answers, and what the client reports. Positions are opaque: only kept and compared for equality."""

from typing import Literal

import msgspec


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of ``hub.session``. ``code`` says why a resume was refused."""

    session_id: str
    user_id: str | None
    resume_token: str | None
    cursor: str
    groups: tuple[str, ...]
    resumed: bool
    resync: Literal["lost", "repeated"] | None = None
    code: str | None = None

    def __repr__(self) -> str:
        """Without the token: it opens the session to whoever reads it."""
        return f"Session(session_id={self.session_id!r}, user_id={self.user_id!r}, groups={self.groups!r})"


class Membership(msgspec.Struct, frozen=True):
    """The answer of join and leave: the position of the change, and all groups afterwards."""

    position: str
    groups: tuple[str, ...]


class Invoked(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of ``invoke``: ``outcome`` is accepted, sent, queued or not_found. No position: nothing was stored."""

    invocation_id: str
    position: str | None
    outcome: str


class Resync(msgspec.Struct, frozen=True):
    """Told to ``on_resync`` in its place among the messages: what follows does not simply go on.

    ``lost``: messages are missing before this. If ``session`` is another one than ``previous``, it is in no group.
    ``repeated``: messages from before this may come late; the ones that this client remembers are not given again.
    """

    kind: Literal["lost", "repeated"]
    previous: str
    session: Session
    code: str | None = None
