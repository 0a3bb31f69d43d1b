"""Which calls a connection carries, in which order, and what becomes of them when it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hublog import ClientClosed, ConnectionLost, HublogError, OutcomeUnknown, wire
from hublog.calls import Call, Calls


def carried(calls: Calls, link: object) -> list[str]:
    found = []
    while (call := calls.next_for(link)) is not None:
        found.append(call.number)
    return found


def completion(call: Call, result: str = "1") -> wire.Message:
    return wire.message(f'{{"type":3,"invocationId":"{call.number}","result":{result}}}'.encode())


async def test_no_link_carries_a_call_twice_and_the_next_one_begins_with_what_was_under_way() -> None:
    calls = Calls()
    one, two, three = (calls.add("hub.invoke", [], key) for key in ("a", None, "c"))
    assert carried(calls, "first") == ["1", "2", "3"]
    assert carried(calls, "first") == []
    four = calls.add("hub.groups", [], None)
    calls.answered(completion(three))
    calls.lost("first", repeatable=True)
    assert isinstance(two.answer.exception(), ConnectionLost)
    five = calls.add("hub.invoke", [], "e")
    calls.forget(four)
    assert carried(calls, "second") == ["1", "5"]
    assert (bytes(await three.answer), one.sent, five.sent) == (b"1", True, True)


async def test_a_link_that_was_lost_already_takes_nothing_with_it() -> None:
    calls = Calls()
    calls.add("hub.invoke", [], "a")
    calls.lost("never used", repeatable=False)
    assert carried(calls, "next") == ["1"]


async def test_the_end_tells_what_was_sent_from_what_was_not() -> None:
    calls, cause = Calls(), HublogError("why")
    sent = calls.add("hub.invoke", [], "a")
    assert carried(calls, "link") == ["1"]
    unsent = calls.add("hub.invoke", [], "b")
    calls.end("over", cause)
    with pytest.raises(OutcomeUnknown) as unknown:
        await sent.answer
    with pytest.raises(ClientClosed) as closed:
        await unsent.answer
    assert unknown.value.key == "a"
    assert closed.value.__cause__ is unknown.value.__cause__ is cause
    assert (len(calls), calls.next_for("link")) == (0, None)
    assert calls.answered(completion(sent)) is None


STEPS = st.lists(st.sampled_from(["add keyed", "add", "send", "answer", "lose"]), max_size=60)


@given(STEPS)
async def test_calls_with_a_key_are_answered_in_the_end_and_leave_in_order(steps: list[str]) -> None:
    calls, link, made = Calls(), 0, list[Call]()
    sent: list[Call] = []
    for step in steps:
        if step.startswith("add"):
            made.append(calls.add("hub.invoke", [], "k" if step == "add keyed" else None))
        elif step == "send" and (call := calls.next_for(link)) is not None:
            sent.append(call)
        elif step == "answer" and sent:
            calls.answered(completion(sent.pop(0)))
        elif step == "lose":
            calls.lost(link, repeatable=True)
            link, sent = link + 1, []
        assert [int(call.number) for call in sent] == sorted(int(call.number) for call in sent)
    while (call := calls.next_for(link)) is not None:
        sent.append(call)
    for call in sent:
        calls.answered(completion(call))
    assert len(calls) == 0
    for call in made:
        failed = call.answer.exception()
        assert failed is None or (call.key is None and isinstance(failed, ConnectionLost))
