"""The checker finds nothing in a true history, and each fault of the service in a false one."""

from pathlib import Path
from typing import Literal

import pytest

from lab.chaos.checker import check
from lab.chaos.history import (
    Command,
    Delivered,
    Ended,
    Evidence,
    Fail,
    Fault,
    Greeted,
    History,
    Invoke,
    Ok,
    read_evidence,
    write_log,
)
from lab.chaos.run import judge
from lab.chaos.verdict import Verdict
from tests.servers.chaos_histories import MUTATIONS, Mutation, Truth, at, drop_one, truth


def test_a_true_history_has_no_violation() -> None:
    verdict = check(truth().evidence())
    assert verdict.violations == []
    assert verdict.figures.expected == verdict.figures.deliveries > 20
    assert (verdict.figures.resumed, verdict.figures.settled) == (2, 4)


@pytest.mark.parametrize(("mutation", "kind"), MUTATIONS.items(), ids=lambda one: getattr(one, "__name__", one))
def test_each_mutation_is_reported(mutation: Mutation, kind: str) -> None:
    verdict = check(mutation(truth().evidence()))
    assert kind in verdict.kinds
    found = next(one for one in verdict.violations if one.kind == kind)
    assert found.positions or found.lines  # evidence


def test_a_lost_message_is_named_with_its_session_and_position() -> None:
    hub = truth()
    message = hub.invoke("a", {"to": "user", "user": "bob"}, {"b"})
    position = at(hub.sequence)
    evidence = hub.evidence()
    history = [one for one in evidence.history if not (isinstance(one, Delivered) and one.message == message)]
    (lost,) = check(Evidence(history, evidence.log, evidence.pages)).violations
    assert (lost.kind, lost.session, lost.positions) == ("lost", "b", [position])
    assert f"message {message} " in lost.what


def test_an_outcome_that_nobody_knows_may_be_either_but_consistently() -> None:
    hub = truth()
    hub.invoke("a", {"to": "all"}, set(), stored=False)  # sent, and never seen again
    unseen = hub.invoke("b", {"to": "group", "group": "g"}, set(), stored=False)
    hub.store("b", {"to": "group", "group": "g"}, unseen, {"a", "b"})  # stored, and its answer was lost
    assert check(hub.evidence()).violations == []

    hub = truth()
    unseen = hub.invoke("b", {"to": "group", "group": "g"}, set(), stored=False)
    hub.store("b", {"to": "group", "group": "g"}, unseen, {"a"})
    assert check(hub.evidence()).kinds == {"lost"}


def kicked_behind_the_end(told: Literal["ok", "never", "refused before"]) -> Verdict:
    """Call 900 asks for the end of ``a``, which the log has behind the last mark."""
    hub = truth()
    hub.history.append(Command(call=900, do="kick", session="a"))
    if told == "refused before":
        hub.history.append(Fail(call=900, error="draining"))
    settled = hub.evidence().history
    data = {"connection": hub.states["a"]["connection"], "reason": "kicked", "groups": hub.states["a"]["groups"]}
    position = hub.change("a", "closed", data, status="closed", reason="kicked", groups={})
    settled.append(Ended(conn=hub.conn_of["a"], why="kicked"))
    if told == "ok":
        settled.append(Ok(call=900, position=position))
    return check(Evidence(settled, hub.log, hub.pages()))


def test_who_is_kicked_by_a_call_that_was_under_way_at_the_end_was_ended_rightly() -> None:
    assert kicked_behind_the_end("ok").violations == []
    assert kicked_behind_the_end("never").violations == []
    assert "false_end" in kicked_behind_the_end("refused before").kinds


def test_delivered_and_in_no_log() -> None:
    hub = truth()
    hub.history.append(Delivered(conn=hub.conn_of["a"], message=999, position=at(999)))
    assert check(hub.evidence()).kinds == {"not_in_log"}


def test_delivered_to_somebody_else() -> None:
    hub = truth()
    message = hub.invoke("a", {"to": "client", "session": "b"}, {"b"})
    hub.history.append(Delivered(conn=hub.conn_of["c"], message=message, position=at(hub.sequence)))
    assert check(hub.evidence()).kinds == {"not_meant"}


def test_a_refused_call_that_was_stored() -> None:
    hub = truth()
    message = hub.invoke("a", {"to": "all"}, {"a", "b", "c", "p"})
    evidence = hub.evidence()
    (asked,) = (one.call for one in evidence.history if isinstance(one, Invoke) and one.message == message)
    history = [
        Fail(call=asked, error="suspended: no") if isinstance(one, Ok) and one.call == asked else one
        for one in evidence.history
    ]
    assert check(Evidence(history, evidence.log, evidence.pages)).kinds == {"refused_but_stored"}


def test_not_found_may_be_stored_where_the_session_closed_just_before_but_nowhere_else() -> None:
    def play(*, closed: bool) -> Truth:
        hub = truth()
        message = hub.invoke("a", {"to": "client", "session": "b"}, set(), stored=False)
        if closed:
            hub.close("b")
        hub.store("a", {"to": "client", "session": "b"}, message, set() if closed else {"b"})
        hub.history.append(Ok(call=hub.calls, outcome="not_found"))
        return hub

    assert check(play(closed=True).evidence()).violations == []
    assert check(play(closed=False).evidence()).kinds == {"wrong_outcome"}


def test_a_session_that_ended_has_a_prefix_and_no_more_is_asked_of_it() -> None:
    hub = truth()
    hub.detach("b", "transport_error")
    for _ in range(3):
        hub.invoke("a", {"to": "client", "session": "b"}, {"b"})  # kept for it; it never comes back
    assert check(hub.evidence()).violations == []


def test_what_a_stopped_node_was_asked_may_not_be_stored_once_it_is_lost() -> None:
    def play(*, stored: bool) -> Truth:
        hub = truth()
        hub.history.append(Fault(fault=1, kind="pause-gateway", phase="begin", gateway=0))
        unread = hub.invoke("a", {"to": "client", "session": "b"}, {"b"}, stored=False)
        hub.detach("a", "node_lost")
        hub.resume("a", gateway=1)
        if stored:
            hub.store("a", {"to": "client", "session": "b"}, unread, {"b"})
        hub.history.append(Fault(fault=1, kind="pause-gateway", phase="end", gateway=0))
        return hub

    assert check(play(stored=False).evidence()).violations == []
    assert check(play(stored=True).evidence()).kinds == {"fenced_append"}


def test_delivered_by_a_connection_that_was_replaced() -> None:
    hub = truth()
    old = hub.conn_of["a"]
    hub.resume("a")
    message = hub.invoke("b", {"to": "client", "session": "a"}, {"a"})
    hub.history.append(Delivered(conn=old, message=message, position=at(hub.sequence)))
    assert "delivered_after_end" in check(hub.evidence()).kinds


def test_messages_come_again_only_where_that_is_said() -> None:
    def play(resync: str | None) -> Truth:
        hub = truth()
        message = hub.invoke("a", {"to": "client", "session": "b"}, {"b"})
        sequence = hub.sequence
        hub.resume("b")
        hub.history[-1] = Greeted(
            conn=hub.conn_of["b"], session="b", cursor=at(sequence - 1), resumed=True, resync=resync
        )
        hub.history.append(Delivered(conn=hub.conn_of["b"], message=message, position=at(sequence)))
        return hub

    assert check(play("repeated").evidence()).violations == []
    assert check(play(None).evidence()).kinds == {"duplicated"}
    assert check(play("lost").evidence()).kinds == {"resume_lost", "duplicated"}


def test_what_was_missed_comes_behind_the_answer_of_hub_resume() -> None:
    def play(*, early: bool) -> Truth:
        hub = truth()
        hub.detach("b")
        hub.invoke("a", {"to": "client", "session": "b"}, {"b"})
        hub.resume_by_method("b", early=early)
        return hub

    assert check(play(early=False).evidence()).violations == []
    assert check(play(early=True).evidence()).kinds == {"before_answer"}


def test_an_end_without_a_cause() -> None:
    hub = truth()
    hub.detach("b", "node_lost")
    hub.resume("b")
    assert check(hub.evidence()).kinds == {"no_cause"}


def test_the_evidence_survives_the_disk(tmp_path: Path) -> None:
    evidence = drop_one(truth().evidence())
    history = History(tmp_path)
    for record in evidence.history:
        history.add(record)
    history.close()
    write_log(tmp_path, evidence.log, evidence.pages)
    assert read_evidence(tmp_path) == evidence
    assert judge(tmp_path) == check(evidence)
    assert (tmp_path / "verdict.json").stat().st_size > 0
