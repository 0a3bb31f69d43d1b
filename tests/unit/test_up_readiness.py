"""What ``hublog up`` says of a process that did not get ready, from what its ``/readyz`` answered."""

from service.up.units import NotReady, Readiness, readiness

ANSWER = (
    '{"ready":false,"checks":{"nats":"ok","partition 0":"halted: log_regressed: another log.","leases":"nobody looks"},'
    '"circuits":{"nats":"closed"},"pid":4711}'
)


def test_the_checks_that_are_red_are_named_a_line_each() -> None:
    said = readiness(ANSWER)
    assert said.pid == 4711
    assert said.red() == "  partition 0: halted: log_regressed: another log.\n  leases: nobody looks"


def test_what_is_no_answer_of_ours_is_of_nobody() -> None:
    assert readiness("<html>") == Readiness()
    assert readiness('{"status":"up"}').pid is None


def test_the_hint_does_not_speak_of_settings() -> None:
    assert "troubleshooting.md" in NotReady("it waits").hint
