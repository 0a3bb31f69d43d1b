"""The coordinator of a node: who is here, where each stands, and who is told of it."""

import pytest

from events.ids import SessionId
from service.sessions.coordinator import Coordinator, Standing


class Connection:
    def __init__(self, name: str) -> None:
        self.id = name
        self.session_id = SessionId("")
        self.ended = False
        self.ticks: list[float] = []
        self.failed = False
        self.defect: Exception | None = None

    def tick(self, now_s: float) -> None:
        if self.defect is not None:
            raise self.defect
        self.ticks.append(now_s)

    def fail(self) -> None:
        self.failed = True


def served(coordinator: Coordinator[Connection], name: str) -> Connection:
    connection = Connection(name)
    coordinator.create(connection)
    connection.session_id = SessionId(f"s-{name}")
    coordinator.move(connection, "active")
    return connection


def test_every_move_is_told_in_order() -> None:
    coordinator: Coordinator[Connection] = Coordinator()
    told: list[tuple[str, Standing | None, Standing | None]] = []
    coordinator.observe(lambda one, before, after: told.append((one.id, before, after)))
    connection = Connection("c")
    coordinator.create(connection)
    coordinator.move(connection, "authenticating")
    coordinator.move(connection, "active")
    coordinator.move(connection, "active")  # with another session: it stands where it stood
    coordinator.move(connection, "detached")
    coordinator.remove(connection)
    coordinator.move(connection, "closed")  # comes too late
    assert told == [
        ("c", None, "connecting"),
        ("c", "connecting", "authenticating"),
        ("c", "authenticating", "active"),
        ("c", "active", "detached"),
        ("c", "detached", None),
    ]
    assert len(coordinator) == 0
    assert not any(coordinator.counts.values())


def test_connections_are_found_by_id_and_by_session() -> None:
    coordinator: Coordinator[Connection] = Coordinator()
    one, other = served(coordinator, "a"), served(coordinator, "b")
    assert coordinator.find("a") is one
    assert coordinator.serving(SessionId("s-b")) is other
    assert list(coordinator) == [one, other]
    assert coordinator.counts["active"] == 2
    assert coordinator.standing("a") == "active"
    coordinator.remove(one)
    assert coordinator.find("a") is coordinator.serving(SessionId("s-a")) is coordinator.standing("a") is None
    with pytest.raises(ValueError, match="there already"):
        coordinator.create(Connection("b"))


def test_a_session_that_was_taken_over_is_the_newer_connections() -> None:
    coordinator: Coordinator[Connection] = Coordinator()
    old, new = served(coordinator, "old"), served(coordinator, "new")
    coordinator.forget_session(new, new.session_id)
    new.session_id = old.session_id
    coordinator.move(new, "active")
    assert coordinator.serving(SessionId("s-new")) is None
    assert coordinator.serving(SessionId("s-old")) is new
    coordinator.remove(old)  # the end of the old one does not take it from the new one
    assert coordinator.serving(SessionId("s-old")) is new


def test_a_defect_in_a_timer_or_an_observer_stays_where_it_is() -> None:
    coordinator: Coordinator[Connection] = Coordinator()
    told: list[str] = []

    def broken(*_: object) -> None:
        raise RuntimeError("an observer's defect")

    coordinator.observe(broken)
    coordinator.observe(lambda one, _before, _after: told.append(one.id))
    first, second, third = (served(coordinator, name) for name in "abc")
    first.defect, third.ended = RuntimeError("a timer's defect"), True
    coordinator.evaluate(list(coordinator), 7.0)
    assert first.failed
    assert second.ticks == [7.0]
    assert third.ticks == []
    assert told == ["a", "a", "b", "b", "c", "c"]
