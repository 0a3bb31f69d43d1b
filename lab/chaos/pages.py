"""The read models against a replay of the log: every page of a list, as of the position that it states."""

from typing import TypeAlias

from lab.chaos.history import Evidence, ReadPage
from lab.chaos.model import Model, place
from lab.chaos.verdict import Violations

Rows: TypeAlias = dict[str, dict[str, object]]


def check_pages(evidence: Evidence, found: Violations) -> None:
    """Replays the log once more and stops at the position of each page to compare."""
    model = Model(lambda *_: None)
    events = iter(evidence.log)
    pending = next(events, None)
    for page in sorted(evidence.pages, key=lambda page: place(page.position)[1]):
        upto = place(page.position)[1]
        while pending is not None and place(pending.position)[1] <= upto:
            model.apply(pending)
            pending = next(events, None)
        _compare(page, model, found)


def _compare(page: ReadPage, model: Model, found: Violations) -> None:
    match page.kind:
        case "sessions":
            replayed: Rows = {
                name: {
                    "state": life.status,
                    "userId": life.user,
                    "node": life.node,
                    "groups": sorted(life.groups),
                    "sequence": life.last,
                }
                for name, life in model.lives.items()
            }
            _match(page, "sessionId", replayed, found)
        case "groups":
            sizes: Rows = {
                group: {
                    "size": len(held),
                    "attached": sum(model.lives[session].status == "active" for session in held),
                }
                for group, held in model.members.items()
            }
            _match(page, "group", sizes, found)
        case "members":
            held: Rows = {
                session: {"sequence": joined, "state": model.lives[session].status}
                for session, joined in model.members.get(page.group or "", {}).items()
            }
            _match(page, "sessionId", held, found)
        case "invocations":
            first = place(page.next)[1] if page.next else 0
            last = place(page.after)[1] if page.after else None
            calls: Rows = {
                call.id: {"sequence": call.sequence, "selector": call.selector}
                for call in model.calls
                if call.sequence >= first and (last is None or call.sequence < last)
            }
            _differences(page, "invocationId", calls, found)


def _match(page: ReadPage, key: str, replayed: Rows, found: Violations) -> None:
    """Of an ascending list, the part that the page is responsible for."""
    within = {
        name: row
        for name, row in replayed.items()
        if (page.after is None or name > page.after) and (page.next is None or name <= page.next)
    }
    _differences(page, key, within, found)


def _differences(page: ReadPage, key: str, replayed: Rows, found: Violations) -> None:
    read = {str(item[key]): _shown(item) for item in page.items}
    where = f"{page.kind}{f' of {page.group}' if page.group else ''}"
    for name in read.keys() - replayed.keys():
        kind = "ghost_member" if page.kind == "members" else "read_model"
        found.add(kind, f"{where} has {name}, a replay has not", _session(page, name), [page.position])
    for name in replayed.keys() - read.keys():
        found.add("read_model", f"{where} has no {name}, a replay has", _session(page, name), [page.position])
    for name in read.keys() & replayed.keys():
        mine = replayed[name]
        theirs = {field: read[name].get(field) for field in mine}
        if theirs != mine:
            found.add(
                "read_model",
                f"{where}: {name} is {theirs}, a replay gives {mine}",
                _session(page, name),
                [page.position],
            )


def _session(page: ReadPage, name: str) -> str | None:
    return name if page.kind in {"sessions", "members"} else None


def _shown(item: dict[str, object]) -> dict[str, object]:
    """With the sequence of its position, of whichever name."""
    position = item.get("joinedPosition") or item.get("position")
    return {**item, "sequence": place(str(position))[1] if position else None}
