"""Is this event for this session? A function of the log alone (DESIGN: what a session must receive).

Delivery keeps an index that answers the same question quickly; hand-over, ``received`` and the audit ask here, and the
tests hold the two against each other.
"""

from typing import TypeAlias

from events import session
from events.invocation import Requested
from events.subjects import Subject

Interval: TypeAlias = tuple[int, int | None]  # joined at, left at (both sequences; None: still a member)


class Life:
    """One session's life as its own subject tells it: when it opened and closed, and when it was in which group.

    ``intervals`` of a group ascend. The log may have forgotten the beginning: the first event that is still there
    carries what was true then, stays that ended before it are not known.
    """

    __slots__ = ("closed", "intervals", "opened", "session", "user")

    def __init__(self, session_id: str) -> None:
        self.session = session_id
        self.user: str | None = None
        self.opened: int | None = None
        self.closed: int | None = None
        self.intervals: dict[str, list[Interval]] = {}

    def apply(self, event: session.Event, sequence: int) -> None:
        """Take in the next event of the session's subject; ascending by sequence."""
        if self.opened is None:
            state = session.settle(event, sequence, session.OPEN)
            self.user, self.opened = state.user, state.opened
            self._stay(state.groups)
        match event:
            case session.Joined():
                self._stay(dict.fromkeys(event.groups, sequence))
            case session.Left():
                self._leave(event.groups, sequence)
            case session.Closed():
                self._leave(event.groups, sequence)
                self.closed = sequence
            case session.Opened() | session.Attached() | session.Detached() | session.Carried():
                pass

    def member_at(self, group: str, sequence: int) -> bool:
        """Whether the session was in the group when ``sequence`` was written."""
        return any(
            joined < sequence and (left is None or sequence < left) for joined, left in self.intervals.get(group, ())
        )

    def alive_at(self, sequence: int) -> bool:
        """Whether the session was open, attached or not, when ``sequence`` was written."""
        return self.opened is not None and self.opened < sequence and (self.closed is None or sequence < self.closed)

    def _stay(self, groups: dict[str, int]) -> None:
        for group, joined in groups.items():
            stays = self.intervals.setdefault(group, [])
            if not stays or stays[-1][0] != joined:
                stays.append((joined, None))

    def _leave(self, groups: dict[str, int], sequence: int) -> None:
        """``groups``: the join sequences that end at ``sequence``."""
        self._stay(groups)
        for group, joined in groups.items():
            self.intervals[group][-1] = (joined, sequence)


def receives(life: Life, subject: Subject, sequence: int, call: Requested) -> bool:
    """Whether the session must be sent this invocation, once: ``call`` was stored on ``subject`` at ``sequence``.

    A function of the log alone: time to live and connections are others' business.
    """
    if not life.alive_at(sequence) or life.session in call.without:
        return False
    match subject.kind:
        case "inbox":
            return subject.name == life.session
        case "group":
            return subject.name is not None and life.member_at(subject.name, sequence)
        case "user":
            return life.user is not None and subject.name == life.user
        case "all":
            return True
        case "many":
            return life.session in call.sessions or any(life.member_at(group, sequence) for group in call.groups)
        case _:
            return False
