"""The whole client against a node that does what real ones do rarely: lose answers, refuse, fall silent, repeat."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hublog import (
    Client,
    ClientClosed,
    ConnectionLost,
    Invoked,
    OutcomeUnknown,
    Resync,
    ServerError,
    State,
    Timers,
    Unreachable,
)
from hublog import connector as hublog_connector
from hublog import inbox as hublog_inbox
from tests.servers.fake_hub import FakeHub, FakeLink, about, fake_hub
from tests.servers.processes import until

QUICK = Timers(open_s=2.0, backoff_first_s=0.01, backoff_longest_s=0.02)
INVOKED = {"invocationId": "i1", "position": "p9", "outcome": "accepted"}
ALL = {"to": "all"}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as started:
        yield started


class Watched:
    """A client and what it told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.given: list[object] = []
        self.states: list[State] = []
        self.resyncs: list[Resync] = []
        client.on("say", self.given.append)
        client.on_state(self.states.append)
        client.on_resync(self.resyncs.append)

    async def hears(self, *expected: object) -> None:
        await until(lambda: len(self.given) >= len(expected), what=f"{expected}", timeout_s=5)
        assert self.given == [*expected]


@asynccontextmanager
async def connected(
    hub: FakeHub, *, timers: Timers = QUICK, **options: object
) -> AsyncIterator[tuple[Watched, FakeLink]]:
    """A client and its first connection, opened as session s1 with token t1 and cursor p0."""
    watched = Watched(Client(hub.url, "h", timers=timers, **options))  # type: ignore[arg-type]
    entering = asyncio.create_task(watched.client.__aenter__())
    link = await hub.accept()
    await link.opens(token="t1" if link.query.get("resumable") else None)
    await entering
    try:
        yield watched, link
    finally:
        await watched.client.close()


# -------------------------------------------------------------------------------------------- resuming


async def test_it_connects_asking_for_positions(hub: FakeHub) -> None:
    async with connected(hub, user="ann é&+", metadata={"a": 1}) as (watched, link):
        assert link.query == {"user": "ann é&+", "meta": '{"a":1}', "resumable": "1"}
        assert (watched.client.state, watched.client.session_id, watched.client.cursor) == (State.ACTIVE, "s1", "p0")
    assert watched.states == [State.CONNECTING, State.ACTIVE, State.CLOSED]
    assert await link.heard() == {"type": 7}


async def test_it_resumes_with_the_newest_token_from_the_last_message(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        await link.message("p1", "say", 1)
        await link.message("p2", "unheard", 2)
        await watched.hears(1)
        await until(lambda: watched.client.cursor == "p2", what="the cursor")
        link.cut()
        again = await hub.accept()
        assert again.query == {"resumable": "1", "resume": "t1", "cursor": "p2"}
        hello = await again.shakes()
        await again.message("p3", "say", 3)
        await again.answer(hello, about("s1", "t2", "p3", resumed=True))
        await again.message("p4", "say", 4)
        await watched.hears(1, 3, 4)
        again.cut()
        third = await hub.accept()
        assert (third.query["resume"], third.query["cursor"]) == ("t2", "p4")
        assert watched.resyncs == []
        assert watched.states == [State.CONNECTING, State.ACTIVE, State.RECONNECTING, State.ACTIVE, State.RECONNECTING]
        await third.opens(token="t3", resumed=True)  # so that closing has nobody to wait for
        await until(lambda: watched.client.state is State.ACTIVE, what="the resume")


async def test_what_came_before_an_answer_that_never_came_counts_for_nothing(hub: FakeHub) -> None:
    """It may have been another session's. The service sends it again: nothing is lost, nothing given twice."""
    async with connected(hub) as (watched, link):
        link.cut()
        again = await hub.accept()
        await again.shakes()
        await again.message("p1", "say", 1)
        again.cut()
        third = await hub.accept()
        assert (third.query["resume"], third.query["cursor"]) == ("t1", "p0")
        await third.opens(token="t2", resumed=True)
        await third.message("p1", "say", 1)
        await watched.hears(1)


async def test_a_lost_session_is_told_before_what_follows(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        order: list[object] = []
        watched.client.on("say", order.append)
        watched.client.on_resync(order.append)
        await link.message("p1", "say", 1)
        await watched.hears(1)
        link.cut()
        again = await hub.accept()
        hello = await again.shakes()
        await again.message("p8", "say", 8)
        await again.answer(hello, about("s2", "t9", "p7", resync="lost", code="token_stale"))
        await watched.hears(1, 8)
        (told,) = watched.resyncs
        assert (told.kind, told.previous, told.session.session_id, told.code) == ("lost", "s1", "s2", "token_stale")
        assert order == [1, told, 8]
        assert watched.client.session_id == "s2"
        assert "t9" not in repr(told), "a token opens the session: it is not for logs"


async def test_messages_that_are_repeated_are_given_once(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        for number in (1, 3):
            await link.message(f"p{number}", "say", number)
        await watched.hears(1, 3)
        await link.close("hole: one was missed. Connect again.", reconnect=True)
        again = await hub.accept()
        await again.opens(token="t2", cursor="p0", resumed=True, resync="repeated")
        for number in (1, 2, 3, 4):
            await again.message(f"p{number}", "say", number)
        await watched.hears(1, 3, 2, 4)
        assert [told.kind for told in watched.resyncs] == ["repeated"]


async def test_a_resume_that_is_refused_outright_starts_anew(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        link.cut()
        again = await hub.accept()
        await again.refuse(await again.shakes(), "session_closed: it expired. Connect again for a new one.")
        third = await hub.accept()
        assert third.query == {"resumable": "1"}
        await third.opens("s2")
        await until(lambda: len(watched.resyncs) == 1, what="the resync")
        assert watched.resyncs[0].previous == "s1"


async def test_nodes_are_tried_in_turn() -> None:
    async with fake_hub() as one, fake_hub() as two:
        watched = Watched(Client([one.url, two.url], "h", timers=QUICK))
        entering = asyncio.create_task(watched.client.__aenter__())
        link = await one.accept()
        await link.opens()
        await entering
        for number, node in enumerate((two, one, two), start=2):
            link.cut()
            link = await node.accept()
            await link.opens(token=f"t{number}", resumed=True)
        await until(lambda: watched.client.state is State.ACTIVE, what="the resume")
        await watched.client.close()
        assert (one.requests, two.requests) == (2, 2)


# -------------------------------------------------------------------------------------------- calls


async def test_calls_are_answered_whatever_their_order(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        one, two = (asyncio.create_task(watched.client.invoke(ALL, "say", n, ttl_ms=5)) for n in (1, 2))
        first, second = await link.call("hub.invoke"), await link.call("hub.invoke")
        assert [call["arguments"][:3] for call in (first, second)] == [[ALL, "say", [1]], [ALL, "say", [2]]]
        keys = [call["arguments"][3].pop("key") for call in (first, second)]
        assert len(set(keys)) == 2
        assert first["arguments"][3] == {"ttlMs": 5}
        await link.refuse(second, "suspended: no lease. Try again.")
        await link.answer(first, INVOKED)
        assert await one == Invoked("i1", "p9", "accepted")
        with pytest.raises(ServerError) as refused:
            await two
        assert (refused.value.code, refused.value.hint, refused.value.retryable) == ("suspended", "Try again.", True)


async def test_calls_under_way_are_repeated_with_their_key_and_in_order_others_fail(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        first = asyncio.create_task(watched.client.invoke(ALL, "say", 1))
        join = asyncio.create_task(watched.client.join("lobby"))
        second = asyncio.create_task(watched.client.invoke(ALL, "say", 2, key="mine"))
        sent = [await link.heard() for _ in range(3)]
        link.cut()
        with pytest.raises(ConnectionLost) as lost:
            await join
        assert lost.value.retryable
        later = asyncio.create_task(watched.client.groups())
        again = await hub.accept()
        await again.opens(token="t2", resumed=True)
        repeated = [await again.heard() for _ in range(3)]
        assert repeated[:2] == [sent[0], sent[2]]
        assert repeated[1]["arguments"][3] == {"key": "mine"}
        assert repeated[2]["target"] == "hub.groups"
        for call in repeated[:2]:
            await again.answer(call, INVOKED)
        await again.answer(repeated[2], ["lobby"])
        assert await first == await second == Invoked("i1", "p9", "accepted")
        assert await later == ("lobby",)


async def test_another_session_repeats_nothing_of_the_former_one(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        under_way = asyncio.create_task(watched.client.invoke(ALL, "say", 1, key="mine"))
        await link.call("hub.invoke")
        link.cut()
        await until(lambda: watched.client.state is State.RECONNECTING, what="the loss")
        waiting = asyncio.create_task(watched.client.invoke(ALL, "say", 2))
        again = await hub.accept()
        await again.opens("s2", resync="lost")
        with pytest.raises(OutcomeUnknown) as unknown:
            await under_way
        assert (unknown.value.key, unknown.value.retryable) == ("mine", True)
        call = await again.call("hub.invoke")
        assert call["arguments"][2] == [2]
        await again.answer(call, INVOKED)
        await waiting


async def test_a_plain_client_gives_no_key_and_repeats_nothing(hub: FakeHub) -> None:
    async with connected(hub, resumable=False) as (watched, link):
        under_way = asyncio.create_task(watched.client.invoke(ALL, "say", 1))
        assert (await link.call("hub.invoke"))["arguments"] == [ALL, "say", [1]]
        assert link.query == {}
        await link.message(None, "say", "no position")
        await watched.hears("no position")
        link.cut()
        with pytest.raises(ConnectionLost):
            await under_way
        again = await hub.accept()
        assert again.query == {}


async def test_a_call_that_is_not_answered_in_time_says_whether_it_was_sent(hub: FakeHub) -> None:
    async with connected(hub, call_timeout_s=0.1) as (watched, link):
        with pytest.raises(OutcomeUnknown) as unknown:
            await watched.client.invoke(ALL, "say", key="mine")
        assert unknown.value.key == "mine"
        await link.answer(await link.call("hub.invoke"), INVOKED)  # nobody waits for it any more
        link.cut()
        await until(lambda: watched.client.state is State.RECONNECTING, what="the loss")
        with pytest.raises(Unreachable):
            await watched.client.groups()


async def test_handlers_may_call(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        answers: list[Invoked] = []

        async def reply(number: int) -> None:
            answers.append(await watched.client.invoke(ALL, "said", number))

        watched.client.on("ask", reply)
        await link.message("p1", "ask", 1)
        await link.answer(await link.call("hub.invoke"), INVOKED)
        await until(lambda: len(answers) == 1, what="the answer")
        await link.message("p2", "say", 2)
        await watched.hears(2)


async def test_a_handler_that_waits_for_an_answer_does_not_stop_the_reading(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the mark nothing is read, unless an answer is awaited: it stands behind the messages in the same socket."""
    monkeypatch.setattr(hublog_inbox, "READ_ON_BYTES", 2_000)
    async with connected(hub) as (watched, link):
        go = asyncio.Event()

        async def reply(_: int) -> None:
            await go.wait()
            await watched.client.groups()

        watched.client.on("say", reply)
        for number in range(50):
            await link.message(f"p{number}", "say", number)
        await until(lambda: watched.client._handlers.inbox.bytes >= 2_000, what="the mark")
        assert watched.client.cursor != "p49", "the reading has stopped"
        go.set()
        for _ in range(50):
            await link.answer(await link.call("hub.groups"), [])
        await watched.hears(*range(50))
        assert watched.client.cursor == "p49"


# -------------------------------------------------------------------------------------------- ends


async def test_a_close_that_allows_no_reconnect_ends_it_after_what_was_received(hub: FakeHub) -> None:
    async with connected(hub) as (watched, link):
        under_way = asyncio.create_task(watched.client.invoke(ALL, "say"))
        await link.call("hub.invoke")
        await link.message("p1", "say", 1)
        await link.close("kicked: closed by an administrator. Ask them.")
        await watched.client.wait_closed()
        assert watched.given == [1]
        assert watched.client.state is State.CLOSED
        assert watched.client.error is not None
        assert watched.client.error.code == "kicked"
        with pytest.raises(OutcomeUnknown, match="the client has ended: kicked: closed by an administrator"):
            await under_way
        with pytest.raises(ClientClosed) as closed:
            await watched.client.groups()
        assert closed.value.__cause__ is watched.client.error
    assert hub.requests == 1


@pytest.mark.parametrize("code", ["bad_handshake: no. Do.", "http"])
async def test_a_refusal_for_good_is_raised_on_entering(hub: FakeHub, code: str) -> None:
    client = Client(hub.url, "h", timers=QUICK)
    if code == "http":
        hub.status = 400
    entering = asyncio.create_task(client.__aenter__())
    if code != "http":
        link = await hub.accept()
        await link.say({"error": code})
    with pytest.raises(ServerError) as refused:
        await entering
    assert refused.value.code == ("http_400" if code == "http" else "bad_handshake")
    assert client.state is State.CLOSED
    with pytest.raises(ClientClosed, match="once"):
        await client.__aenter__()


@pytest.mark.parametrize(
    ("negotiation", "code", "message", "hint"),
    [
        ({"error": "invalid_name: no hub. Name one."}, "invalid_name", "no hub", "Name one."),
        ({"code": "not_found", "detail": "nothing here", "hint": "Look."}, "not_found", "nothing here", "Look."),
        ({"connectionToken": "t"}, "http_400", "the gateway refused with HTTP 400", "Check the address"),
    ],
)
async def test_a_refusal_for_good_has_the_words_of_the_service(
    hub: FakeHub, negotiation: dict[str, str], code: str, message: str, hint: str
) -> None:
    hub.status, hub.negotiation = 400, negotiation
    with pytest.raises(ServerError) as refused:
        await Client(hub.url, "h", timers=QUICK).__aenter__()
    assert (refused.value.code, refused.value.message) == (code, message)
    assert refused.value.hint.startswith(hint)


async def test_a_refusal_that_may_pass_is_tried_again(hub: FakeHub) -> None:
    client = Client(hub.url, "h", timers=QUICK)
    hub.status = 503
    entering = asyncio.create_task(client.__aenter__())
    await until(lambda: hub.requests >= 3, what="three attempts")
    hub.status = None
    link = await hub.accept()
    await link.say({"error": "log_unavailable: NATS is away. Try again."})
    link = await hub.accept()
    await link.opens()
    await entering
    assert client.state is State.ACTIVE
    await client.close()


async def test_nobody_there_within_the_time_given_is_said_so() -> None:
    async with fake_hub() as gone:
        url = gone.url
    client = Client(url, "h", timers=QUICK, connect_timeout_s=0.1)
    with pytest.raises(Unreachable, match="no connection") as raised:
        await client.__aenter__()
    assert raised.value.retryable
    assert client.state is State.CLOSED


async def test_a_lost_connection_is_given_up_after_the_time_given(hub: FakeHub) -> None:
    async with connected(hub, give_up_after_s=0.1) as (watched, link):
        hub.status = 503
        link.cut()
        await watched.client.wait_closed()
        assert watched.client.error is not None
        assert watched.client.error.code == "unreachable"
        assert watched.states[-2:] == [State.RECONNECTING, State.CLOSED]


async def test_heartbeats_go_both_ways(hub: FakeHub) -> None:
    timers = Timers(ping_s=0.02, silence_s=0.3, backoff_first_s=0.01)
    async with connected(hub, timers=timers) as (watched, link):
        assert await link.heard(pings=True) == {"type": 6}
        assert await link.heard(pings=True) == {"type": 6}
        again = await hub.accept()  # the node said nothing: it is taken for gone
        await again.opens(token="t2", resumed=True)
        await until(lambda: watched.client.state is State.ACTIVE, what="the resume")
        assert watched.states == [State.CONNECTING, State.ACTIVE, State.RECONNECTING, State.ACTIVE]


async def test_a_node_that_takes_the_connection_and_says_nothing_is_left(hub: FakeHub) -> None:
    client = Client(hub.url, "h", timers=Timers(open_s=0.05, backoff_first_s=0.01))
    entering = asyncio.create_task(client.__aenter__())
    silent = await hub.accept()
    link = await hub.accept()
    await link.opens()
    await entering
    assert (await silent.heard())["protocol"] == "json"
    await silent.call("hub.session")
    assert await silent.heard() == {"type": 7}, "it may have opened a session that nobody will resume"
    await asyncio.wait_for(silent.ended.wait(), 5)
    await client.close()


@pytest.mark.parametrize(
    "nonsense", ["nothing\x1e", '{"type":1,"target":"say","arguments":[]}\x1e', '{"type":"x"}\x1e']
)
async def test_nonsense_ends_the_connection_not_the_client(hub: FakeHub, nonsense: str) -> None:
    async with connected(hub) as (watched, link):
        await link.raw(nonsense)
        again = await hub.accept()
        await again.opens(token="t2", resumed=True)
        await until(lambda: watched.states[-2:] == [State.RECONNECTING, State.ACTIVE], what="the resume")


async def test_closing_while_connecting_and_twice_and_from_a_handler(hub: FakeHub) -> None:
    client = Client(hub.url, "h", timers=QUICK)
    entering = asyncio.create_task(client.__aenter__())
    link = await hub.accept()
    await link.shakes()
    await client.close()
    await entering
    await client.close()
    assert (client.state, client.error) == (State.CLOSED, None)
    assert await link.heard() == {"type": 7}, "the session may be open already, and nobody else knows of it"

    async with connected(hub) as (watched, link):
        watched.client.on("bye", watched.client.close)
        await link.message("p1", "bye")
        await watched.client.wait_closed()
        assert await link.heard() == {"type": 7}


async def test_whenever_it_is_closed_as_it_connects_the_session_is_ended(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    """From before the first answer is read until it has been taken in, one turn of the loop later each time."""
    states = set()
    for turns in range(25):
        client = Client(hub.url, "h", timers=QUICK)
        entering = asyncio.create_task(client.__aenter__())
        link = await hub.accept()
        await link.opens()
        for _ in range(turns):
            await asyncio.sleep(0)
        states.add(client.state)
        await client.close()
        await entering
        assert await link.heard() == {"type": 7}, f"closed after {turns} turns"
    assert states == {State.CONNECTING, State.ACTIVE}
    assert not caplog.records


async def test_closing_while_reconnecting_resumes_the_session_to_end_it(hub: FakeHub) -> None:
    client, _ = await lost(hub)
    closing = asyncio.create_task(client.close())
    link = await hub.accept()
    assert (link.query["resume"], link.query["cursor"]) == ("t1", "p0")
    await link.opens(token="t2", resumed=True)
    assert await link.heard() == {"type": 7}
    await closing
    assert (client.state, client.error) == (State.CLOSED, None)


async def test_closing_while_reconnecting_ends_though_nobody_answers(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hublog_connector, "GOODBYE_S", 0.05)
    client, _ = await lost(hub)
    closing = asyncio.create_task(client.close())
    silent = await hub.accept()
    await silent.ended.wait()
    await closing

    client, requests = await lost(hub)
    hub.status = 503
    await client.close()
    assert hub.requests == requests + 1
    assert client.state is State.CLOSED


async def test_a_plain_client_that_reconnects_has_no_session_to_end(hub: FakeHub) -> None:
    client, requests = await lost(hub, token=None, resumable=False)
    await client.close()
    assert hub.requests == requests


async def lost(hub: FakeHub, *, token: str | None = "t1", resumable: bool = True) -> tuple[Client, int]:
    """A client that has lost its connection and does not try again soon; and how many connections there were."""
    never = Timers(backoff_first_s=1e6, backoff_longest_s=1e6)
    client = Client(hub.url, "h", timers=never, resumable=resumable)
    entering = asyncio.create_task(client.__aenter__())
    link = await hub.accept()
    await link.opens(token=token)
    await entering
    link.cut()
    await until(lambda: client.state is State.RECONNECTING, what="the loss")
    return client, hub.requests


async def test_an_observer_that_fails_is_logged(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "hublog"):
        client = Client(hub.url, "h", timers=QUICK)
        client.on_state(lambda _: 1 / 0)
        entering = asyncio.create_task(client.__aenter__())
        await (await hub.accept()).opens()
        await entering
        await client.close()
    assert [record.message for record in caplog.records] == ["hublog: an observer of the state failed"] * 3


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h", "http://h?x=1", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Client(url, "h")
    with pytest.raises(ValueError, match="at least one"):
        Client([], "h")
