"""Who is meant: selectors as clients write them, and the one subject that an invocation for them goes to.

A selector is looked up, never validated against what exists: unknown sessions and empty groups simply receive nothing.
"""

from typing import Literal, TypeAlias

import msgspec

from events.errors import InvalidSelector, TooManyTargets
from events.ids import NAME_BYTES_MAX, parse_name

TARGETS_MAX = 1_000


class _To(msgspec.Struct, frozen=True, tag_field="to", rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    pass


class Caller(_To, frozen=True, tag="caller"):
    pass


class All(_To, frozen=True, tag="all"):
    pass


class Others(_To, frozen=True, tag="others"):
    pass


class AllExcept(_To, frozen=True, tag="allExcept"):
    sessions: tuple[str, ...]


class Client(_To, frozen=True, tag="client"):
    session: str


class Clients(_To, frozen=True, tag="clients"):
    sessions: tuple[str, ...]


class Group(_To, frozen=True, tag="group"):
    group: str
    without: tuple[str, ...] = msgspec.field(name="except", default=())


class Groups(_To, frozen=True, tag="groups"):
    groups: tuple[str, ...]
    without: tuple[str, ...] = msgspec.field(name="except", default=())


class GroupExceptCaller(_To, frozen=True, tag="groupExceptCaller"):
    group: str


class GroupsExceptCaller(_To, frozen=True, tag="groupsExceptCaller"):
    groups: tuple[str, ...]


class User(_To, frozen=True, tag="user"):
    user: str


Selector: TypeAlias = (
    Caller
    | All
    | Others
    | AllExcept
    | Client
    | Clients
    | Group
    | Groups
    | GroupExceptCaller
    | GroupsExceptCaller
    | User
)


class Route(msgspec.Struct, frozen=True):
    """Where an invocation is written, and whom it leaves out.

    ``kind`` names the subject (``none``: nobody can be meant, nothing is written); ``name`` is the session, group or
    user of it; ``sessions`` or ``groups`` are the targets of a ``many``; ``without`` are excluded sessions.
    """

    kind: Literal["inbox", "group", "user", "all", "many", "none"]
    name: str = ""
    sessions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_decoder: msgspec.json.Decoder[Selector] = msgspec.json.Decoder(Selector)


def parse(raw: bytes | msgspec.Raw) -> Selector:
    """Raises: InvalidSelector."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidSelector(f"the selector cannot be read: {exc}") from exc


def resolve(selector: Selector, caller: str | None) -> Route:
    """The route of a selector. ``caller`` is the calling session, None for anyone else.

    Duplicates are removed, the order of the rest is kept; at most ``TARGETS_MAX`` remain, of targets and of exclusions.

    Raises: InvalidSelector (caller-relative without a calling session, or text that is no Unicode), TooManyTargets,
    InvalidName (of a group or user that cannot exist).
    """
    match selector:
        case All():
            return Route("all")
        case Group():
            return Route("group", parse_name(selector.group, "group"), without=_distinct(selector.without))
        case Client():
            return _sessions((selector.session,))
        case User():
            return Route("user", parse_name(selector.user, "user"))
        case Others():
            return Route("all", without=(_calling(caller),))
        case Caller():
            return Route("inbox", _calling(caller))
        case AllExcept():
            return Route("all", without=_distinct(selector.sessions))
        case Clients():
            return _sessions(selector.sessions)
        case Groups():
            return _groups(selector.groups, selector.without)
        case GroupExceptCaller():
            return Route("group", parse_name(selector.group, "group"), without=(_calling(caller),))
        case GroupsExceptCaller():
            return _groups(selector.groups, (_calling(caller),))


def _calling(caller: str | None) -> str:
    if caller is None:
        raise InvalidSelector("only a session can mean itself; this caller has none")
    return caller


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > TARGETS_MAX:
        raise TooManyTargets(f"{len(distinct)} sessions or groups are named")
    try:
        "".join(distinct).encode()
    except UnicodeEncodeError:
        # Only Python code can name what UTF-8 cannot spell: JSON does not let it through.
        raise InvalidSelector("a name in the selector holds a lone surrogate") from None
    return distinct


def _sessions(names: tuple[str, ...]) -> Route:
    # An id that cannot be a subject cannot be a session either: skipped, as any unknown id is.
    possible = tuple(name for name in _distinct(names) if name and len(name.encode()) <= NAME_BYTES_MAX)
    if not possible:
        return Route("none")
    if len(possible) == 1:
        return Route("inbox", possible[0])
    return Route("many", sessions=possible)


def _groups(names: tuple[str, ...], without: tuple[str, ...]) -> Route:
    distinct = tuple(parse_name(name, "group") for name in _distinct(names))
    excluded = _distinct(without)
    if not distinct:
        return Route("none")
    if len(distinct) == 1:
        return Route("group", distinct[0], without=excluded)
    return Route("many", groups=distinct, without=excluded)
