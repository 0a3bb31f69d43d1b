"""The judgement: the history of the clients against the log, and the read models against the log.

Pure: evidence in, a verdict out, the same each time. It takes nothing on trust: what a session must receive is the
model's own reading of the log, what a client was told is its history. Every violation names its evidence. Judged here:
what was delivered, and how sessions ended.
"""

from lab.chaos.account import Account, Segment
from lab.chaos.asked import check_asked
from lab.chaos.history import Command, Evidence, Greeted, LogEvent
from lab.chaos.pages import check_pages
from lab.chaos.verdict import Figures, Verdict, Violations

NATS_FAULTS = frozenset({"kill-nats", "pause-nats", "cut-nats", "stall-nats"})
GATEWAY_FAULTS = frozenset({"kill-gateway", "pause-gateway", "restart-gateway"}) | NATS_FAULTS
CLUSTER_FAULTS = frozenset({"kill-leader", "pause-leader", "move-leader", "wipe-node", "part-node"})
"""None of them is a reason to call a node lost: two servers of three are always well, and a node can go there."""


def check(evidence: Evidence) -> Verdict:
    """Everything, in one go."""
    found, figures = Violations(), Figures()
    account = Account(evidence, found, figures)
    check_asked(account)
    _deliveries(account)
    _lifecycle(account)
    check_pages(evidence, found)
    _figure(account)
    return Verdict(found.all, figures)


# -------------------------------------------------------------------------------------------- deliveries


def _deliveries(account: Account) -> None:
    alive = {one.session: conn for conn, (_, one) in account.settled.items()}
    for session, life in account.model.lives.items():
        segments = account.segments.get(session, [])
        expected = life.expected
        covered: set[int] = set()
        meant = set(expected)
        told_lost: set[int] = set()
        for segment in segments:
            _one_segment(account, segment, meant, expected, covered, told_lost)
        settled = alive.get(session)
        horizon = account.marker if settled is not None and account.marker is not None else 0
        horizon = max([horizon, *covered, *(segment.cursor for segment in segments if not segment.fresh)])
        missing = [sequence for sequence in expected if sequence <= horizon and sequence not in covered]
        for sequence in missing:
            if sequence not in told_lost:
                lines = [segment.line for segment in segments[-1:]]
                _lost(account, session, sequence, lines)
        account.figures.sessions += bool(segments)
        account.figures.overlapping += sum(len(segment.delivered) for segment in segments) - len(covered)
        account.figures.expected += sum(1 for sequence in expected if sequence <= horizon)
    if account.settled and account.marker is None:
        account.found.add("marker", "the last message is not in the log: nothing can be said of the end", None, [])


def _one_segment(
    account: Account, segment: Segment, meant: set[int], expected: list[int], covered: set[int], told_lost: set[int]
) -> None:
    session, before, seen = segment.session, 0, set[int]()
    for sequence, line in segment.delivered:
        where = [account.by_sequence[sequence].position]
        if sequence in seen:
            account.found.add("duplicated", "twice on one connection", session, where, [line])
        elif sequence < before:
            account.found.add("out_of_order", "after a later one", session, where, [line])
        elif sequence <= segment.cursor and not segment.repeated and not segment.fresh:
            account.found.add("duplicated", "again, at or before the cursor that was shown", session, where, [line])
        if sequence not in meant:
            account.found.add("not_meant", "the session was not to receive it", session, where, [line])
        before = max(before, sequence)
        seen.add(sequence)
    for sequence in expected:
        if segment.cursor < sequence < before and sequence not in seen:
            told_lost.add(sequence)
            _lost(account, session, sequence, [segment.line])
    covered |= seen


def _lost(account: Account, session: str, sequence: int, lines: list[int]) -> None:
    call = account.by_sequence[sequence]
    what = f"message {call.message} was never delivered"
    account.found.add("lost", what, session, [call.position], lines)


# -------------------------------------------------------------------------------------------- lifecycle


def _lifecycle(account: Account) -> None:
    conn_of = {dialled.connection: conn for conn, (_, dialled) in account.dialled.items()}
    for life in account.model.lives.values():
        for holding in life.holdings:
            conn = conn_of.get(holding.connection)
            segments = [one for one in account.segments.get(life.session, []) if one.conn == conn]
            for segment in segments:
                for sequence, line in segment.delivered:
                    if holding.until is not None and sequence > holding.until:
                        where = [account.by_sequence[sequence].position]
                        what = f"delivered by a connection that the log had ended ({holding.why})"
                        account.found.add("delivered_after_end", what, life.session, where, [line])
        settled = _settled(account, life.session)
        if settled and life.status != "active" and not _kick_under_way(account, life.session, min(settled)):
            account.found.add("false_end", f"{life.status} ({life.reason}) and alive", life.session, [], settled)
    for event, session, connection, reason in account.model.closings:
        _cause(account, event, session, conn_of.get(connection), reason)


def _settled(account: Account, session: str) -> list[int]:
    return [line for line, one in account.settled.values() if one.session == session]


def _kick_under_way(account: Account, session: str, line: int) -> bool:
    """Whether somebody asked for the session's end before ``line``, and was told how that went after it, or never."""
    return any(
        isinstance(one.said, Command)
        and one.said.session == session
        and one.line < line
        and (one.end_line is None or one.end_line > line)
        for one in account.attempts.values()
    )


def _cause(account: Account, event: LogEvent, session: str, conn: int | None, reason: str) -> None:
    """An end in the log has a reason that the history can tell."""
    kinds = {fault.kind for _, fault in account.faults}
    account.figures.ends[reason] = account.figures.ends.get(reason, 0) + 1
    kicked = any(isinstance(one.said, Command) and one.said.session == session for one in account.attempts.values())
    superseding = conn is not None and conn in account.resumes
    if conn is None:
        caused = True  # its dial was never answered, or it was detached before: the client knows no more
    elif conn not in account.ended:
        caused = False
    else:
        caused = {
            "client": conn in account.goodbyes,
            "kicked": kicked,
            "superseded": superseding,
            "node_lost": bool(kinds & GATEWAY_FAULTS),
            "draining": "restart-gateway" in kinds,
            "shutdown": "restart-gateway" in kinds,
            "hole": bool(kinds & (NATS_FAULTS | CLUSTER_FAULTS)),
            "slow_consumer": "stall-clients" in kinds,
            "expired": False,
            "unauthorised": False,
        }.get(reason, True)
    if reason == "superseded":
        caused = superseding  # the connection goes on, with the other session
    if not caused:
        lines = [account.dialled[conn][0]] if conn is not None else []
        account.found.add("no_cause", f"{event.type} ({reason}) has no cause", session, [event.position], lines)


def _figure(account: Account) -> None:
    figures = account.figures
    figures.connections = len(account.dialled)
    figures.resumed = sum(1 for one in account.evidence.history if isinstance(one, Greeted) and one.resumed)
    figures.events = len(account.evidence.log)
    figures.settled = len(account.settled)
    for _, fault in account.faults:
        if fault.phase == "begin":
            figures.faults[fault.kind] = figures.faults.get(fault.kind, 0) + 1
