"""What was asked against what the log has of it: every call and command, as its client was answered.

Owns the judgement of answers: acknowledged, refused, not found, and in which order. It knows no deliveries.
"""

import json
from collections import defaultdict

from lab.chaos.account import Account, Attempt
from lab.chaos.history import Command, Invoke, Ok
from lab.chaos.model import Call, place


def check_asked(account: Account) -> None:
    """Every call, then every command."""
    _invocations(account)
    _commands(account)


def _invocations(account: Account) -> None:
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    answered: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in account.attempts.values():
        if isinstance(attempt.said, Invoke):
            attempts[attempt.said.message].append(attempt)
            if attempt.ok is not None and not attempt.said.retry:
                answered[attempt.said.conn].append(attempt)
    for message, tries in attempts.items():
        _one_message(account, message, tries)
    for message, calls in account.by_message.items():
        if message not in attempts:
            account.found.add("not_asked", f"nobody sent message {message}", None, [calls[0].position])
    for inside in answered.values():
        before = 0
        for attempt in inside:
            if attempt.ok is not None and attempt.ok.position is not None:
                sequence = place(attempt.ok.position)[1]
                if sequence < before:
                    account.found.add(
                        "order_of_calls",
                        "of one connection, a later call has the lower position",
                        None,
                        [attempt.ok.position],
                        [attempt.line],
                    )
                before = sequence


def _one_message(account: Account, message: int, tries: list[Attempt]) -> None:
    calls = account.by_message.get(message, [])
    lines = [attempt.line for attempt in tries]
    if len(calls) > 1:
        where = [call.position for call in calls]
        account.found.add("stored_twice", f"message {message} is {len(calls)} times in the log", None, where, lines)
    for attempt in tries:
        account.figures.invocations += 1
        if attempt.ok is not None:
            account.figures.acknowledged += 1
            _acknowledged(account, message, attempt, attempt.ok, calls)
        elif attempt.fail is not None:
            account.figures.refused += 1
        else:
            account.figures.unknown += 1
    if calls and all(attempt.fail is not None for attempt in tries):
        account.found.add(
            "refused_but_stored", f"message {message} was refused", calls[0].caller, [calls[0].position], lines
        )
    if calls:
        _as_asked(account, message, tries, calls[0], lines)


def _acknowledged(account: Account, message: int, attempt: Attempt, ok: Ok, calls: list[Call]) -> None:
    lines = [attempt.line, attempt.end_line or attempt.line]
    if ok.position is None:
        if ok.outcome == "not_found":
            _not_found(account, attempt, lines)
        # Closed between the look and the write: it is stored, means nobody, and is not found all the same.
        if calls and (ok.outcome != "not_found" or calls[0].audience):
            account.found.add(
                "wrong_outcome", f"{ok.outcome} without a position, and stored", None, [calls[0].position], lines
            )
        return
    call = next((call for call in calls if call.position == ok.position), None)
    if call is None:
        account.found.add(
            "acknowledged_missing", f"message {message} is not at its position", None, [ok.position], lines
        )
        return
    state = next(iter(call.states.values()), "closed")
    outcome = {"active": "sent", "detached": "queued", "closed": "not_found"}[state]
    if call.selector["to"] != "client":
        outcome = "accepted"
    # A repeat may be told what the first was told, when that was: the state is that of the call's position.
    if ok.outcome != outcome:
        account.found.add("wrong_outcome", f"{ok.outcome}, and it was {outcome}", None, [ok.position], lines)


def _not_found(account: Account, attempt: Attempt, lines: list[int]) -> None:
    if isinstance(attempt.said, Invoke):
        named = json.loads(bytes(attempt.said.selector)).get("session")
        life = account.model.lives.get(named)
        if life is not None and life.closed is None:
            account.found.add("wrong_outcome", "not_found, and the session was never closed", named, [], lines)


def _as_asked(account: Account, message: int, tries: list[Attempt], call: Call, lines: list[int]) -> None:
    asked = [json.loads(bytes(attempt.said.selector)) for attempt in tries if isinstance(attempt.said, Invoke)]
    callers = {
        session
        for attempt in tries
        if isinstance(attempt.said, Invoke)
        for session, _ in account.holder.get(account.dialled[attempt.said.conn][1].connection, [])
    }
    if call.selector not in asked or call.caller not in callers:
        account.found.add(
            "not_as_asked", f"message {message}: another selector or caller", call.caller, [call.position], lines
        )
    for attempt in tries:
        if len(tries) == 1 and isinstance(attempt.said, Invoke):
            _fenced(account, attempt, attempt.said, call)


def _fenced(account: Account, attempt: Attempt, said: Invoke, call: Call) -> None:
    """Asked of a gateway while that was stopped, and stored although the log had called it lost by then."""
    dialled = account.dialled[said.conn][1]
    for begun, fault in account.faults:
        if fault.kind != "pause-gateway" or fault.phase != "begin" or fault.gateway != dialled.gateway:
            continue
        over = next(
            (line for line, end in account.faults if end.fault == fault.fault and end.phase == "end"),
            len(account.evidence.history) + 1,
        )
        if not begun < attempt.line < over:
            continue
        for session, _ in account.holder.get(dialled.connection, []):
            for holding in account.model.lives[session].holdings:
                lost = account.model.node_lost.get(holding.incarnation)
                if holding.connection == dialled.connection and lost is not None and call.sequence > lost:
                    account.found.add(
                        "fenced_append",
                        "a node that was lost by then has appended what it was asked while stopped",
                        session,
                        [call.position],
                        [attempt.line, begun],
                    )


def _commands(account: Account) -> None:
    events = {event.position: event for event in account.evidence.log}
    for attempt in account.attempts.values():
        ok, said = attempt.ok, attempt.said
        if ok is None or ok.position is None or not isinstance(said, Command):
            continue
        account.figures.commands += 1
        event = events.get(ok.position)
        lines = [attempt.line, attempt.end_line or attempt.line]
        if event is None or not event.type.startswith("session."):
            account.found.add("acknowledged_missing", f"{said.do} is not in the log", None, [ok.position], lines)
            continue
        session = event.subject.split(".")[-2]
        life = account.model.lives.get(session)
        if said.session is not None:
            if session != said.session or life is None or life.closed is None:
                account.found.add("not_as_asked", "kicked, and not closed", said.session, [ok.position], lines)
        elif life is not None and ok.groups is not None:
            after = dict(life.groups_at).get(place(ok.position)[1])
            if after != tuple(ok.groups):
                what = f"{said.do} was answered with {ok.groups}, the log says {list(after or ())}"
                account.found.add("membership", what, session, [ok.position], lines)
