"""Whose lease was silent for long enough, judged only by time in which somebody looked."""

from hypothesis import given
from hypothesis import strategies as st

from service.nodes.judge import GAP_MAX_S, LOST_AFTER_S, Watch


def look(watch: Watch, at_s: float, **renewals: int) -> set[str]:
    watch.saw(at_s, at_s, renewals)
    return set(watch.silent())


def test_ten_seconds_of_silence_under_our_eyes() -> None:
    watch = Watch()
    for second in range(10):
        assert look(watch, second, a=5, b=second) == set()
    assert look(watch, 10.0, a=5, b=10) == {"a"}
    assert watch.silent() == {"a": 5}
    assert look(watch, 11.0, a=6, b=11) == set(), "it is back"


def test_time_counts_from_an_answer_to_a_later_question() -> None:
    watch = Watch()
    watch.saw(0.0, 1.0, {"a": 5})
    for second in range(1, 9):
        watch.saw(second + 0.5, second + 1.5, {"a": 5})
    watch.saw(10.9, 11.5, {"a": 5})
    assert watch.silent() == {}, "asked 9.9 s after the first answer, answered 10.5 s after it"
    watch.saw(11.0, 12.0, {"a": 5})
    assert watch.silent() == {"a": 5}


def test_a_gap_or_a_lost_connection_starts_it_over() -> None:
    for interrupt in (True, False):
        watch = Watch()
        for second in range(10):
            look(watch, second, a=5)
        start = 9.0 + GAP_MAX_S
        if interrupt:
            watch.interrupted()
        else:
            start += 0.1
        for second in range(10):
            assert look(watch, start + second, a=5) == set()
        assert look(watch, start + 10, a=5) == {"a"}


def test_a_life_without_a_lease_is_watched_as_well() -> None:
    """Another one of the same name has taken the key: the lease says nothing of the older one any more."""
    watch = Watch()
    for second in range(3):
        watch.saw(second, second, {"old": second})
    for second in range(3, 12):
        watch.saw(second, second, {"new": second}, {"old"})
        assert watch.silent() == {}
    watch.saw(12.0, 12.0, {"new": 12}, {"old"})
    assert watch.silent() == {"old": 2}
    watch.saw(13.0, 13.0, {"new": 13})
    assert watch.silent() == {}, "nobody asks about it any more"


def test_the_last_look_stands_for_a_moment_only() -> None:
    watch = Watch()
    for second in range(11):
        look(watch, second, a=5)
    assert watch.still_silent("a", 10.0 + GAP_MAX_S)
    assert not watch.still_silent("a", 10.1 + GAP_MAX_S)
    watch.start_over("a")
    assert not watch.still_silent("a", 10.0)


STEPS = st.lists(st.tuples(st.sampled_from(["look", "renew", "cut"]), st.floats(0.0, 4.0)), max_size=60)


@given(STEPS)
def test_nobody_is_silent_who_renewed_or_was_not_watched(steps: list[tuple[str, float]]) -> None:
    """Held against the plain definition: 10 s before a look, without renewal, gap or cut."""
    watch = Watch()
    now_s, renewal = 0.0, 1
    looks: list[float] = []  # since the last interruption
    renewed_s = float("-inf")
    for what, wait_s in steps:
        now_s += wait_s
        if what == "renew":
            renewal, renewed_s = renewal + 1, now_s
        elif what == "cut":
            watch.interrupted()
            looks = []
        else:
            if looks and now_s - looks[-1] > GAP_MAX_S:
                looks = []
            looks.append(now_s)
            silent = bool(look(watch, now_s, a=renewal))
            first_after = next((at for at in looks if at >= renewed_s), now_s)
            assert silent == (now_s - first_after >= LOST_AFTER_S)
