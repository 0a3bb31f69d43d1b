"""Sealed tokens: who may open what, and for how long."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import BadToken, Misconfigured
from events.ids import HubName, UserId, b64url, from_b64url
from service.gateway.tokens import (
    CONNECTION,
    ConnectionGrant,
    KeyRing,
    new_secret,
    open_connection,
    seal_connection,
)

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
RING = KeyRing([NEW, OLD])
CHAT = HubName("chat")
GRANT = ConnectionGrant(CHAT, "conn", 1000.0, UserId("ann"), msgspec.Raw(b'{"lang":"de"}'))


@given(st.text(max_size=20), st.binary(max_size=500))
def test_what_is_sealed_opens_again(purpose: str, data: bytes):
    token = RING.seal(purpose, data)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert RING.open(purpose, token) == data


def test_the_first_key_seals_and_all_open():
    assert RING.open("p", KeyRing([OLD]).seal("p", b"x")) == b"x"
    with pytest.raises(BadToken):
        KeyRing([OLD]).open("p", RING.seal("p", b"x"))


def test_a_token_for_one_purpose_opens_for_no_other():
    with pytest.raises(BadToken):
        RING.open("resume", RING.seal("connection", b"x"))


@given(st.data())
def test_one_changed_bit_anywhere_is_refused(data: st.DataObject):
    sealed = bytearray(from_b64url(RING.seal("p", b"some data")))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadToken):
        RING.open("p", b64url(bytes(sealed)))


@given(st.text(max_size=80))
def test_garbage_is_a_bad_token_and_never_a_crash(text: str):
    with pytest.raises(BadToken):
        RING.open("p", text)


def test_an_oversized_token_is_refused_unread():
    with pytest.raises(BadToken, match="too long"):
        RING.open("p", "A" * 10_000)


def test_two_seals_of_the_same_differ():
    assert RING.seal("p", b"x") != RING.seal("p", b"x")


def test_the_setting_is_a_list_of_keys():
    first, second = new_secret(), new_secret()
    both = KeyRing.parse(f"{first}, {second}=")
    assert both.open("p", KeyRing.parse(second).seal("p", b"x")) == b"x"
    assert first not in repr(both)


@pytest.mark.parametrize("secrets", ["", "short", "not base64!", b64url(b"x" * 31), f"{b64url(OLD)},", "é" * 43])
def test_a_bad_setting_is_refused_without_being_quoted(secrets: str):
    with pytest.raises(Misconfigured) as refused:
        KeyRing.parse(secrets)
    assert not secrets or secrets not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_connection_token_opens_on_any_node_with_all_it_holds():
    grant = open_connection(KeyRing([OLD, NEW]), seal_connection(RING, GRANT), CHAT, 1001.0)
    assert (grant.hub, grant.connection, grant.user) == ("chat", "conn", "ann")
    assert bytes(grant.metadata) == b'{"lang":"de"}'


def test_a_connection_token_without_user_and_metadata():
    grant = open_connection(RING, seal_connection(RING, ConnectionGrant(CHAT, "c", 1000.0)), CHAT, 1000.0)
    assert grant.user is None
    assert bytes(grant.metadata) == b"null"


@pytest.mark.parametrize("now_s", [939.0, 1121.0])
def test_a_connection_token_expires_and_may_not_come_from_the_future(now_s: float):
    with pytest.raises(BadToken, match="expired"):
        open_connection(RING, seal_connection(RING, GRANT), CHAT, now_s)


def test_a_connection_token_is_for_one_hub():
    with pytest.raises(BadToken, match="another hub"):
        open_connection(RING, seal_connection(RING, GRANT), HubName("games"), 1000.0)


def test_sealed_content_of_another_version_is_refused():
    with pytest.raises(BadToken, match="does not read"):
        open_connection(RING, RING.seal(CONNECTION, b'{"v":2}'), CHAT, 1000.0)
