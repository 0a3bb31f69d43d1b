"""The judgement: the history of the clients against the log, and the read models against the log.

Pure: evidence in, a verdict out, the same each time. It takes nothing on trust: what a session must receive is the
model's own reading of the log, what a client was told is its history. Every violation names its evidence.
"""

import json
from collections import defaultdict

import msgspec

from lab.chaos.history import (
    Began,
    Command,
    Delivered,
    Dialled,
    Ended,
    Evidence,
    Fail,
    Fault,
    Goodbye,
    Greeted,
    Invoke,
    LogEvent,
    Marker,
    Ok,
    Resume,
    Settled,
    Stranded,
    Unknown,
)
from lab.chaos.model import Call, Model, place
from lab.chaos.pages import check_pages
from lab.chaos.verdict import Figures, Verdict, Violations

NATS_FAULTS = frozenset({"kill-nats", "pause-nats", "cut-nats", "stall-nats"})
GATEWAY_FAULTS = frozenset({"kill-gateway", "pause-gateway", "restart-gateway"}) | NATS_FAULTS
CLUSTER_FAULTS = frozenset({"kill-leader", "pause-leader", "move-leader", "wipe-node", "part-node"})
"""None of them is a reason to call a node lost: two servers of three are always well, and a node can go there."""


class Segment(msgspec.Struct):
    """What one connection was sent for one session: (sequence, line), behind the cursor that the client showed."""

    conn: int
    session: str
    cursor: int
    line: int
    repeated: bool = False
    fresh: bool = False
    delivered: list[tuple[int, int]] = []


class Attempt(msgspec.Struct):
    """One ``hub.invoke`` or command, and what its client was told."""

    said: Invoke | Command
    line: int
    ok: Ok | None = None
    fail: Fail | None = None
    end_line: int | None = None


def check(evidence: Evidence) -> Verdict:
    """Everything, in one go."""
    return _Check(evidence).run()


class _Check:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.found = Violations()
        self.model = Model(self.found.add)
        self.figures = Figures()
        self.dialled: dict[int, tuple[int, Dialled]] = {}
        self.resumes: dict[int, Resume] = {}
        self.resuming: dict[int, Resume] = {}
        """Asked, and not answered so far."""
        self.ended: dict[int, tuple[int, Ended]] = {}
        self.goodbyes: dict[int, int] = {}
        self.settled: dict[int, tuple[int, Settled]] = {}
        self.attempts: dict[int, Attempt] = {}
        self.segments: dict[str, list[Segment]] = defaultdict(list)
        self.at_conn: dict[int, Segment] = {}
        self.faults: list[tuple[int, Fault]] = []
        self.marker: int | None = None

    def run(self) -> Verdict:
        for _ in self.model.fold(self.evidence.log):
            pass
        self.holder: dict[str, list[tuple[str, int]]] = defaultdict(list)  # connection: (session, since)
        for life in self.model.lives.values():
            for holding in life.holdings:
                self.holder[holding.connection].append((life.session, holding.since))
        self.by_message: dict[int, list[Call]] = defaultdict(list)
        for call in self.model.calls:
            if call.message is not None:
                self.by_message[call.message].append(call)
        self.by_sequence = {call.sequence: call for call in self.model.calls}
        self.events = {event.position: event for event in self.evidence.log}
        for line, record in enumerate(self.evidence.history, 1):
            self._take(line, record)
        self._invocations()
        self._commands()
        self._deliveries()
        self._lifecycle()
        check_pages(self.evidence, self.found)
        self._figure()
        return Verdict(self.found.all, self.figures)

    # -------------------------------------------------------------------------------------------- the history

    def _take(self, line: int, record: object) -> None:
        match record:
            case Dialled():
                self.dialled[record.conn] = (line, record)
            case Resume():
                self.resumes[record.conn] = self.resuming[record.conn] = record
            case Greeted():
                self._greeted(line, record)
            case Delivered():
                self._delivered(line, record)
            case Ended():
                self.ended[record.conn] = (line, record)
            case Goodbye():
                self.goodbyes[record.conn] = line
            case Invoke() | Command():
                self.attempts[record.call] = Attempt(record, line)
            case Ok():
                self.attempts[record.call].ok, self.attempts[record.call].end_line = record, line
            case Fail():
                self.attempts[record.call].fail, self.attempts[record.call].end_line = record, line
            case Fault():
                self.faults.append((line, record))
            case Marker():
                calls = self.by_message.get(record.message)
                self.marker = calls[0].sequence if calls else None
            case Settled():
                self.settled[record.conn] = (line, record)
            case Stranded():
                self.found.add("stranded", f"client {record.client} found no way back: {record.why}", None, [], [line])
            case Began() | Unknown():
                pass

    def _segment(self, conn: int, line: int) -> Segment | None:
        """The segment of a connection as the log has it; None where the log does not know the connection."""
        known = self.at_conn.get(conn)
        if known is not None:
            return known
        _, dialled = self.dialled[conn]
        held = self.holder.get(dialled.connection, [])
        if not held:
            return None
        session, since = min(held, key=lambda one: one[1])
        resumed = dialled.session == session and dialled.cursor is not None
        cursor = place(dialled.cursor)[1] if resumed and dialled.cursor is not None else since
        return self._begin(Segment(conn, session, cursor, line, fresh=not resumed))

    def _begin(self, segment: Segment) -> Segment:
        life = self.model.lives[segment.session]
        # Until the client is told, or if it never is: a hole that the log states may make messages come again.
        segment.repeated = any(rewind < segment.cursor for rewind in life.rewinds)
        self.at_conn[segment.conn] = segment
        self.segments[segment.session].append(segment)
        return segment

    def _greeted(self, line: int, record: Greeted) -> None:
        segment = self._segment(record.conn, line)
        _, dialled = self.dialled[record.conn]
        resume = self.resumes.get(record.conn)
        self.resuming.pop(record.conn, None)
        taken = resume is not None and record.resumed and resume.session == record.session
        already = segment is not None and segment.session == record.session
        if resume is not None and taken and not already and record.session in self.model.lives:
            segment = self._begin(Segment(record.conn, record.session, place(resume.cursor)[1], line))
        if segment is None or segment.session != record.session:
            self.found.add(
                "wrong_session", f"the connection is told that it is {record.session}", record.session, [], [line]
            )
            return
        segment.repeated = record.resync == "repeated"
        if dialled.session is not None and not record.resumed:
            self._refused(line, dialled.session, record)
        elif record.resync == "lost":
            self.found.add("resume_lost", "the service says that messages are lost", record.session, [], [line])

    def _refused(self, line: int, session: str, record: Greeted) -> None:
        """A resume may be refused only where the session is closed."""
        life = self.model.lives.get(session)
        self.figures.resumes_refused += 1
        if life is None or life.closed is None:
            self.found.add("resume_refused", f"{record.code}, and the session is not closed", session, [], [line])

    def _delivered(self, line: int, record: Delivered) -> None:
        self.figures.deliveries += 1
        segment = self._segment(record.conn, line)
        if segment is not None and record.conn in self.resuming:
            segment = self._early(self.resuming.pop(record.conn), segment, record, line)
        session = segment.session if segment is not None else None
        calls = self.by_message.get(record.message, [])
        if not calls:
            positions = [record.position] if record.position else []
            self.found.add("not_in_log", f"message {record.message} is not in the log", session, positions, [line])
            return
        call = calls[0]
        if record.position is not None and record.position != call.position:
            told = [record.position, call.position]
            self.found.add("wrong_position", f"message {record.message} has another position", session, told, [line])
        if segment is None:
            self.found.add("not_meant", "delivered to a connection that no session has", None, [call.position], [line])
        else:
            segment.delivered.append((call.sequence, line))

    def _early(self, resume: Resume, own: Segment, record: Delivered, line: int) -> Segment:
        """Delivered between ``hub.resume`` and its answer: it is for the session that was asked for, and too early."""
        life = self.model.lives.get(resume.session)
        connection = self.dialled[record.conn][1].connection
        if life is None or all(holding.connection != connection for holding in life.holdings):
            return own
        where = [record.position] if record.position else []
        self.found.add("before_answer", "delivered before hub.resume was answered", resume.session, where, [line])
        return self._begin(Segment(record.conn, resume.session, place(resume.cursor)[1], line))

    # -------------------------------------------------------------------------------------------- what was asked

    def _invocations(self) -> None:
        attempts: dict[int, list[Attempt]] = defaultdict(list)
        answered: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts.values():
            if isinstance(attempt.said, Invoke):
                attempts[attempt.said.message].append(attempt)
                if attempt.ok is not None and not attempt.said.retry:
                    answered[attempt.said.conn].append(attempt)
        for message, tries in attempts.items():
            self._one_message(message, tries)
        for message, calls in self.by_message.items():
            if message not in attempts:
                self.found.add("not_asked", f"nobody sent message {message}", None, [calls[0].position])
        for inside in answered.values():
            before = 0
            for attempt in inside:
                if attempt.ok is not None and attempt.ok.position is not None:
                    sequence = place(attempt.ok.position)[1]
                    if sequence < before:
                        self.found.add(
                            "order_of_calls",
                            "of one connection, a later call has the lower position",
                            None,
                            [attempt.ok.position],
                            [attempt.line],
                        )
                    before = sequence

    def _one_message(self, message: int, tries: list[Attempt]) -> None:
        calls = self.by_message.get(message, [])
        lines = [attempt.line for attempt in tries]
        if len(calls) > 1:
            where = [call.position for call in calls]
            self.found.add("stored_twice", f"message {message} is {len(calls)} times in the log", None, where, lines)
        for attempt in tries:
            self.figures.invocations += 1
            if attempt.ok is not None:
                self.figures.acknowledged += 1
                self._acknowledged(message, attempt, attempt.ok, calls)
            elif attempt.fail is not None:
                self.figures.refused += 1
            else:
                self.figures.unknown += 1
        if calls and all(attempt.fail is not None for attempt in tries):
            self.found.add(
                "refused_but_stored", f"message {message} was refused", calls[0].caller, [calls[0].position], lines
            )
        if calls:
            self._as_asked(message, tries, calls[0], lines)

    def _acknowledged(self, message: int, attempt: Attempt, ok: Ok, calls: list[Call]) -> None:
        lines = [attempt.line, attempt.end_line or attempt.line]
        if ok.position is None:
            if ok.outcome == "not_found":
                self._not_found(attempt, lines)
            # Closed between the look and the write: it is stored, means nobody, and is not found all the same.
            if calls and (ok.outcome != "not_found" or calls[0].audience):
                self.found.add(
                    "wrong_outcome", f"{ok.outcome} without a position, and stored", None, [calls[0].position], lines
                )
            return
        call = next((call for call in calls if call.position == ok.position), None)
        if call is None:
            self.found.add(
                "acknowledged_missing", f"message {message} is not at its position", None, [ok.position], lines
            )
            return
        state = next(iter(call.states.values()), "closed")
        outcome = {"active": "sent", "detached": "queued", "closed": "not_found"}[state]
        if call.selector["to"] != "client":
            outcome = "accepted"
        # A repeat may be told what the first was told, when that was: the state is that of the call's position.
        if ok.outcome != outcome:
            self.found.add("wrong_outcome", f"{ok.outcome}, and it was {outcome}", None, [ok.position], lines)

    def _not_found(self, attempt: Attempt, lines: list[int]) -> None:
        if isinstance(attempt.said, Invoke):
            named = json.loads(bytes(attempt.said.selector)).get("session")
            life = self.model.lives.get(named)
            if life is not None and life.closed is None:
                self.found.add("wrong_outcome", "not_found, and the session was never closed", named, [], lines)

    def _as_asked(self, message: int, tries: list[Attempt], call: Call, lines: list[int]) -> None:
        asked = [json.loads(bytes(attempt.said.selector)) for attempt in tries if isinstance(attempt.said, Invoke)]
        callers = {
            session
            for attempt in tries
            if isinstance(attempt.said, Invoke)
            for session, _ in self.holder.get(self.dialled[attempt.said.conn][1].connection, [])
        }
        if call.selector not in asked or call.caller not in callers:
            self.found.add(
                "not_as_asked", f"message {message}: another selector or caller", call.caller, [call.position], lines
            )
        for attempt in tries:
            if len(tries) == 1 and isinstance(attempt.said, Invoke):
                self._fenced(attempt, attempt.said, call)

    def _fenced(self, attempt: Attempt, said: Invoke, call: Call) -> None:
        """Asked of a gateway while that was stopped, and stored although the log had called it lost by then."""
        dialled = self.dialled[said.conn][1]
        for begun, fault in self.faults:
            if fault.kind != "pause-gateway" or fault.phase != "begin" or fault.gateway != dialled.gateway:
                continue
            over = next(
                (line for line, end in self.faults if end.fault == fault.fault and end.phase == "end"),
                len(self.evidence.history) + 1,
            )
            if not begun < attempt.line < over:
                continue
            for session, _ in self.holder.get(dialled.connection, []):
                for holding in self.model.lives[session].holdings:
                    lost = self.model.node_lost.get(holding.incarnation)
                    if holding.connection == dialled.connection and lost is not None and call.sequence > lost:
                        self.found.add(
                            "fenced_append",
                            "a node that was lost by then has appended what it was asked while stopped",
                            session,
                            [call.position],
                            [attempt.line, begun],
                        )

    def _commands(self) -> None:
        for attempt in self.attempts.values():
            ok, said = attempt.ok, attempt.said
            if ok is None or ok.position is None or not isinstance(said, Command):
                continue
            self.figures.commands += 1
            event = self.events.get(ok.position)
            lines = [attempt.line, attempt.end_line or attempt.line]
            if event is None or not event.type.startswith("session."):
                self.found.add("acknowledged_missing", f"{said.do} is not in the log", None, [ok.position], lines)
                continue
            session = event.subject.split(".")[-2]
            life = self.model.lives.get(session)
            if said.session is not None:
                if session != said.session or life is None or life.closed is None:
                    self.found.add("not_as_asked", "kicked, and not closed", said.session, [ok.position], lines)
            elif life is not None and ok.groups is not None:
                after = dict(life.groups_at).get(place(ok.position)[1])
                if after != tuple(ok.groups):
                    what = f"{said.do} was answered with {ok.groups}, the log says {list(after or ())}"
                    self.found.add("membership", what, session, [ok.position], lines)

    # -------------------------------------------------------------------------------------------- deliveries

    def _deliveries(self) -> None:
        alive = {one.session: conn for conn, (_, one) in self.settled.items()}
        for session, life in self.model.lives.items():
            segments = self.segments.get(session, [])
            expected = life.expected
            covered: set[int] = set()
            meant = set(expected)
            told_lost: set[int] = set()
            for segment in segments:
                self._one_segment(segment, meant, expected, covered, told_lost)
            settled = alive.get(session)
            horizon = self.marker if settled is not None and self.marker is not None else 0
            horizon = max([horizon, *covered, *(segment.cursor for segment in segments if not segment.fresh)])
            missing = [sequence for sequence in expected if sequence <= horizon and sequence not in covered]
            for sequence in missing:
                if sequence not in told_lost:
                    lines = [segment.line for segment in segments[-1:]]
                    self._lost(session, sequence, lines)
            self.figures.sessions += bool(segments)
            self.figures.overlapping += sum(len(segment.delivered) for segment in segments) - len(covered)
            self.figures.expected += sum(1 for sequence in expected if sequence <= horizon)
        if self.settled and self.marker is None:
            self.found.add("marker", "the last message is not in the log: nothing can be said of the end", None, [])

    def _one_segment(
        self, segment: Segment, meant: set[int], expected: list[int], covered: set[int], told_lost: set[int]
    ) -> None:
        session, before, seen = segment.session, 0, set[int]()
        for sequence, line in segment.delivered:
            where = [self.by_sequence[sequence].position]
            if sequence in seen:
                self.found.add("duplicated", "twice on one connection", session, where, [line])
            elif sequence < before:
                self.found.add("out_of_order", "after a later one", session, where, [line])
            elif sequence <= segment.cursor and not segment.repeated and not segment.fresh:
                self.found.add("duplicated", "again, at or before the cursor that was shown", session, where, [line])
            if sequence not in meant:
                self.found.add("not_meant", "the session was not to receive it", session, where, [line])
            before = max(before, sequence)
            seen.add(sequence)
        for sequence in expected:
            if segment.cursor < sequence < before and sequence not in seen:
                told_lost.add(sequence)
                self._lost(session, sequence, [segment.line])
        covered |= seen

    def _lost(self, session: str, sequence: int, lines: list[int]) -> None:
        call = self.by_sequence[sequence]
        what = f"message {call.message} was never delivered"
        self.found.add("lost", what, session, [call.position], lines)

    # -------------------------------------------------------------------------------------------- lifecycle

    def _lifecycle(self) -> None:
        conn_of = {dialled.connection: conn for conn, (_, dialled) in self.dialled.items()}
        for life in self.model.lives.values():
            for holding in life.holdings:
                conn = conn_of.get(holding.connection)
                segments = [one for one in self.segments.get(life.session, []) if one.conn == conn]
                for segment in segments:
                    for sequence, line in segment.delivered:
                        if holding.until is not None and sequence > holding.until:
                            where = [self.by_sequence[sequence].position]
                            what = f"delivered by a connection that the log had ended ({holding.why})"
                            self.found.add("delivered_after_end", what, life.session, where, [line])
            settled = [one for _, one in self.settled.values() if one.session == life.session]
            if settled and life.status != "active":
                self.found.add(
                    "false_end",
                    f"{life.status} ({life.reason}) and alive",
                    life.session,
                    [],
                    self._settled(life.session),
                )
        for event, session, connection, reason in self.model.closings:
            self._cause(event, session, conn_of.get(connection), reason)

    def _settled(self, session: str) -> list[int]:
        return [line for line, one in self.settled.values() if one.session == session]

    def _cause(self, event: LogEvent, session: str, conn: int | None, reason: str) -> None:
        """An end in the log has a reason that the history can tell."""
        kinds = {fault.kind for _, fault in self.faults}
        self.figures.ends[reason] = self.figures.ends.get(reason, 0) + 1
        kicked = any(isinstance(one.said, Command) and one.said.session == session for one in self.attempts.values())
        superseding = conn is not None and conn in self.resumes
        if conn is None:
            caused = True  # its dial was never answered, or it was detached before: the client knows no more
        elif conn not in self.ended:
            caused = False
        else:
            caused = {
                "client": conn in self.goodbyes,
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
            lines = [self.dialled[conn][0]] if conn is not None else []
            self.found.add("no_cause", f"{event.type} ({reason}) has no cause", session, [event.position], lines)

    def _figure(self) -> None:
        figures = self.figures
        figures.connections = len(self.dialled)
        figures.resumed = sum(1 for one in self.evidence.history if isinstance(one, Greeted) and one.resumed)
        figures.events = len(self.evidence.log)
        figures.settled = len(self.settled)
        for _, fault in self.faults:
            if fault.phase == "begin":
                figures.faults[fault.kind] = figures.faults.get(fault.kind, 0) + 1
