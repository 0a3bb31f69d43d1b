"""What a check finds: violations with their evidence, and figures of what was checked."""

import msgspec

STATED_MAX = 200
"""Of one kind, so many are kept with their evidence; the rest is counted."""

MEANING = {
    "lost": "a session did not get an invocation that was meant for it",
    "duplicated": "a session got an invocation twice",
    "out_of_order": "a session got an earlier invocation after a later one",
    "not_meant": "a session got what was not meant for it",
    "not_in_log": "something was delivered that the log does not have",
    "wrong_position": "an invocation came with a position that is not its own",
    "acknowledged_missing": "something was acknowledged, and is not in the log there",
    "stored_twice": "one call is in the log more than once",
    "refused_but_stored": "a call was refused, and is in the log",
    "not_asked": "the log has a call that nobody made",
    "not_as_asked": "the log has something else than what was asked",
    "wrong_outcome": "an answer says sent, queued or not_found, and that was not so",
    "order_of_calls": "the calls of one connection changed their order",
    "membership": "an answer about groups is not what the log says",
    "ghost_member": "a read model has a member that the log does not have",
    "read_model": "a read model is not what a replay of the log gives",
    "log_illegal": "the log says what cannot follow what it said before",
    "carried_state": "an event carries another state than the log up to it gives",
    "fenced_append": "a node that had lost its claim has appended",
    "delivered_after_end": "a connection delivered after the log had ended it",
    "false_end": "the log has ended a connection that was alive",
    "no_cause": "the log has ended a connection, and nothing had happened to it",
    "resume_lost": "the service says that it lost messages",
    "resume_refused": "a resume was refused that was due",
    "before_answer": "what was missed came before the answer of the hub.resume that asked for it",
    "wrong_session": "a connection is told to be another session than the log says",
    "stranded": "a client found no way back when everything was well again",
    "marker": "the last message is missing",
}


class Violation(msgspec.Struct, frozen=True):
    """``lines`` are lines of ``history.jsonl``."""

    kind: str
    what: str
    session: str | None = None
    positions: list[str] = []
    lines: list[int] = []


class Violations:
    """Collects; of each kind only the first are kept with their evidence."""

    def __init__(self) -> None:
        self.all: list[Violation] = []
        self._counts: dict[str, int] = {}

    def add(
        self, kind: str, what: str, session: str | None, positions: list[str], lines: list[int] | None = None
    ) -> None:
        if kind not in MEANING:
            raise KeyError(kind)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= STATED_MAX:
            self.all.append(Violation(kind, what, session, positions, lines or []))


class Figures(msgspec.Struct):
    """How much was checked. ``expected``: deliveries that the log demands of sessions that were watched.

    ``overlapping``: those that an old connection had still got when a new one, behind an older cursor, got them too.
    """

    sessions: int = 0
    settled: int = 0
    connections: int = 0
    resumed: int = 0
    resumes_refused: int = 0
    invocations: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    commands: int = 0
    events: int = 0
    expected: int = 0
    deliveries: int = 0
    overlapping: int = 0
    faults: dict[str, int] = {}
    ends: dict[str, int] = {}


class Verdict(msgspec.Struct):
    """``violations`` is empty where all is well."""

    violations: list[Violation]
    figures: Figures

    @property
    def kinds(self) -> set[str]:
        return {violation.kind for violation in self.violations}
