"""What the clients' history says, put against the log: whose each connection was, what it was sent, what was asked.

Owns the placing of every record, and the violations that are seen in the placing itself: an answer that names another
session, a message that the log does not have. It judges nothing that needs more than the record at hand.
"""

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
    Marker,
    Ok,
    Resume,
    Settled,
    Stranded,
    Unknown,
)
from lab.chaos.model import Call, Model, place
from lab.chaos.verdict import Figures, Violations


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


class Account:
    """The evidence, read once; ``found`` and ``figures`` take what is noticed on the way."""

    def __init__(self, evidence: Evidence, found: Violations, figures: Figures) -> None:
        self.evidence = evidence
        self.found = found
        self.figures = figures
        self.model = Model(found.add)
        self.dialled: dict[int, tuple[int, Dialled]] = {}
        self.resumes: dict[int, Resume] = {}
        self.ended: dict[int, tuple[int, Ended]] = {}
        self.goodbyes: dict[int, int] = {}
        self.settled: dict[int, tuple[int, Settled]] = {}
        self.attempts: dict[int, Attempt] = {}
        self.segments: dict[str, list[Segment]] = defaultdict(list)
        self.faults: list[tuple[int, Fault]] = []
        self.marker: int | None = None
        self._at_conn: dict[int, Segment] = {}
        self._resuming: dict[int, Resume] = {}
        """Asked, and not answered so far."""
        for _ in self.model.fold(evidence.log):
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
        for line, record in enumerate(evidence.history, 1):
            self._take(line, record)

    def _take(self, line: int, record: object) -> None:
        match record:
            case Dialled():
                self.dialled[record.conn] = (line, record)
            case Resume():
                self.resumes[record.conn] = self._resuming[record.conn] = record
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
        known = self._at_conn.get(conn)
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
        self._at_conn[segment.conn] = segment
        self.segments[segment.session].append(segment)
        return segment

    def _greeted(self, line: int, record: Greeted) -> None:
        segment = self._segment(record.conn, line)
        _, dialled = self.dialled[record.conn]
        resume = self.resumes.get(record.conn)
        self._resuming.pop(record.conn, None)
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
        if segment is not None and record.conn in self._resuming:
            segment = self._early(self._resuming.pop(record.conn), segment, record, line)
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
