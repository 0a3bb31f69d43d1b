"""Identifiers and positions: grammar, limits, and ids from keys that never meet."""

import os
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import ids
from events.errors import InvalidName, InvalidPosition
from events.ids import Epoch, HubName, Position, keyed_id, parse_hub, parse_name, parse_position

epochs = st.binary(min_size=3, max_size=3).map(ids.epoch)


@given(epochs, st.integers(0, 9_999), st.integers(0, ids.SEQUENCE_MAX))
def test_a_position_survives_its_text(epoch, partition, sequence):
    position = Position(epoch, partition, sequence)
    assert parse_position(str(position)) == position


def test_a_position_looks_as_documented_and_is_safe_in_a_url():
    text = str(Position(Epoch("k7qd"), 0, 1523))
    assert text == "k7qd.0-1523"
    assert parse_position(text).sequence == 1523
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def test_positions_of_one_partition_are_in_the_order_of_their_sequences():
    assert Position(Epoch("aaaa"), 0, 9) < Position(Epoch("aaaa"), 0, 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k7qd",
        "k7qd.0",
        "k7qd.0-",
        "k7qd.-1",
        "k7qd.0-01",
        "k7qd.00-1",
        "k7qd.0--1",
        "k7qd.0-+1",
        "k7qd.0-1 ",
        " k7qd.0-1",
        "k7qd.0-1\n",
        "k7qd.0-\u0661",
        "K7QD.0-1",
        "k8qd.0-1",
        "k7q.0-1",
        "k7qdd.0-1",
        "k7qd.10000-1",
        f"k7qd.0-{ids.SEQUENCE_MAX + 1}",
        "k7qd.0-" + "9" * 100,
        "0",
        "\x00",
        "\ud800",
    ],
)
def test_what_is_no_position_is_refused(text):
    with pytest.raises(InvalidPosition) as caught:
        parse_position(text)
    assert len(caught.value.message) < 450


@pytest.mark.parametrize("name", ["chat", "0", "a-", "a" * 32, "2-b"])
def test_names_of_hubs(name):
    assert parse_hub(name) == name


@pytest.mark.parametrize("name", ["", "Chat", "-a", "a" * 33, "a_b", "a.b", "ä", "_sys", "chat\n", "a b"])
def test_what_is_no_name_of_a_hub(name):
    with pytest.raises(InvalidName):
        parse_hub(name)


@pytest.mark.parametrize("name", ["a", "x" * 256, "é" * 128, "🎈" * 64, " ", "\u2028", "."])
def test_names_up_to_256_bytes(name):
    assert parse_name(name, "group") == name


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 128 + "x", "🎈" * 65, "a\0b", "\0", "\ud800", "a\udfff"])
def test_what_is_no_name_says_which_kind(name):
    with pytest.raises(InvalidName, match="the group"):
        parse_name(name, "group")


def test_session_ids_are_16_random_bytes_as_one_plain_token():
    made = {ids.session_id(os.urandom(16)) for _ in range(100)}
    assert len(made) == 100
    assert {len(each) for each in made} == {22}
    for size in (0, 15, 17):
        with pytest.raises(ValueError, match="16 bytes"):
            ids.session_id(bytes(size))


@given(st.binary(min_size=3, max_size=8))
def test_an_epoch_is_four_base32_characters(random):
    assert ids.is_epoch(ids.epoch(random))
    assert len(ids.epoch(random)) == 4


@pytest.mark.parametrize("text", ["", "abc", "abcde", "ABCD", "abc1", "abcd\n", "äbcd"])
def test_what_is_no_epoch(text):
    assert not ids.is_epoch(text)


triples = st.tuples(
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}\Z", fullmatch=True).map(HubName),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)


@given(triples, triples)
@example((HubName("a"), "bc", "d"), (HubName("ab"), "c", "d"))
@example((HubName("a"), "b", "cd"), (HubName("a"), "bc", "d"))
@example((HubName("a"), "user:a", "1"), (HubName("a"), "user:a1", ""))
@example((HubName("1"), "1.x", "k"), (HubName("1"), "1", ".xk"))
def test_keyed_ids_meet_only_for_the_same_hub_actor_and_key(one, other):
    assert (keyed_id(*one) == keyed_id(*other)) == (one == other)


def test_a_keyed_id_is_the_same_for_ever():
    """Golden: were it to change, a key repeated across an upgrade would not meet its own event."""
    assert keyed_id(HubName("chat"), "user:ann", "k1") == "64c228df-00e6-5077-8a77-a0da166bc3b5"
    assert uuid.UUID(keyed_id(HubName("chat"), "user:ann", "k1")).version == 5


@given(st.text(max_size=40), st.integers(1, 64))
def test_a_hub_has_one_partition(hub, partitions):
    assert 0 <= ids.partition_of(hub, partitions) < partitions


def test_partitions_stay_where_they_are():
    """Golden: crc32(hub) mod P decides where the log of a hub is."""
    assert [ids.partition_of(hub, 8) for hub in ("chat", "lobby", "a", "0")] == [2, 7, 3, 1]


@given(st.binary(max_size=40))
def test_base64url_survives(data):
    assert ids.from_b64url(ids.b64url(data)) == data


@given(st.text(max_size=12) | st.from_regex(r"[A-Za-z0-9_=-]{0,9}\Z", fullmatch=True))
@example("YQ==")
@example("YR")
@example("+/+/")
@example("Y Q")
@example("é")
def test_base64url_has_one_spelling(text):
    try:
        data = ids.from_b64url(text)
    except ValueError:
        return
    assert ids.b64url(data) == text
